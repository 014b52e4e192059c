#include "report/view.h"

#include <catch2/catch.hpp>

#include "support/sample_report.h"

using namespace lcomp::report;
using lcomp::pipeline::OperatorRow;
using lcomp::pipeline::RunReport;
using lcomp::test::demo_model;
using lcomp::test::sample_report;
using lcomp::test::sample_running_report;

namespace {

OperatorRow row(const std::string& name, const std::string& kind, int64_t block) {
  OperatorRow out;
  out.name = name;
  out.kind = kind;
  out.block = block;
  out.out_features = out.in_features = 64;
  return out;
}

}  // namespace

TEST_CASE("the grid has a row per kind and a column per block of the model", "[report][view]") {
  const RunReport report = sample_running_report(demo_model(), 2);
  const OperatorGrid grid = arrange(report);
  REQUIRE(grid.kinds == std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                                 "up_proj", "down_proj"});
  REQUIRE(grid.columns == 4);
  REQUIRE(grid.at(6, 1)->name == "model.layers.1.mlp.down_proj");
  REQUIRE(grid.at(6, 2) == nullptr);
}

TEST_CASE("of several passes over an operator the last counts", "[report][view]") {
  RunReport report;
  report.operators = {row("a", "q_proj", 0), row("b", "q_proj", 1), row("a", "q_proj", 0)};
  report.operators[2].pass = 1;
  REQUIRE(final_rows(report).size() == 2);
  REQUIRE(arrange(report).at(0, 0)->pass == 1);
}

TEST_CASE("operators outside the blocks have no column", "[report][view]") {
  RunReport report;
  report.operators = {row("lm_head", "lm_head", -1)};
  const OperatorGrid grid = arrange(report);
  REQUIRE(grid.kinds.empty());
  REQUIRE(grid.columns == 0);
  REQUIRE(summarize_kinds(report).size() == 1);
}

TEST_CASE("a block number from a file does not size the grid", "[report][view]") {
  RunReport report;
  report.operators = {row("a", "q_proj", 1'000'000'000'000)};
  report.model.blocks = 5;
  REQUIRE(arrange(report).columns == kMaxColumns);
  report.model.blocks = -3;
  report.operators.clear();
  REQUIRE(arrange(report).columns == 0);
}

TEST_CASE("a kind's numbers are means over its operators, with the worst block named", "[report][view]") {
  RunReport report;
  report.operators = {row("a", "q_proj", 0), row("b", "q_proj", 1), row("c", "q_proj", 2)};
  for (auto& r : report.operators) r.bytes_after = 2048;
  report.operators[0].activation_error = 0.1;
  report.operators[1].activation_error = 0.3;
  report.operators[0].loss = 1;
  report.operators[0].rtn_loss = 2;
  report.operators[1].loss = 5;
  report.operators[1].rtn_loss = 6;
  report.operators[2].rtn_loss = 100;
  report.operators[0].scheme = report.operators[2].scheme = "rank 8";
  report.operators[1].scheme = "rank 9";
  const auto kinds = summarize_kinds(report);
  REQUIRE(kinds.size() == 1);
  REQUIRE(kinds[0].operators == 3);
  REQUIRE(kinds[0].stored == "rank 8; 1 other way");
  REQUIRE(kinds[0].bits_per_weight == Approx(4));
  REQUIRE(*kinds[0].activation_error == Approx(0.2));
  REQUIRE(*kinds[0].worst_activation_error == 0.3);
  REQUIRE(kinds[0].worst_block == 1);
  REQUIRE_FALSE(kinds[0].weight_error.has_value());
  REQUIRE(*kinds[0].loss_ratio == Approx(6.0 / 8.0));
}

TEST_CASE("rungs are counted from the regular one down, and irregular rows come worst first",
          "[report][view]") {
  const RunReport report = sample_report();
  const auto rungs = count_rungs(report);
  REQUIRE(rungs.size() == 2);
  REQUIRE(rungs[0].rung == "cholesky");
  REQUIRE(rungs[0].operators == 208);
  REQUIRE(rungs[1].rung == "more damping");
  REQUIRE(rungs[1].operators == 2);
  REQUIRE(rungs[1].max_damping == 0.1);
  const auto rows = irregular_rows(report);
  REQUIRE(rows.size() == 2);
  REQUIRE(rows[0]->fell_back);
  REQUIRE(rows[1]->dead_columns == 12);
}

TEST_CASE("the worst rows are those of the largest error, and NaN does not hide among them",
          "[report][view]") {
  RunReport report;
  report.operators = {row("a", "q", 0), row("b", "q", 1), row("c", "q", 2), row("d", "q", 3)};
  report.operators[0].activation_error = 0.1;
  report.operators[1].activation_error = std::nan("");
  report.operators[2].weight_error = 0.5;
  const auto rows = worst_rows(report, 10);
  REQUIRE(rows.size() == 2);
  REQUIRE(rows[0]->name == "c");
  REQUIRE(rows[1]->name == "a");
  REQUIRE(worst_rows(report, 1).size() == 1);
}

TEST_CASE("sentences carry the counts they are made from", "[report][view]") {
  const RunReport report = sample_report(demo_model());
  REQUIRE(describe_windows(*report.calibration) == "74 windows of 64 to 2,048 tokens (mean 221)");
  REQUIRE(describe_windows(report.evaluation[0]) == "16 windows of 2,048 tokens, stride 2,048");
  REQUIRE(describe_host(report.host) == "AMD EPYC 7B13 · avx2 fma f16c · 2 threads · f32 arithmetic");
  REQUIRE(describe_passes(report) == "gptq: int4 symmetric, groups of 64, activation order (static groups)");
  RunReport embedded = report;
  embedded.passes.push_back({std::string(lcomp::pipeline::kEmbeddingPass), "low_rank, 5 times smaller", 1});
  REQUIRE_THAT(describe_passes(embedded),
               Catch::Matchers::StartsWith("embedding: low_rank, 5 times smaller; then gptq: int4"));
  REQUIRE_THAT(describe_verification(report), Catch::Matchers::Contains("123 tensors decoded"));
  REQUIRE(*bits_before(report) == Approx(16));
  lcomp::pipeline::CalibrationFacts even;
  even.lengths = {{512, 3}};
  REQUIRE(describe_windows(even) == "3 windows of 512 tokens");
}

TEST_CASE("a run that is not done says so, and how far it came", "[report][view]") {
  REQUIRE(status_notice(sample_report()).empty());
  RunReport report = sample_running_report(demo_model(), 3);
  REQUIRE_THAT(status_notice(report), Catch::Matchers::Contains("3 of 4 blocks are done") &&
                                          Catch::Matchers::Contains("the run was killed"));
  report.status = lcomp::pipeline::RunStatus::kInterrupted;
  REQUIRE_THAT(status_notice(report), Catch::Matchers::StartsWith("The run was interrupted. 3 of 4"));
  report.status = lcomp::pipeline::RunStatus::kFailed;
  report.message = "[model.safetensors] bad";
  REQUIRE_THAT(status_notice(report), Catch::Matchers::EndsWith("[model.safetensors] bad"));
}

TEST_CASE("a failed verification names what differed", "[report][view]") {
  RunReport report;
  REQUIRE(describe_verification(report) == "The output has not been verified.");
  report.verification.emplace();
  report.verification->message = "'a.weight' differs";
  REQUIRE_THAT(describe_verification(report), Catch::Matchers::StartsWith("Verification FAILED") &&
                                                  Catch::Matchers::EndsWith("'a.weight' differs"));
}

TEST_CASE("rounded inputs and outlier features are told in sentences", "[report][view]") {
  RunReport report;
  REQUIRE(describe_products(report).empty());
  REQUIRE(describe_outliers(report).empty());
  report.operators = {row("a", "q_proj", 0), row("b", "k_proj", 0), row("c", "v_proj", 0)};
  report.operators[0].product = report.operators[1].product = "int8 product";
  report.operators[2].product = "simulation";
  REQUIRE(describe_products(report) ==
          "Rounded inputs are multiplied in 2 operators by int8 product, in 1 operators by simulation.");
  report.outliers = {
      {"q_proj", 1, 0.2, 0.9, false}, {"q_proj", 2, 0.5, 0.5, true}, {"o_proj", 7, 0.2, 0.1, false}};
  REQUIRE(describe_outliers(report) ==
          "3 input features had an outlier on some token; 1 of them systematically: in at least 25 % of the "
          "layers "
          "and on at least 6 % of the tokens.");
  const auto shown = shown_outliers(report, 2);
  REQUIRE(shown.size() == 2);
  REQUIRE(shown[0]->feature == 2);
  REQUIRE(shown[1]->feature == 1);
}
