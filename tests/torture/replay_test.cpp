// Activations that are not saved: the samples pass the finished blocks again and come out as before, or the
// run starts from the beginning; the bytes are the same.
#include <set>

#include "lcomp/core/error.h"
#include "pipeline/job_runs.h"
#include "torture/sandbox.h"

using namespace lcomp;
using test::Sandbox;

namespace {

/// Stops a run when the block loop comes to the block in the middle.
struct Stopper final : test::Watcher {
  bool is_there = false;
  void progress(const Progress& step) override {
    is_there = is_there || (step.phase == "compress" && 2 * step.done >= step.total);
    Watcher::progress(step);
  }
  bool cancelled() override { return is_there; }
};

/// Removes the saved activations; how many files there were.
int lose_samples(const Sandbox& sandbox) {
  int lost = 0;
  for (const auto& file : io::list_directory(test::work_dir_of(sandbox.output()))) {
    const std::string name = file.filename().string();
    if (!name.starts_with("samples-") && !name.starts_with("reference-0")) continue;
    std::filesystem::remove(file);
    ++lost;
  }
  return lost;
}

}  // namespace

TEST_CASE("activations that are gone come out of the finished blocks as they were, or the run starts again",
          "[torture][slow]") {
  int replayed = 0;
  std::set<std::string> from_the_start;
  for (const test::NamedJob& job : test::torture_jobs()) {
    CAPTURE(job.name);
    const Sandbox sandbox(job);
    test::run(sandbox.job());
    const test::Fingerprint whole = sandbox.fingerprint();
    sandbox.clear();
    Stopper stopper;
    REQUIRE_THROWS_AS(test::run(sandbox.job(), stopper), Interrupted);
    const bool had_samples = lose_samples(sandbox) > 0;
    test::Watcher watcher;
    const auto report = test::run(sandbox.job(), watcher);
    REQUIRE(test::difference(whole, sandbox.fingerprint()).empty());
    if (report.blocks[0].resumed) {
      replayed += had_samples ? 1 : 0;
    } else {
      from_the_start.insert(job.name);
    }
  }
  REQUIRE(replayed > 15);
  // Jobs that delete units start again.
  REQUIRE(from_the_start == std::set<std::string>{"fisher_mask", "llm_pruner", "tiny fisher_mask"});
}
