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

TEST_CASE("SmoothQuant alone leaves a dense model that computes the same", "[pipeline][smooth]") {
  const test::TempDir dir;
  for (const bool search : {false, true}) {
    CAPTURE(search);
    const auto output = dir / (search ? "searched" : "fixed");
    Json job = test::job_with(output, Json::array({smooth({{"search_alpha", search}})}));
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
  const auto report =
      test::run(test::job_with(dir / "out", Json::array({smooth({{"smooth_groups", "norms"}})})));
  CHECK(scaled_kinds(report) ==
        std::vector<std::string>{"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"});
}

TEST_CASE("a pass behind SmoothQuant quantizes, with the same bytes at one and two threads",
          "[pipeline][smooth]") {
  const test::TempDir dir;
  for (const int threads : {1, 2}) {
    const Json rtn = test::pass("rtn", {{"bits", 8}, {"granularity", "channel"}});
    Json job =
        test::job_with(dir / std::to_string(threads), Json::array({smooth({{"search_alpha", true}}), rtn}));
    job["threads"] = threads;
    REQUIRE(test::run(job).verification->passed);
  }
  CHECK(test::weights_hash(dir / "1") == test::weights_hash(dir / "2"));
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
      Catch::Matchers::Contains("[awq] range hessian needs the solver gptq; rtn has no statistics of the "
                                "scaled inputs (clip searches ranges by the same error)"));
}
