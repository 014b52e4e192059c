// GPTQ with the mismatch-corrected target: the second stream of samples in plan, run and resume.
#include "lcomp/core/error.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

/// Enough tokens for two halves.
Json mismatch_job(const fs::path& output, const Json& more = {{"mismatch", "split"}}) {
  Json job = test::gptq_job(output, more);
  job["calibration"]["samples"] = 24;
  job["calibration"]["length"] = 128;
  return job;
}

}  // namespace

TEST_CASE("each way of correcting the target gives other bytes, and the report has the weights",
          "[pipeline][mismatch]") {
  const test::TempDir dir;
  std::map<std::string, std::string> seen;
  for (const Json& settings : {Json::object(), Json{{"mismatch", "fixed"}}, Json{{"mismatch", "split"}},
                               Json{{"mismatch", "fixed"}, {"mismatch_weight", 1}}}) {
    CAPTURE(settings.dump());
    const auto output = dir / std::to_string(seen.size());
    const auto report = test::run(mismatch_job(output, settings));
    REQUIRE(seen.emplace(test::weights_hash(output), settings.dump()).second);
    for (const auto& row : report.operators) {
      REQUIRE(row.mismatch_weight.has_value() == settings.contains("mismatch"));
      if (row.mismatch_weight) REQUIRE((*row.mismatch_weight >= 0 && *row.mismatch_weight <= 1));
    }
    REQUIRE_FALSE(fs::exists(output / "reference-hidden.cache"));
  }
  // A weight of 0 is no correction: the bytes of plain GPTQ.
  test::run(mismatch_job(dir / "zero", {{"mismatch", "fixed"}, {"mismatch_weight", 0}}));
  REQUIRE(seen.at(test::weights_hash(dir / "zero")) == "{}");
}

TEST_CASE("the corrected job gives the same bytes at any number of threads and with its caches on disk",
          "[pipeline][mismatch][determinism]") {
  const test::TempDir dir;
  std::string expected;
  int run = 0;
  for (const int threads : {1, 2}) {
    for (const char* cache : {"memory", "disk"}) {
      CAPTURE(threads, cache);
      Json job = mismatch_job(dir / std::to_string(run++));
      job["threads"] = threads;
      job["calibration"]["cache"] = cache;
      test::run(job);
      const std::string hash = test::weights_hash(job["output"].get<std::string>());
      if (expected.empty()) expected = hash;
      REQUIRE(hash == expected);
    }
  }
}

TEST_CASE("a corrected job that is killed continues with both streams to the same bytes",
          "[pipeline][mismatch][resume]") {
  const test::TempDir dir;
  test::run(mismatch_job(dir / "whole"));
  const std::string expected = test::weights_hash(dir / "whole");
  Json job = mismatch_job(dir / "killed");
  REQUIRE(test::run_in_child(job, 16).killed);
  const fs::path work = test::work_dir_of(dir / "killed");
  std::vector<fs::path> saved;
  for (const fs::path& file : io::list_directory(work)) {
    if (file.filename().string().starts_with("reference-0")) saved.push_back(file);
  }
  REQUIRE(saved.size() == 1);
  const bool damaged = GENERATE(false, true);
  if (damaged) fs::resize_file(saved[0], fs::file_size(saved[0]) - 4);
  test::Watcher watcher;
  const auto report = test::run(job, watcher);
  REQUIRE(test::weights_hash(dir / "killed") == expected);
  REQUIRE(report.blocks[0].resumed);
  REQUIRE(watcher.notes.size() == (damaged ? 2 : 1));  // the samples passed the finished block again
}

TEST_CASE("the plan counts the second stream", "[pipeline][mismatch]") {
  const test::TempDir dir;
  const auto methods = pipeline::builtin_methods();
  const auto plain = pipeline::plan(test::parse(mismatch_job(dir / "out", Json::object())), methods);
  const auto both = pipeline::plan(test::parse(mismatch_job(dir / "out")), methods);
  REQUIRE_FALSE(plain.compares_streams);
  REQUIRE(both.compares_streams);
  REQUIRE(both.memory.activations == 2 * plain.memory.activations);
  REQUIRE(both.memory.statistics > plain.memory.statistics);
  REQUIRE(both.memory.scratch > plain.memory.scratch);
  REQUIRE(both.disk_bytes > plain.disk_bytes);
}

TEST_CASE("a correction that cannot be measured is refused before anything is made", "[pipeline][mismatch]") {
  const test::TempDir dir;
  const auto text = [&](const Json& job) { return test::error_text([&] { test::run(job); }); };
  const std::string why =
      "the mismatch of the inputs is measured group by group as the samples move on, so the pass must be the "
      "last one and have \"true_sequential\": true";
  REQUIRE(text(mismatch_job(dir / "out", {{"mismatch", "split"}, {"true_sequential", false}})) ==
          "[job: /passes/0/mismatch] " + why);
  Json two = mismatch_job(dir / "out", {{"mismatch", "split"}, {"targets", {"*.down_proj"}}});
  two["passes"].push_back(test::pass("rtn", {{"targets", {"*.up_proj"}}}));
  REQUIRE(text(two) == "[job: /passes/0/mismatch] " + why);
  REQUIRE(
      text(mismatch_job(dir / "out", {{"overrides", {{{"match", "*.up_proj"}, {"mismatch", "split"}}}}})) ==
      "[job: /passes/0/overrides/0/mismatch] an override may turn the correction off, or its split; the "
      "pass itself must turn it on");
  REQUIRE(io::list_directory(dir.path()).empty());
  REQUIRE_NOTHROW(test::run(mismatch_job(
      dir / "out",
      {{"mismatch", "split"}, {"overrides", {{{"match", "*.down_proj"}, {"mismatch", "none"}}}}})));
}
