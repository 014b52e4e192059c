// Crash safety: whatever ends a run, the same job continues it and ends in the same bytes.
#include <algorithm>
#include <fstream>

#include "lcomp/core/error.h"
#include "lcomp/io/journal.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/version.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

Json job_to_kill(const fs::path& output) {
  Json job = test::gptq_job(output);
  job["evaluate"] = {{"text", test::evaluation_text().string()}, {"window", 64}, {"max_windows", 2}};
  return job;
}

struct Uninterrupted {
  std::string hash;
  test::Watcher watcher;
};

Uninterrupted run_through(const fs::path& output) {
  Uninterrupted result;
  test::run(job_to_kill(output), result.watcher);
  result.hash = test::weights_hash(output);
  return result;
}

int resumed_blocks(const pipeline::RunReport& report) {
  int count = 0;
  for (const auto& block : report.blocks) count += block.resumed ? 1 : 0;
  return count;
}

/// Kills a run at one sign of life, checks that nothing is published, and continues.
void kill_and_continue(const fs::path& output, int sign, const std::string& expected_hash) {
  CAPTURE(sign);
  const auto child = test::run_in_child(job_to_kill(output), sign);
  REQUIRE(child.killed);
  REQUIRE_FALSE(fs::exists(output));
  REQUIRE(fs::exists(test::work_dir_of(output)));
  test::Watcher watcher;
  const auto report = test::run(job_to_kill(output), watcher);
  REQUIRE(test::weights_hash(output) == expected_hash);
  REQUIRE_FALSE(fs::exists(test::work_dir_of(output)));
  REQUIRE(report.operators.size() == 28);
  REQUIRE(report.verification->passed);
  Observer silent;
  REQUIRE(pipeline::verify(output, silent).passed);
}

/// Runs the job until its observer has been asked `asked` times, then stops it.
void interrupt(const Json& job, int signs) {
  test::Watcher watcher;
  watcher.stops = [signs](int sign) { return sign >= signs; };
  REQUIRE(test::error_text([&] { test::run(job, watcher); }) ==
          "[run] the run was asked to stop; the same command continues it");
}

/// Changes one byte in the middle of a file.
void damage(const fs::path& file) {
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  const auto middle = static_cast<std::streamoff>(fs::file_size(file) / 2);
  stream.seekg(middle);
  const auto byte = static_cast<char>(stream.get() ^ 0x10);
  stream.seekp(middle);
  stream.put(byte);
}

/// Signs of an uninterrupted run up to and with its progress call number `done` of `phase`.
int sign_of(const std::vector<std::pair<std::string, int>>& phases, const std::string& phase, size_t number) {
  for (const auto& [name, sign] : phases) {
    if (name == phase && number-- == 0) return sign;
  }
  FAIL("the run has no such step: " << phase);
  return -1;
}

/// Phase of each progress call with the sign that it was.
std::vector<std::pair<std::string, int>> signs_of_phases(const fs::path& output) {
  struct Counter final : test::Watcher {
    std::vector<std::pair<std::string, int>> phases;
    void progress(const Progress& step) override {
      phases.emplace_back(step.phase, signs);
      Watcher::progress(step);
    }
  } counter;
  test::run(job_to_kill(output), counter);
  return counter.phases;
}

}  // namespace

TEST_CASE("a run killed between two groups of a block is continued to the same bytes", "[pipeline][resume]") {
  const test::TempDir dir;
  const auto phases = signs_of_phases(dir / "whole");
  const std::string expected = test::weights_hash(dir / "whole");
  kill_and_continue(dir / "killed", sign_of(phases, "compress", 2) + 2, expected);
}

TEST_CASE("a run killed while its output is put together is continued to the same bytes",
          "[pipeline][resume]") {
  const test::TempDir dir;
  const auto phases = signs_of_phases(dir / "whole");
  kill_and_continue(dir / "killed", sign_of(phases, "assemble", 1), test::weights_hash(dir / "whole"));
}

TEST_CASE("a run killed in the verification or the evaluation is continued to the same bytes",
          "[pipeline][resume][slow]") {
  const test::TempDir dir;
  const auto phases = signs_of_phases(dir / "whole");
  const std::string expected = test::weights_hash(dir / "whole");
  kill_and_continue(dir / "verify", sign_of(phases, "verify", 0), expected);
  const auto of_verify = [](const auto& phase) { return phase.first == "verify"; };
  const auto last = static_cast<size_t>(std::count_if(phases.begin(), phases.end(), of_verify)) - 1;
  kill_and_continue(dir / "verified", sign_of(phases, "verify", last), expected);
  kill_and_continue(dir / "evaluate", sign_of(phases, "evaluate", 2), expected);
}

TEST_CASE("a job killed again and again, a little further each time, ends in the same bytes",
          "[pipeline][resume][slow]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  const Json job = job_to_kill(dir / "killed");
  // Each life lasts seven signs, enough for one block.
  int lives = 0;
  while (!fs::exists(dir / "killed")) {
    REQUIRE(++lives < 40);
    const auto child = test::run_in_child(job, lives < 12 ? 7 : 7 + lives);
    REQUIRE((child.killed || child.finished));
  }
  REQUIRE(lives > 3);
  REQUIRE(test::weights_hash(dir / "killed") == whole.hash);
}

TEST_CASE("a run asked to stop leaves a report that says so, and continues where it was",
          "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  const Json job = job_to_kill(dir / "out");
  interrupt(job, 14);
  REQUIRE_FALSE(fs::exists(dir / "out"));
  const Json report = test::read_json(test::work_dir_of(dir / "out") / "report.json");
  REQUIRE(report["status"] == "interrupted");
  REQUIRE(report["message"] == "[run] the run was asked to stop; the same command continues it");

  test::Watcher watcher;
  const auto continued = test::run(job, watcher);
  REQUIRE(watcher.notes == std::vector<std::string>{"continuing after 2 finished blocks of 4"});
  REQUIRE(resumed_blocks(continued) == 2);
  REQUIRE(continued.blocks[0].resumed);
  REQUIRE_FALSE(continued.blocks[3].resumed);
  REQUIRE(continued.status == pipeline::RunStatus::kDone);
  REQUIRE(test::weights_hash(dir / "out") == whole.hash);
  const Json published = test::read_json(dir / "out" / "report.json");
  REQUIRE(published["status"] == "done");
  REQUIRE(published["blocks"][1]["resumed"] == true);
}

TEST_CASE("a run may be continued with other threads, another cache and another evaluation",
          "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  Json job = job_to_kill(dir / "out");
  interrupt(job, 14);
  job["threads"] = 2;
  job["calibration"]["cache"] = "disk";
  job.erase("evaluate");
  const auto report = test::run(job);
  REQUIRE(resumed_blocks(report) == 2);
  REQUIRE(report.evaluation.empty());
  REQUIRE(test::weights_hash(dir / "out") == whole.hash);
}

TEST_CASE("a changed job starts from the beginning and says why", "[pipeline][resume]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "fresh", {{"bits", 3}});
  test::run(job);
  interrupt(test::gptq_job(dir / "out"), 14);
  job["output"] = (dir / "out").string();
  test::Watcher watcher;
  const auto report = test::run(job, watcher);
  REQUIRE(watcher.notes.size() == 1);
  REQUIRE_THAT(
      watcher.notes[0],
      Catch::StartsWith("earlier work is not continued: ") &&
          Catch::Contains(
              "it belongs to another job, or to this job with other settings or inputs (other: settings)"));
  REQUIRE(resumed_blocks(report) == 0);
  REQUIRE(test::weights_hash(dir / "out") == test::weights_hash(dir / "fresh"));
}

TEST_CASE("another calibration text under the same name is another job", "[pipeline][resume]") {
  const test::TempDir dir;
  const std::string text = io::read_file(test::calibration_text());
  test::write_text(dir / "calib.txt", text);
  Json job = test::gptq_job(dir / "out");
  job["calibration"]["text"] = (dir / "calib.txt").string();
  interrupt(job, 14);
  test::write_text(dir / "calib.txt", text.substr(1000));
  test::Watcher watcher;
  test::run(job, watcher);
  REQUIRE_THAT(watcher.notes.at(0), Catch::StartsWith("earlier work is not continued: ") &&
                                        Catch::Contains("(other: calibration text)"));
}

TEST_CASE("damaged saved activations are made again from the finished blocks instead of being believed",
          "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  for (const bool remove : {false, true}) {
    CAPTURE(remove);
    const fs::path output = dir / (remove ? "removed" : "changed");
    interrupt(job_to_kill(output), 14);
    const fs::path samples = test::work_dir_of(output) / "samples-0001.bin";
    REQUIRE(fs::exists(samples));
    if (remove) {
      fs::remove(samples);
    } else {
      damage(samples);
    }
    test::Watcher watcher;
    const auto report = test::run(job_to_kill(output), watcher);
    REQUIRE(watcher.notes ==
            std::vector<std::string>{
                "no activations are saved behind block 2: the samples pass the finished blocks again",
                "continuing after 2 finished blocks of 4"});
    REQUIRE(resumed_blocks(report) == 2);
    REQUIRE(test::weights_hash(output) == whole.hash);
  }
}

TEST_CASE("activations that cannot be made again start the run from the beginning", "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  interrupt(job_to_kill(dir / "out"), 14);
  const fs::path work = test::work_dir_of(dir / "out");
  fs::remove(work / "samples-0001.bin");
  // A journal that is in order, and speaks of other activations than the finished blocks give.
  {
    io::Journal journal(work, *io::Journal::job_of(work));
    auto record = journal.records().back();
    REQUIRE(record.step == "block 1");
    Json note = Json::parse(record.note);
    note["samples_hash"] = std::string(32, '0');
    record.note = note.dump();
    journal.commit(record);
  }
  test::Watcher watcher;
  const auto report = test::run(job_to_kill(dir / "out"), watcher);
  REQUIRE(watcher.notes.at(1) == "they do not come out as before: starting from the first block");
  REQUIRE(resumed_blocks(report) == 0);
  REQUIRE(test::weights_hash(dir / "out") == whole.hash);
}

namespace {

/// Stops the job when all blocks but the last are done.
void interrupt_in_last_block(const Json& job) {
  struct Counter final : test::Watcher {
    int last_block = 0;
    void progress(const Progress& step) override {
      if (step.phase == "compress" && step.done + 1 == step.total) last_block = signs;
      Watcher::progress(step);
    }
  } counter;
  test::run(job, counter);
  fs::remove_all(job.at("output").get<std::string>());
  interrupt(job, counter.last_block - 1);
}

void add_to_weight(const fs::path& model, const std::string& name, double much) {
  io::NamedTensors tensors;
  {
    const io::SafetensorsFile file(model / "model.safetensors");
    for (const auto& info : file.tensors()) tensors.emplace_back(info.name, file.read(info.name).clone());
  }
  for (auto& [tensor_name, tensor] : tensors) {
    if (tensor_name == name) tensor[0][0] += much;
  }
  io::write_safetensors(model / "model.safetensors", tensors);
}

/// What stands in dir/out is what the job makes of the model as it is now.
void require_as_fresh(Json job, const test::TempDir& dir) {
  job["output"] = (dir / "fresh").string();
  test::run(job);
  REQUIRE(test::weights_hash(dir / "out") == test::weights_hash(dir / "fresh"));
}

}  // namespace

TEST_CASE("a changed weight of a block has that block and those behind it done again, and the run says so",
          "[pipeline][resume]") {
  const test::TempDir dir;
  const Json pass = GENERATE(test::pass("rtn"), test::pass("gptq"),
                             test::pass("gptq", {{"mismatch", "fixed"}}), Json{{"method", "llm_int8"}},
                             Json{{"method", "wanda"}}, Json{{"method", "svd"}, {"removed", 0.2}},
                             Json{{"method", "lqer"}, {"bits", 3}, {"group_size", 64}, {"rank", 8}});
  CAPTURE(pass.dump());
  const fs::path model = test::copy_of_model(dir);
  Json job = test::job_with(dir / "out", Json::array({pass}));
  job["model"] = model.string();
  interrupt_in_last_block(job);
  add_to_weight(model, "model.layers.2.mlp.up_proj.weight", 1);
  test::Watcher watcher;
  const auto report = test::run(job, watcher);
  REQUIRE(watcher.notes.front() ==
          "block 3 and what is behind it is done again: it was committed for other inputs");
  REQUIRE(watcher.notes.back() == "continuing after 2 finished blocks of 4");
  REQUIRE(resumed_blocks(report) == 2);
  require_as_fresh(job, dir);
}

TEST_CASE(
    "a changed weight has the model surveyed again, and the blocks before it stand if the decision does",
    "[pipeline][resume]") {
  struct Case {
    Json pass;
    bool reads_samples;   // in the survey
    bool survives_small;  // whether a small change leaves the decision
  };
  const auto& [pass, reads_samples, survives_small] =
      GENERATE(Case{{{"method", "mixed_precision"},
                     {"sensitivity", "outputs"},
                     {"group_size", 64},
                     {"bits_per_weight", 4.5}},
                    true,
                    true},
               Case{{{"method", "svd_llm"}, {"removed", 0.2}, {"rank_multiple", 8}, {"allocation", "energy"}},
                    true,
                    true},
               // Which units go is no setting, and the bases are sums.
               Case{{{"method", "llm_pruner"},
                     {"importance", "l2"},
                     {"selection", "global"},
                     {"ratio", 0.2},
                     {"compensate", "none"}},
                    false,
                    true},
               Case{{{"method", "tucker_layers"}, {"removed", 0.3}}, true, false});
  const double much = GENERATE(0.002, 100.0);
  CAPTURE(pass.dump(), much);
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  Json job = test::job_with(dir / "out", Json::array({pass}));
  job["model"] = model.string();
  interrupt_in_last_block(job);
  add_to_weight(model, "model.layers.2.mlp.up_proj.weight", much);
  test::Watcher watcher;
  const auto report = test::run(job, watcher);
  REQUIRE(watcher.notes.at(0) ==
          "block 3 and what is behind it is surveyed again: it was committed for other inputs");
  REQUIRE((watcher.notes.at(1) ==
           "nothing is saved behind the blocks before it: surveying from the first block") == reads_samples);
  REQUIRE(resumed_blocks(report) == (much < 1 && survives_small ? 2 : 0));
  require_as_fresh(job, dir);
}

TEST_CASE(
    "a model that changes while a run reads it is not published, and the next run does again what it must",
    "[pipeline][resume]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  Json job = test::job_with(dir / "out", Json::array({test::pass("rtn")}));
  job["model"] = model.string();
  test::Watcher watcher;
  bool changed = false;
  watcher.at_sign = [&](int) {
    if (changed || watcher.steps.empty() || watcher.steps.back().phase != "assemble") return;
    changed = true;
    add_to_weight(model, "model.layers.1.mlp.up_proj.weight", 1);
  };
  REQUIRE_THROWS_WITH(
      test::run(job, watcher),
      Catch::Contains(
          "the model must stay as it is while a run reads it; the file has changed since the run began"));
  REQUIRE_FALSE(fs::exists(dir / "out"));
  const auto report = test::run(job);
  REQUIRE(resumed_blocks(report) == 1);
  require_as_fresh(job, dir);
}

TEST_CASE("work of another version of lcomp is not continued, and the run says so", "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  interrupt(job_to_kill(dir / "out"), 14);
  const fs::path work = test::work_dir_of(dir / "out");
  std::string key = *io::Journal::job_of(work);
  const std::string ours = std::string("version of lcomp: ") + kVersion;
  const size_t at = key.find(ours);
  REQUIRE(at != std::string::npos);
  key.replace(at, ours.size(), "version of lcomp: 0.0.1");
  {
    const io::Journal mine(work, *io::Journal::job_of(work));
    io::Journal theirs(work, key);
    for (const auto& record : mine.records()) theirs.commit(record);
  }
  test::Watcher watcher;
  const auto report = test::run(job_to_kill(dir / "out"), watcher);
  REQUIRE_THAT(watcher.notes.at(0), Catch::StartsWith("earlier work is not continued: ") &&
                                        Catch::Contains("(other: version of lcomp)"));
  REQUIRE(resumed_blocks(report) == 0);
  REQUIRE(test::weights_hash(dir / "out") == whole.hash);
}

TEST_CASE("a damaged part of a finished block is computed again", "[pipeline][resume]") {
  const test::TempDir dir;
  const auto whole = run_through(dir / "whole");
  interrupt(job_to_kill(dir / "out"), 14);
  damage(test::work_dir_of(dir / "out") / "blocks" / "0001.safetensors");
  test::run(job_to_kill(dir / "out"));
  REQUIRE(test::weights_hash(dir / "out") == whole.hash);
}

TEST_CASE("a run killed between publishing and tidying up finds its work done", "[pipeline][resume]") {
  const test::TempDir dir;
  const Json job = test::rtn_job(dir / "out");
  const fs::path work = test::work_dir_of(dir / "out");
  test::Watcher watcher;
  watcher.at_sign = [&](int) {
    if (watcher.steps.empty() || watcher.steps.back().phase != "verify") return;
    if (watcher.steps.back().done < watcher.steps.back().total) return;
    if (fs::exists(dir / "kept")) return;
    fs::copy(work, dir / "kept", fs::copy_options::recursive);
    fs::remove_all(dir / "kept" / "output");  // has become the output
  };
  test::run(job, watcher);
  const std::string hash = test::weights_hash(dir / "out");
  fs::rename(dir / "kept", work);

  const auto again = test::run(job);
  REQUIRE(again.status == pipeline::RunStatus::kDone);
  REQUIRE(again.operators.size() == 28);
  REQUIRE_FALSE(fs::exists(work));
  REQUIRE(test::weights_hash(dir / "out") == hash);
}

TEST_CASE("a run whose later blocks no pass works on is continued to the same bytes", "[pipeline][resume]") {
  const test::TempDir dir;
  const auto job = [&](const char* name) {
    return test::gptq_job(dir / name, {{"targets", {"layers.0.*", "layers.1.mlp.up_proj"}}});
  };
  struct Counter final : test::Watcher {
    int last_block = 0;
    void progress(const Progress& step) override {
      if (step.phase == "compress" && step.done < step.total) last_block = signs;
      Watcher::progress(step);
    }
  } counter;
  REQUIRE(test::run(job("whole"), counter).operators.size() == 8);
  interrupt(job("stopped"), counter.last_block - 1);
  test::Watcher watcher;
  const auto report = test::run(job("stopped"), watcher);
  REQUIRE(resumed_blocks(report) > 1);
  REQUIRE(test::weights_hash(dir / "stopped") == test::weights_hash(dir / "whole"));
}
