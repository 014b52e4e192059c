// A run whose machine loses power at any of its changes: what was not synchronised is gone, in part or in a
// mess. The output is absent or complete, and the same run then ends in the same bytes.
#include <catch2/catch.hpp>
#include <set>

#include "cli/failure.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"
#include "lcomp/report/report.h"
#include "pipeline/job_runs.h"
#include "torture/disk_model.h"
#include "torture/sandbox.h"

using namespace lcomp;
using test::Loss;
using test::Sandbox;

namespace {

std::string hash_of_tree(const test::Tree& tree) {
  io::Hasher hasher;
  for (const auto& [name, content] : tree) hasher.add(name + (content ? "=" + *content : "/") + "\n");
  return hasher.hex();
}

/// The error of a run in this process; empty when it ended well.
std::string run_error(const Sandbox& sandbox) {
  try {
    Observer silent;
    pipeline::run(test::parse(sandbox.job()), pipeline::builtin_methods(), silent, report::write_reports);
    return "";
  } catch (const std::exception& error) {
    return error.what();
  }
}

void check_whole(const Sandbox& sandbox, const test::Fingerprint& whole) {
  REQUIRE(test::difference(whole, sandbox.fingerprint()).empty());
  Observer silent;
  REQUIRE(pipeline::verify(sandbox.output(), silent).passed);
}

void continue_from(const Sandbox& sandbox, const test::Tree& disk, const test::Fingerprint& whole) {
  sandbox.clear();
  test::write_tree(sandbox.folder(), disk);
  const bool was_published = sandbox.is_published();
  if (was_published) check_whole(sandbox, whole);
  const std::string error = run_error(sandbox);
  if (was_published && !error.empty()) {
    REQUIRE(error == "[" + sandbox.output().string() +
                         "] the output must not exist yet; it does, and nothing is overwritten");
  } else {
    REQUIRE(error.empty());
  }
  check_whole(sandbox, whole);
  REQUIRE(sandbox.leftovers().empty());
}

/// Cuts the power before every `one_in`-th change, with a kind of loss in `losses`. States that were tried
/// are not tried again.
void cut_at_each(const test::NamedJob& job, size_t one_in, const std::vector<Loss>& losses) {
  const Sandbox sandbox(job);
  const auto logged = sandbox.run({{"LCOMP_FAULT_LOG", sandbox.log().string()}});
  REQUIRE(logged.exit_code == 0);
  const test::Fingerprint whole = sandbox.fingerprint();
  const auto calls = test::read_log(sandbox.log());
  test::DiskModel disk(sandbox.folder());
  std::set<std::string> tried;
  Rng rng(1, "power cuts");
  size_t changes = 0;
  for (const auto& call : calls) {
    if (call.kind == "read") continue;
    disk.apply(call);
    if (++changes % one_in != 0) continue;
    for (const Loss loss : losses) {
      const test::Tree left = disk.after_power_cut(loss, rng);
      if (!tried.insert(hash_of_tree(left)).second) continue;
      CAPTURE(call.number, call.kind, call.path.string(), static_cast<int>(loss));
      continue_from(sandbox, left, whole);
    }
  }
  // What a run has published when it ends is there to stay.
  REQUIRE(disk.after_power_cut(Loss::kAll, rng).contains("out/lcomp.json"));
  WARN(job.name << ": " << changes << " changes, " << tried.size() << " states of the disk survived");
  REQUIRE(tried.size() > 3);
}

}  // namespace

TEST_CASE("power cuts at some changes of a run's files lose no more than time", "[torture]") {
  cut_at_each(test::tiny_job(), 25, {Loss::kAll, Loss::kRandom});
}

TEST_CASE("a power cut at any change of a run's files loses no more than time", "[torture][slow]") {
  cut_at_each(test::tiny_job(), 1, {Loss::kAll, Loss::kNothing, Loss::kData, Loss::kRandom});
  cut_at_each(test::tiny_job(true), 2, {Loss::kAll, Loss::kData, Loss::kRandom});
}
