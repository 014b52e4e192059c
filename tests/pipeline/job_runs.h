#pragma once

#include <catch2/catch.hpp>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/pipeline.h"
#include "lcomp/pipeline/verify.h"
#include "support/test_data.h"

/// Jobs on the bundled model that take a fraction of a second, and ways to run them.
namespace lcomp::test {

using Json = nlohmann::json;

inline std::filesystem::path bundled_model() {
  return source_dir() / "examples/model";
}
inline std::filesystem::path calibration_text() {
  return source_dir() / "examples/text/kjv-calib.txt";
}
inline std::filesystem::path evaluation_text() {
  return source_dir() / "examples/text/kjv-eval.txt";
}

/// An entry of "passes": 4 bits in groups of 64, GPTQ as published but for its ranges, with the fields of
/// `more` besides or instead.
inline Json pass(const std::string& method, const Json& more = Json::object()) {
  Json entry = {{"method", method}, {"bits", 4}, {"group_size", 64}};
  if (method == "gptq") entry.update({{"mismatch", "none"}, {"sweeps", 0}, {"refit", false}});
  entry.update(more);
  return entry;
}

/// One thread, float32; GPTQ passes see 4 x 64 tokens.
inline Json job_with(const std::filesystem::path& output, const Json& passes) {
  Json job = {{"model", bundled_model().string()},
              {"output", output.string()},
              {"compute", "f32"},
              {"threads", 1},
              {"calibration", {{"text", calibration_text().string()}, {"samples", 4}, {"length", 64}}},
              {"passes", passes}};
  return job;
}

inline Json gptq_job(const std::filesystem::path& output, const Json& more = Json::object()) {
  return job_with(output, Json::array({pass("gptq", more)}));
}
inline Json rtn_job(const std::filesystem::path& output, const Json& more = Json::object()) {
  return job_with(output, Json::array({pass("rtn", more)}));
}

/// Remembers what a run says and does what the test asks at its signs of life (progress, and the question
/// whether to stop).
class Watcher : public Observer {
 public:
  std::function<void(int sign)> at_sign = [](int) {};
  std::function<bool(int sign)> stops = [](int) { return false; };
  std::vector<Progress> steps;
  std::vector<std::string> notes;
  std::vector<std::string> warnings;
  int signs = 0;

  void progress(const Progress& step) override {
    steps.push_back(step);
    at_sign(signs++);
  }
  bool cancelled() override {
    at_sign(signs);
    return stops(signs++);
  }
  void note(const std::string& text) override { notes.push_back(text); }
  void warning(const std::string& text) override { warnings.push_back(text); }
};

inline pipeline::Job parse(const Json& job) {
  return pipeline::parse_job(job.dump(), "job", pipeline::builtin_methods());
}

inline pipeline::RunReport run(const Json& job, Observer& observer) {
  return pipeline::run(parse(job), pipeline::builtin_methods(), observer);
}
inline pipeline::RunReport run(const Json& job) {
  Observer silent;
  return run(job, silent);
}

inline std::string weights_hash(const std::filesystem::path& output) {
  return io::hash_of_file(output / "model.safetensors");
}

inline std::filesystem::path work_dir_of(const std::filesystem::path& output) {
  return output.string() + ".lcomp-work";
}

inline Json read_json(const std::filesystem::path& file) {
  return Json::parse(io::read_file(file));
}

inline void write_text(const std::filesystem::path& file, const std::string& text) {
  io::write_file_atomic(file, text);
}

/// A copy of the bundled model that a test may damage.
inline std::filesystem::path copy_of_model(const TempDir& dir, const std::string& name = "model") {
  std::filesystem::copy(bundled_model(), dir / name, std::filesystem::copy_options::recursive);
  return dir / name;
}

}  // namespace lcomp::test
