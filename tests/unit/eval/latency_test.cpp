#include "lcomp/eval/latency.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
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

namespace {

/// Takes `seconds` a call of what is timed first in every round, one second of what is timed then.
eval::TimingOptions alternating(std::vector<double> seconds) {
  struct State {
    double now = 0;
    size_t looks = 0;
  };
  const auto state = std::make_shared<State>();
  // Two looks at the clock for each call: before and after it.
  return {.warmup = 0, .repeats = static_cast<int64_t>(seconds.size()), .clock = [state, seconds] {
            const size_t look = state->looks++;
            if (look % 4 == 1) state->now += seconds[look / 4 % seconds.size()];
            if (look % 4 == 3) state->now += 1;
            return state->now;
          }};
}

eval::LatencyOptions options_with(const eval::TimingOptions& timing, std::vector<int64_t> tokens = {1, 3}) {
  return {.tokens = std::move(tokens), .precision = linalg::Precision::kF32, .timing = timing};
}

/// The tiny llama with one matrix pruned.
model::Model pruned_llama() {
  test::TinyLlama tiny;
  tiny.tensors["model.layers.0.mlp.up_proj.weight"].slice(1, 0, 8).zero_();
  return tiny.model();
}

}  // namespace

TEST_CASE("operators are timed by kind and in total, for every number of tokens", "[eval][latency]") {
  const auto model = pruned_llama();
  ThreadPool pool(2);
  Observer silent;
  const auto rows =
      eval::operator_latencies(model, nullptr, options_with(alternating({0.5, 0.5, 3, 0.5})), pool, silent);
  REQUIRE(rows.size() == 2 * (7 + 1));
  for (size_t i = 0; i < rows.size(); ++i) {
    CAPTURE(i, rows[i].name);
    REQUIRE(rows[i].tokens == (i % 2 == 0 ? 1 : 3));
    const bool total = i >= 14;
    REQUIRE((rows[i].name == "all operators") == total);
    const double count = total ? 7 : 1;
    REQUIRE(rows[i].measured.seconds == std::vector<double>{count / 2, count / 2, 3 * count, count / 2});
    REQUIRE(rows[i].dense.seconds == std::vector<double>(4, count));
    REQUIRE(eval::is_faster(rows[i].measured, rows[i].dense));  // three of four rounds
    REQUIRE(rows[i].bytes == rows[i].dense_bytes);
  }
  REQUIRE(rows[0].name == "q_proj");
  REQUIRE(rows[0].bytes == 2 * 4 * 16 * 16);  // both blocks', float32
  REQUIRE(error_text([&] {
            eval::operator_latencies(model, nullptr, options_with(ticking(), {0}), pool, silent);
          }) == "[latency] tokens must be from 1 up; received 0");
}

TEST_CASE("a measurement that is asked to stop ends at once", "[eval][latency]") {
  struct Stopper final : Observer {
    bool cancelled() override { return true; }
  } stopper;
  const auto model = pruned_llama();
  ThreadPool pool(1);
  const auto by_kind = [&] {
    eval::operator_latencies(model, nullptr, options_with(ticking()), pool, stopper);
  };
  const auto whole = [&] { eval::block_latency(model, nullptr, 5, options_with(ticking()), stopper); };
  REQUIRE_THROWS_AS(by_kind(), Interrupted);
  REQUIRE(error_text(by_kind) == "[latency] the measurement was asked to stop");
  REQUIRE(error_text(whole) == "[latency] the measurement was asked to stop");
}

TEST_CASE("a sample is timed through the blocks of both models, whatever their number", "[eval][latency]") {
  const auto model = pruned_llama();
  Observer silent;
  const auto row = eval::block_latency(model, nullptr, 5, options_with(alternating({2, 2})), silent);
  REQUIRE(row.name == "all blocks");
  REQUIRE(row.tokens == 5);
  REQUIRE(row.measured.seconds == std::vector<double>{4, 4});
  REQUIRE(row.dense.seconds == std::vector<double>{2, 2});
  REQUIRE_FALSE(eval::is_faster(row.measured, row.dense));

  test::TinyLlama deeper;
  deeper.config["num_hidden_layers"] = 3;
  for (const auto& [name, tensor] : test::TinyLlama().tensors) {
    if (name.starts_with("model.layers.1.")) deeper.tensors["model.layers.2." + name.substr(15)] = tensor;
  }
  const auto deep = deeper.model();
  const auto shallow = eval::block_latency(model, &deep, 5, options_with(ticking()), silent);
  REQUIRE(shallow.measured.seconds == std::vector<double>{2});
  REQUIRE(shallow.dense.seconds == std::vector<double>{3});
  REQUIRE(3 * shallow.bytes == 2 * shallow.dense_bytes);
}

TEST_CASE("every storage is timed on a random matrix of the density that is asked", "[eval][latency]") {
  ThreadPool pool(1);
  using sparse::SparseFormat;
  for (const auto& [format, density] : {std::pair{SparseFormat::kCsr, 0.25},
                                        {SparseFormat::kBitmask, 0.25},
                                        {SparseFormat::kTwoOfFour, 0.5},
                                        {SparseFormat::kTiledCsl, 0.25},
                                        {SparseFormat::kBlockedEll, 0.5}}) {
    CAPTURE(name_of(format));
    const auto rows =
        eval::storage_latencies(64, 128, density, format, options_with(ticking(), {1, 8}), pool);
    REQUIRE(rows.size() == 2);
    for (const auto& row : rows) {
      REQUIRE(row.name == name_of(format));
      REQUIRE(row.density == density);
      REQUIRE(row.dense_bytes == 4 * 64 * 128);
      REQUIRE(row.bytes < row.dense_bytes);
      REQUIRE(row.measured.seconds == row.dense.seconds);
    }
    REQUIRE(rows[1].tokens == 8);
  }
  const auto text = [&](int64_t out, double density, SparseFormat format) {
    return error_text(
        [&] { eval::storage_latencies(out, 30, density, format, options_with(ticking()), pool); });
  };
  REQUIRE(text(0, 0.5, SparseFormat::kCsr) == "[latency] the shape must be from 1x1 up; received 0x30");
  REQUIRE(text(4, 0, SparseFormat::kCsr) == "[latency] density must be above 0 and at most 1; received 0");
  REQUIRE_THAT(text(4, 0.5, SparseFormat::kTwoOfFour), Catch::Contains("2:4 must divide the"));
}
