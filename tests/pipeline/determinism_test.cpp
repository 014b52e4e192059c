#include "pipeline/job_runs.h"

using namespace lcomp;
using test::Json;

TEST_CASE(
    "the same job gives the same bytes at any number of threads, with activations in memory and on disk",
    "[pipeline][determinism]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "first");
  job["calibration"]["starts"] = 12;  // windows of mixed lengths
  test::run(job);
  const std::string expected = test::weights_hash(dir / "first");
  int run = 0;
  for (const int threads : {1, 2, 3}) {
    for (const char* cache : {"memory", "disk"}) {
      CAPTURE(threads, cache);
      const auto output = dir / std::to_string(run++);
      job["output"] = output.string();
      job["threads"] = threads;
      job["calibration"]["cache"] = cache;
      test::run(job);
      REQUIRE(test::weights_hash(output) == expected);
    }
  }
}

TEST_CASE("a job without calibration gives the same bytes at any number of threads",
          "[pipeline][determinism]") {
  const test::TempDir dir;
  Json job =
      test::rtn_job(dir / "one", {{"bits", 3}, {"symmetric", false}, {"range", "mse"}, {"mse_steps", 5}});
  test::run(job);
  job["output"] = (dir / "three").string();
  job["threads"] = 3;
  test::run(job);
  REQUIRE(test::weights_hash(dir / "one") == test::weights_hash(dir / "three"));
}

TEST_CASE("many threads gather the statistics of long samples as one does", "[pipeline][determinism][slow]") {
  const test::TempDir dir;
  std::string expected;
  for (const int threads : {1, 8}) {
    const auto output = dir / std::to_string(threads);
    Json job = test::gptq_job(output);
    job["calibration"]["samples"] = 7;
    job["calibration"]["length"] = 700;
    job["threads"] = threads;
    test::run(job);
    if (expected.empty()) expected = test::weights_hash(output);
    REQUIRE(test::weights_hash(output) == expected);
  }
}
