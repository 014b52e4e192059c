#include "lcomp/eval/latency.h"

#include <catch2/catch.hpp>

#include "support/error_text.h"
#include "support/fixture_models.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using test::error_text;

namespace {

/// One round of one call each, with a clock that ticks once a look: whatever is timed takes a second.
eval::TimingOptions ticking() {
  const auto ticks = std::make_shared<double>(0);
  return {.warmup = 0, .repeats = 1, .clock = [ticks] { return (*ticks)++; }};
}

void check_table(const model::Architecture& architecture, int64_t steps, ThreadPool* pool) {
  const eval::LatencyTable table = eval::latency_table(architecture, 5, steps, pool, ticking());
  REQUIRE(table.attention.size() == static_cast<size_t>(architecture.kv_heads) + 1);
  REQUIRE(table.mlp.size() == static_cast<size_t>(steps) + 1);
  REQUIRE(table.mlp_widths.size() == table.mlp.size());
  REQUIRE(table.mlp_widths.front() == 0);
  REQUIRE(table.mlp_widths.back() == architecture.intermediate_size);
  REQUIRE(std::is_sorted(table.mlp_widths.begin(), table.mlp_widths.end(), std::less_equal<>()));
  for (const auto* seconds : {&table.attention, &table.mlp}) {
    REQUIRE(seconds->front() == 0);
    REQUIRE(std::all_of(seconds->begin() + 1, seconds->end(), [](double s) { return s == 1; }));
  }
}

}  // namespace

TEST_CASE("a latency table has an entry for every group of heads and every width of its grid",
          "[eval][latency]") {
  const test::TinyLlama tiny;
  const auto model = tiny.model();
  ThreadPool pool(2);
  for (ThreadPool* threads : {static_cast<ThreadPool*>(nullptr), &pool}) {
    for (const int64_t steps : {1, 3, 32}) check_table(model.architecture(), steps, threads);
  }
}

TEST_CASE("a latency table can be had of every family", "[eval][latency]") {
  test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile&) {
    check_table(model.architecture(), 4, nullptr);
  });
}

TEST_CASE("a latency table without tokens or with more steps than channels is refused", "[eval][latency]") {
  const test::TinyLlama tiny;
  const auto model = tiny.model();
  const auto text = [&](int64_t tokens, int64_t steps) {
    return error_text([&] { eval::latency_table(model.architecture(), tokens, steps); });
  };
  REQUIRE(text(0, 4) == "[latency_table] tokens must be from 1 up and steps from 1 to 32; they are 0 and 4");
  REQUIRE(text(4, 33) ==
          "[latency_table] tokens must be from 1 up and steps from 1 to 32; they are 4 and 33");
}
