#include "lcomp/eval/latency.h"

#include <catch2/catch.hpp>

#include "lcomp/io/files.h"
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

TEST_CASE("a latency table is written and read, and one that is none is refused", "[eval][latency]") {
  const test::TempDir dir;
  const std::filesystem::path path = dir / "table.json";
  const auto read = [&](const std::string& text) {
    io::write_file_atomic(path, text);
    return eval::read_latency_table(path);
  };
  const eval::LatencyTable table{{0, 0.25, 0.5}, {0, 0.125, 0.5}, {0, 100, 256}};
  const eval::LatencyTable again = read(eval::to_json(table));
  REQUIRE(again.attention == table.attention);
  REQUIRE(again.mlp == table.mlp);
  REQUIRE(again.mlp_widths == table.mlp_widths);
  const auto error = [&](const std::string& text) { return test::error_text([&] { read(text); }); };
  REQUIRE_THAT(error(R"({"attention": [0, 1], "mlp_widths": [0, 8, 8], "mlp": [0, 1, 2]})"),
               Catch::Contains("table.json: /mlp_widths] must ascend from 0"));
  REQUIRE_THAT(error(R"({"attention": [0, 1], "mlp_widths": [0, 8], "mlp": [0, 1, 2]})"),
               Catch::Contains("/mlp] must hold the seconds of each"));
  REQUIRE_THAT(error(R"({"attention": [0], "mlp_widths": [0, 8], "mlp": [0, 1]})"),
               Catch::Contains("/attention] must hold the seconds"));
}
