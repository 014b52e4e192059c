// Passes that read gradients: the sweep before the block loop, its files, and what is made of them.
#include <ATen/ATen.h>

#include <fstream>

#include "lcomp/calib/gradients.h"
#include "lcomp/calib/token_samples.h"
#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/quant/squeezellm.h"
#include "pipeline/child_runs.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

Json squeezellm_job(const fs::path& output, const Json& more = Json::object()) {
  Json entry = {{"method", "squeezellm"}, {"bits", 3}};
  entry.update(more);
  return test::job_with(output, Json::array({entry}));
}

std::vector<fs::path> gradient_files(const fs::path& output) {
  std::vector<fs::path> out;
  for (const fs::path& file : io::list_directory(test::work_dir_of(output))) {
    if (file.filename().string().starts_with("gradient")) out.push_back(file);
  }
  return out;
}

/// The gradients by hand, for the samples of these jobs.
calib::ModelGradients gradients_by_hand(const model::Model& dense) {
  const auto samples = calib::read_samples(test::calibration_text(),
                                           io::Tokenizer::from_file(test::bundled_model() / "tokenizer.json"),
                                           {.samples = 4, .length = 64});
  ThreadPool pool(1);
  return calib::model_gradients(dense, samples.sequences, {.squares = true},
                                {calib::ActivationCache::Storage::kMemory}, pool);
}

/// The sign of the progress call that says `detail`, in an uninterrupted run.
int sign_of(const fs::path& output, const std::string& detail) {
  struct Finder final : test::Watcher {
    std::string wanted;
    int found = -1;
    void progress(const Progress& step) override {
      if (step.phase == "gradients" && step.detail == wanted) found = signs;
      Watcher::progress(step);
    }
  } finder;
  finder.wanted = detail;
  test::run(squeezellm_job(output), finder);
  REQUIRE(finder.found >= 0);
  return finder.found;
}

}  // namespace

TEST_CASE("squeezellm in a job gives every operator the bits of the direct call",
          "[pipeline][promise][gradients]") {
  const test::TempDir dir;
  const auto dense = model::Model::open(test::bundled_model());
  const auto gradients = gradients_by_hand(dense);
  quant::SqueezeLlmOptions options{.bits = 3, .sensitive = 0.0005, .outliers = 0.004};
  test::run(squeezellm_job(dir / "out", {{"sensitive", 0.0005}, {"outliers", 0.004}}));
  const auto written = model::Model::open(dir / "out");
  for (int64_t b = 0; b < dense.size(); ++b) {
    const auto operators = dense.architecture().operators(b);
    for (size_t op = 0; op < operators.size(); ++op) {
      const auto direct = quant::squeezellm(dense.checkpoint().read(operators[op].name + ".weight"),
                                            gradients.blocks[static_cast<size_t>(b)].squares[op], options);
      const WeightPtr loaded = written.load_weight(operators[op]);
      const auto& stored = dynamic_cast<const quant::CodebookWeight&>(*loaded);
      CAPTURE(operators[op].name);
      REQUIRE(stored.codes().equal(direct.weight.codes()));
      REQUIRE(stored.codebook().equal(direct.weight.codebook()));
      REQUIRE(stored.sparse().columns.equal(direct.weight.sparse().columns));
      REQUIRE(stored.sparse().values.equal(direct.weight.sparse().values));
    }
  }
}

TEST_CASE("a job with gradients gives the same bytes at any number of threads and with any cache",
          "[pipeline][determinism][gradients]") {
  const test::TempDir dir;
  Json job = squeezellm_job(dir / "first");
  job["calibration"]["starts"] = 12;  // windows of mixed lengths
  test::run(job);
  const std::string expected = test::weights_hash(dir / "first");
  int run = 0;
  for (const int threads : {2, 3}) {
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

TEST_CASE("a run killed anywhere in the sweep is continued to the same bytes",
          "[pipeline][resume][gradients]") {
  const test::TempDir dir;
  for (const std::string detail :
       {"forward, block 2 of 4", "backward, block 4 of 4", "backward, block 2 of 4"}) {
    CAPTURE(detail);
    const fs::path whole = dir / ("whole " + detail), killed = dir / ("killed " + detail);
    const int sign = sign_of(whole, detail);
    REQUIRE(test::run_in_child(squeezellm_job(killed), sign).killed);
    test::Watcher watcher;
    const auto report = test::run(squeezellm_job(killed), watcher);
    REQUIRE(test::weights_hash(killed) == test::weights_hash(whole));
    REQUIRE(report.verification->passed);
    const bool goes_on = std::find(watcher.notes.begin(), watcher.notes.end(),
                                   "continuing the gradients below block 3 of 4") != watcher.notes.end();
    REQUIRE(goes_on == (detail == "backward, block 2 of 4"));
  }
}

TEST_CASE("gradients that are done are not made again, and go with the block they belong to",
          "[pipeline][resume][gradients]") {
  const test::TempDir dir;
  const fs::path output = dir / "out";
  test::Watcher stopped;
  // Stops before the third block: two are finished.
  int compressed = 0;
  stopped.stops = [&](int) {
    compressed = 0;
    for (const Progress& step : stopped.steps) compressed += step.phase == "compress" ? 1 : 0;
    return compressed >= 2;
  };
  REQUIRE_THROWS_AS(test::run(squeezellm_job(output), stopped), Interrupted);
  REQUIRE(gradient_files(output).size() == 3);  // block 2 was begun, so blocks 1, 2 and 3 are left
  test::Watcher watcher;
  test::run(squeezellm_job(output), watcher);
  for (const Progress& step : watcher.steps) REQUIRE(step.phase != "gradients");
  test::run(squeezellm_job(dir / "whole"));
  REQUIRE(test::weights_hash(output) == test::weights_hash(dir / "whole"));
}

TEST_CASE("damaged results or state of the sweep are made again", "[pipeline][resume][gradients]") {
  const test::TempDir dir;
  test::run(squeezellm_job(dir / "whole"));
  for (const std::string name :
       {"gradients-0003.safetensors", "gradients-0002.safetensors", "gradient-state-0002.bin"}) {
    CAPTURE(name);
    const fs::path output = dir / name;
    test::Watcher stopped;
    stopped.stops = [&](int) {
      return !stopped.steps.empty() && stopped.steps.back().detail == "backward, block 3 of 4";
    };
    REQUIRE_THROWS_AS(test::run(squeezellm_job(output), stopped), Interrupted);
    const fs::path file = test::work_dir_of(output) / name;
    REQUIRE(fs::exists(file));
    std::fstream(file, std::ios::in | std::ios::out | std::ios::binary).seekp(300).put('x');
    test::Watcher watcher;
    test::run(squeezellm_job(output), watcher);
    REQUIRE(test::weights_hash(output) == test::weights_hash(dir / "whole"));
    if (name == "gradient-state-0002.bin") {
      REQUIRE(watcher.notes.front() ==
              "the saved state of the gradients is gone or damaged: making them again");
    }
  }
}

TEST_CASE("without a use for gradients there is no sweep", "[pipeline][gradients]") {
  const test::TempDir dir;
  test::Watcher watcher;
  const auto report = test::run(squeezellm_job(dir / "plain", {{"weighting", "none"}}), watcher);
  for (const Progress& step : watcher.steps) REQUIRE(step.phase != "gradients");
  REQUIRE(report.verification->passed);
  const auto methods = pipeline::builtin_methods();
  const auto with = pipeline::plan(test::parse(squeezellm_job(dir / "a")), methods);
  const auto without =
      pipeline::plan(test::parse(squeezellm_job(dir / "b", {{"weighting", "none"}})), methods);
  REQUIRE((with.needs_gradients && with.needs_calibration && !with.needs_samples));
  REQUIRE((!without.needs_gradients && !without.needs_calibration));
  REQUIRE((with.work.gradients > 0 && with.memory.gradients > 0 && with.disk_bytes > without.disk_bytes));
}

TEST_CASE("blocks below the lowest that needs gradients are not swept back to", "[pipeline][gradients]") {
  const test::TempDir dir;
  test::Watcher watcher;
  test::run(squeezellm_job(dir / "out", {{"targets", {"model.layers.2.*"}}}), watcher);
  std::vector<std::string> backward;
  for (const Progress& step : watcher.steps) {
    if (step.detail.starts_with("backward")) backward.push_back(step.detail);
  }
  REQUIRE(backward == std::vector<std::string>{"backward, block 4 of 4", "backward, block 3 of 4"});
}
