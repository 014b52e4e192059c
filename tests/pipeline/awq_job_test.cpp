// AWQ as a job: a chain of its scales and a solver.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "pipeline/job_runs.h"
#include "support/error_text.h"

using namespace lcomp;
using test::Json;

namespace {

Json awq_job(const std::filesystem::path& output, const Json& more = Json::object()) {
  return test::job_with(output, Json::array({test::pass("awq", more)}));
}

Json with_evaluation(Json job) {
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 4}, {"reference", true}};
  return job;
}

}  // namespace

TEST_CASE("an AWQ job is verified, and none of its groups loses against rounding", "[pipeline][awq]") {
  const test::TempDir dir;
  const auto report = test::run(awq_job(dir / "out"));
  REQUIRE(report.verification->passed);
  REQUIRE(report.passes.size() == 1);
  size_t transforms = 0;
  for (const auto& row : report.operators) {
    REQUIRE(row.method == "awq");
    REQUIRE(row.pass == 0);
    if (!row.scheme.starts_with("inputs ")) continue;
    ++transforms;
    CHECK(*row.loss <= *row.rtn_loss);
    CHECK(row.bytes_after == row.bytes_before);
  }
  CHECK(transforms == 28);
  CHECK(report.operators.size() == 56);
  const auto written = model::Model::open(dir / "out");
  REQUIRE(written.quantization());
  Observer silent;
  REQUIRE(pipeline::verify(dir / "out", silent).passed);
}

TEST_CASE("AWQ gives the same bytes with one and two threads, and when it continues", "[pipeline][awq]") {
  const test::TempDir dir;
  for (const char* solver : {"rtn", "gptq"}) {
    CAPTURE(solver);
    const std::string name = solver;
    test::run(awq_job(dir / (name + "1"), {{"solver", solver}}));
    Json two = awq_job(dir / (name + "2"), {{"solver", solver}});
    two["threads"] = 2;
    test::Watcher watcher;
    watcher.stops = [](int sign) { return sign >= 20; };
    REQUIRE_THROWS_AS(test::run(two, watcher), Interrupted);
    const auto report = test::run(two);
    CHECK(report.blocks.front().resumed);
    CHECK(test::weights_hash(dir / (name + "1")) == test::weights_hash(dir / (name + "2")));
  }
}

TEST_CASE("a solver in the chain and a pass behind the transform are the same", "[pipeline][awq]") {
  const test::TempDir dir;
  test::run(awq_job(dir / "chain", {{"solver", "gptq"}}));
  test::run(test::job_with(dir / "passes",
                           Json::array({test::pass("awq", {{"solver", "none"}}),
                                        test::pass("gptq", {{"range", "min_max"}})})));  // the default of awq
  CHECK(test::weights_hash(dir / "chain") == test::weights_hash(dir / "passes"));
}

TEST_CASE("AWQ without a solver leaves a dense model that computes the same", "[pipeline][awq]") {
  const test::TempDir dir;
  const auto report = test::run(with_evaluation(awq_job(dir / "out", {{"solver", "none"}})));
  REQUIRE(report.verification->passed);
  REQUIRE_FALSE(model::Model::open(dir / "out").quantization());
  CHECK(report.totals.bytes_after == report.totals.bytes_before);
  CHECK(*report.evaluation[1].kl_mean < 1e-3);  // only what rounding the scaled matrices to bfloat16 does
}

TEST_CASE("AWQ cannot be given a part of the operators that read one input", "[pipeline][awq]") {
  CHECK(test::error_text([] {
          test::run(awq_job("nowhere", {{"ignore", "v_proj"}}));
        }) ==
        "[job: /passes/0] a scale of what q_proj, k_proj reads changes all that reads it; v_proj must be "
        "transformed in the same pass, or none of them");
}

TEST_CASE("AWQ at 3 bits is nearer to the dense model than rounding to nearest", "[pipeline][awq][slow]") {
  const test::TempDir dir;
  const auto kl = [&](const char* method, const char* name) {
    Json job = test::job_with(dir / name, Json::array({test::pass(method, {{"bits", 3}})}));
    job["calibration"] = {{"text", test::calibration_text().string()}, {"samples", 64}, {"length", 128}};
    return *test::run(with_evaluation(job)).evaluation[1].kl_mean;
  };
  CHECK(kl("awq", "a") < 0.9 * kl("rtn", "r"));
}

TEST_CASE("AWQ scales for other number formats than integers too", "[pipeline][awq]") {
  const test::TempDir dir;
  for (const Json& format :
       {Json{{"format", "nf4"}}, Json{{"format", "fp8_e4m3"}, {"granularity", "channel"}}}) {
    for (const char* solver : {"rtn", "gptq"}) {
      CAPTURE(format, solver);
      Json more = format;
      more["solver"] = solver;
      const auto report = test::run(awq_job(dir / (format["format"].get<std::string>() + solver), more));
      REQUIRE(report.verification->passed);
      for (const auto& row : report.operators) {
        if (row.scheme.starts_with("inputs scaled")) CHECK(*row.loss <= *row.rtn_loss);
      }
    }
  }
}

TEST_CASE("the scales of either formula are folded where the report says so", "[pipeline][awq]") {
  const test::TempDir dir;
  for (const char* formula : {"activation", "activation_weight"}) {
    CAPTURE(formula);
    Json job = awq_job(dir / formula, {{"solver", "none"}, {"scale_formula", formula}, {"ratios", 1}});
    const auto report = test::run(job);
    const auto written = model::Model::open(dir / formula), dense = model::Model::open(test::bundled_model());
    for (const auto& row : report.operators) {
      if (row.method != "awq" || row.kind != "down_proj") continue;
      const bool changed = !written.checkpoint()
                                .read(row.name + ".weight")
                                .equal(dense.checkpoint().read(row.name + ".weight"));
      // Ratio 0 of the authors' formula is no scale; of the other it is one.
      CHECK(changed == (row.scheme == "inputs scaled, ratio 0.00"));
      CHECK(changed == (*row.loss < *row.rtn_loss));
    }
  }
}
