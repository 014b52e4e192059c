// SmoothQuant as a job: a transform with a pass behind it.
#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "pipeline/job_runs.h"
#include "support/error_text.h"

using namespace lcomp;
using test::Json;

namespace {

Json smooth(const Json& more = Json::object()) {
  Json entry = {{"method", "smoothquant"}};
  entry.update(more);
  return entry;
}

std::vector<std::string> scaled_kinds(const pipeline::RunReport& report) {
  std::vector<std::string> kinds;
  for (const auto& row : report.operators) {
    if (row.method == "smoothquant" && row.block == 0) kinds.push_back(row.kind);
  }
  return kinds;
}

}  // namespace

TEST_CASE("SmoothQuant without a solver leaves a dense model that computes the same", "[pipeline][smooth]") {
  const test::TempDir dir;
  for (const bool search : {false, true}) {
    CAPTURE(search);
    const auto output = dir / (search ? "searched" : "fixed");
    Json job = test::job_with(output, Json::array({smooth({{"solver", "none"}, {"search_alpha", search}})}));
    job["evaluate"] = {
        {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 4}, {"reference", true}};
    const auto report = test::run(job);
    REQUIRE(report.verification->passed);
    REQUIRE_FALSE(model::Model::open(output).quantization());
    CHECK(*report.evaluation[1].kl_mean < 1e-3);
    CHECK(scaled_kinds(report).size() == 7);
    for (const auto& row : report.operators) {
      CHECK(row.loss.has_value() == search);
      if (search) CHECK(*row.loss <= *row.rtn_loss);
    }
  }
}

TEST_CASE("SmoothQuant scales behind the norms only when asked to", "[pipeline][smooth]") {
  const test::TempDir dir;
  const auto report = test::run(
      test::job_with(dir / "out", Json::array({smooth({{"solver", "none"}, {"smooth_groups", "norms"}})})));
  CHECK(scaled_kinds(report) ==
        std::vector<std::string>{"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"});
}

TEST_CASE("SmoothQuant ends in weights and activations of 8 bits, with the same bytes at one and two threads",
          "[pipeline][smooth]") {
  const test::TempDir dir;
  for (const char* solver : {"rtn", "gptq"}) {
    for (const int threads : {1, 2}) {
      Json job = test::job_with(dir / solver / std::to_string(threads),
                                Json::array({smooth({{"search_alpha", true}, {"solver", solver}})}));
      job["threads"] = threads;
      const auto report = test::run(job);
      REQUIRE(report.verification->passed);
      CHECK(report.operators.back().scheme ==
            "int8 symmetric, per channel; int8 symmetric activations, per token");
    }
    CHECK(test::weights_hash(dir / solver / "1") == test::weights_hash(dir / solver / "2"));
  }
  CHECK(test::weights_hash(dir / "rtn" / "1") != test::weights_hash(dir / "gptq" / "1"));
}

TEST_CASE("the levels of SmoothQuant preset what is rounded together", "[pipeline][smooth]") {
  const test::TempDir dir;
  const auto scheme_at = [&](const std::string& level, const Json& more) {
    Json entry = smooth({{"level", level}});
    entry.update(more);
    const auto report = test::run(test::job_with(dir / (level + more.dump()), Json::array({entry})));
    REQUIRE(report.verification->passed);
    return report.operators.back().scheme;
  };
  CHECK(scheme_at("o1", Json::object()) ==
        "int8 symmetric, per tensor; int8 symmetric activations, per token");
  CHECK(scheme_at("o2", Json::object()) ==
        "int8 symmetric, per tensor; int8 symmetric activations, per tensor");
  CHECK(scheme_at("o3", Json::object()) ==
        "int8 symmetric, per tensor; int8 symmetric activations, per tensor, static");
  // What the job says itself wins.
  CHECK(scheme_at("o3", {{"granularity", "channel"}}) ==
        "int8 symmetric, per channel; int8 symmetric activations, per tensor, static");
}

TEST_CASE("a pass behind SmoothQuant without a solver quantizes what it scaled", "[pipeline][smooth]") {
  const test::TempDir dir;
  REQUIRE(test::run(test::job_with(dir / "chain", Json::array({smooth()}))).verification->passed);
  const Json passes = Json::array({smooth({{"solver", "none"}}), {{"method", "int8"}}});
  REQUIRE(test::run(test::job_with(dir / "passes", passes)).verification->passed);
  CHECK(test::weights_hash(dir / "chain") == test::weights_hash(dir / "passes"));
}

TEST_CASE("SmoothQuant after the quantization is refused", "[pipeline][smooth]") {
  const Json passes = Json::array({test::pass("rtn"), smooth()});
  CHECK_THAT(
      test::error_text([&] { test::run(test::job_with("nowhere", passes)); }),
      Catch::Matchers::Contains("[job: /passes/1] an operator must not be changed after it is quantized; "
                                "q_proj is quantized by \"rtn\" (/passes/0)"));
}

TEST_CASE("AWQ with rounding takes no range that needs statistics", "[pipeline][awq]") {
  const Json pass = test::pass("awq", {{"range", "hessian"}});
  CHECK_THAT(
      test::error_text([&] { test::run(test::job_with("nowhere", Json::array({pass}))); }),
      Catch::Matchers::Contains("[awq] range hessian needs the solver gptq; rtn takes no statistics of the "
                                "inputs. Use range mse"));
}

TEST_CASE("SmoothQuant rounds both sides to FP8 where asked, and refuses what has no such product",
          "[pipeline][smooth]") {
  const test::TempDir dir;
  const Json fp8 =
      smooth({{"format", "fp8_e4m3"}, {"activation_format", "fp8_e4m3"}, {"search_alpha", true}});
  const auto report = test::run(test::job_with(dir / "fp8", Json::array({fp8})));
  REQUIRE(report.verification->passed);
  CHECK(report.operators.back().scheme == "fp8_e4m3, per channel; fp8_e4m3 activations, per token");
  CHECK_THAT(test::error_text([&] {
               test::run(test::job_with("nowhere", Json::array({smooth({{"format", "nf4"}})})));
             }),
             Catch::Matchers::Contains(
                 "[smoothquant] format must be int or fp8_e4m3 beside quantized activations; received nf4"));
}
