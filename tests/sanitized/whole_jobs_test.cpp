// Whole jobs under the sanitizers: of every method for addresses and undefined behaviour, of one method of
// each family for races between threads, which makes a run twenty times as slow.
#include <set>

#include "pipeline/job_runs.h"
#include "torture/jobs.h"

using namespace lcomp;
using test::Json;

namespace {

void run_with_threads(const test::NamedJob& named, int threads) {
  CAPTURE(named.name);
  const test::TempDir dir;
  Json job = named.job;
  job["output"] = (dir / "out").string();
  job["threads"] = threads;
  if (named.is_tiny) {
    test::write_tiny_model(dir / "model");
    job["model"] = (dir / "model").string();
  }
  job["calibration"]["text"] = test::calibration_text().string();
  if (job.contains("evaluate")) job["evaluate"]["text"] = test::evaluation_text().string();
  REQUIRE(test::run(job).verification->passed);
}

}  // namespace

TEST_CASE("a job of every method, with three threads", "[memory]") {
  for (const test::NamedJob& named : test::torture_jobs()) run_with_threads(named, 3);
}

TEST_CASE("a job of each family, with three threads", "[threads]") {
  const std::set<std::string> families = {"gptq in two streams", "awq", "squeezellm", "wanda",
                                          "svd_llm under a budget"};
  size_t found = 0;
  for (const test::NamedJob& named : test::torture_jobs()) {
    if (!families.contains(named.name)) continue;
    ++found;
    run_with_threads(named, 3);
  }
  REQUIRE(found == families.size());
}
