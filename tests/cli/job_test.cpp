// run, plan, verify and eval over the bundled model, through the program itself.
#include <fmt/format.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "support/process.h"
#include "support/test_data.h"

using lcomp::test::ProcessResult;
using lcomp::test::run_lcomp;
using lcomp::test::run_lcomp_within;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::string config(const std::string& name) {
  return (lcomp::test::source_dir() / "configs" / (name + ".json")).string();
}

std::string example(const std::string& relative) {
  return (lcomp::test::source_dir() / "examples" / relative).string();
}

/// A small version of a demo job: little calibration, two windows of evaluation.
std::vector<std::string> small_job(const std::string& command, const std::string& name,
                                   const fs::path& output) {
  return {command, config(name),
          "--set", fmt::format("/output={}", output.string()),
          "--set", "/evaluate/max_windows=2",
          "--set", "/calibration/samples=8"};
}

/// The files of a directory by relative name, for comparing two of them.
std::map<std::string, std::string> contents(const fs::path& directory) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(directory)) {
    if (!entry.is_regular_file()) continue;
    std::ostringstream text;
    text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
    files[fs::relative(entry.path(), directory).string()] = text.str();
  }
  return files;
}

/// `lcomp eval` and `lcomp run` refuse the text as a bad input with this error, wherever it is given.
void check_bad_text(const fs::path& text, const std::string& error, const fs::path& output) {
  const std::string message = "lcomp: error: " + error + "\n";
  const ProcessResult eval =
      run_lcomp({"eval", example("model"), "--text", text.string(), "--window", "256", "--quiet"});
  CHECK(eval.exit_code == 3);
  CHECK(eval.err == message);
  for (const char* pointer : {"/calibration/text", "/evaluate/text"}) {
    INFO(pointer);
    std::vector<std::string> arguments = small_job("run", "demo_gptq_w4", output);
    arguments.insert(arguments.end(), {"--set", fmt::format("{}={}", pointer, text.string())});
    const ProcessResult run = run_lcomp(arguments);
    CHECK(run.exit_code == 3);
    CHECK_THAT(run.err, Catch::EndsWith(message));
  }
}

}  // namespace

TEST_CASE("a job runs, verifies and evaluates from the command line", "[cli][run]") {
  const lcomp::test::TempDir dir;
  const fs::path output = dir / "out";
  const ProcessResult run = run_lcomp(small_job("run", "demo_gptq_w4", output));
  INFO(run.err);
  REQUIRE(run.exit_code == 0);
  CHECK_THAT(run.out, Catch::Contains("perplexity") && Catch::Contains("report.html"));
  CHECK_THAT(run.err, Catch::Contains("lcomp: "));
  for (const char* file :
       {"config.json", "model.safetensors", "lcomp.json", "report.json", "report.md", "report.html"}) {
    INFO(file);
    CHECK(fs::exists(output / file));
  }

  const ProcessResult verify = run_lcomp({"verify", output.string(), "--json"});
  CHECK(verify.exit_code == 0);
  CHECK(json::parse(verify.out).at("passed") == true);

  const ProcessResult eval =
      run_lcomp({"eval", output.string(), "--text", example("text/kjv-eval.txt"), "--window", "256",
                 "--max-windows", "2", "--reference", example("model"), "--json", "--quiet"});
  INFO(eval.err);
  REQUIRE(eval.exit_code == 0);
  CHECK(eval.err.empty());
  const json scores = json::parse(eval.out);
  for (const char* key : {"perplexity", "tokens", "windows", "window", "text_hash", "tokenizer_hash", "bytes",
                          "bits_per_weight", "seconds", "kl_mean", "top1_agreement"}) {
    INFO(key);
    CHECK(scores.contains(key));
  }
  CHECK(scores.at("windows") == 2);
  CHECK(scores.at("tokens") == 2 * 255);
  CHECK(scores.at("kl_mean") > 0.0);
}

TEST_CASE("verify tells of a changed file and exits with the code of a bad input", "[cli][verify]") {
  const lcomp::test::TempDir dir;
  const fs::path output = dir / "out";
  REQUIRE(run_lcomp(small_job("run", "demo_rtn_w4", output)).exit_code == 0);
  {
    std::fstream file(output / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put('\x55');
  }
  const ProcessResult verify = run_lcomp({"verify", output.string()});
  CHECK(verify.exit_code == 3);
  CHECK_THAT(verify.out, Catch::Contains("NOT as written") && Catch::Contains("model.safetensors"));
}

TEST_CASE("run --json prints the report and nothing else on standard output", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.push_back("--json");
  const ProcessResult run = run_lcomp(arguments);
  REQUIRE(run.exit_code == 0);
  const json report = json::parse(run.out);
  CHECK(report.at("status") == "done");
  CHECK(report.at("operators").size() == 28);
}

TEST_CASE("--quiet leaves standard error empty", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.push_back("--quiet");
  CHECK(run_lcomp(arguments).err.empty());
}

TEST_CASE("plan lists every operator with its settings and makes nothing", "[cli][plan]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("plan", "demo_gptq_w3", dir / "out");
  const ProcessResult text = run_lcomp(arguments);
  CHECK(text.exit_code == 0);
  CHECK_THAT(text.out, Catch::Contains("model.layers.3.mlp.down_proj") &&
                           Catch::Contains("int3 symmetric, groups of 64"));

  arguments.push_back("--json");
  const json plan = json::parse(run_lcomp(arguments).out);
  REQUIRE(plan.at("operators").size() == 28);
  CHECK(plan.at("operators")[0].at("settings")[0].at("bits") == 3);
  CHECK(plan.at("bytes_after") < plan.at("bytes_before"));
  CHECK(plan.at("memory").at("peak") > 0);
  CHECK(plan.at("seconds") > 0);
  CHECK_THAT(text.out, Catch::Contains("time          about ") && Catch::Contains("memory        ") &&
                           Catch::Contains("disk          "));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("every error of a job is a line of its own, and the exit code says bad job", "[cli][run]") {
  const ProcessResult result = run_lcomp({"run", config("demo_rtn_w4"), "--set", "/passes/0/bits=9", "--set",
                                          "/sede=1", "--set", "/write/format=gguf"});
  CHECK(result.exit_code == 2);
  CHECK(result.out.empty());
  const std::string where = config("demo_rtn_w4");
  CHECK(result.err ==
        fmt::format(
            "lcomp: error: [{0}: /write/format] must be one of compressed-tensors, dense; got \"gguf\"\n"
            "lcomp: error: [{0}: /sede] every key must be known; \"sede\" is not (did you mean \"seed\"?)\n"
            "lcomp: error: [{0}: /passes/0/bits] must be an integer from 2 to 8; got 9\n",
            where));
}

TEST_CASE("patterns and shapes that do not fit are told before anything is written", "[cli][plan]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--set", "/passes/0/targets=[\"layers.*.mlp.dwon_proj\"]"});
  const ProcessResult pattern = run_lcomp(arguments);
  CHECK(pattern.exit_code == 2);
  CHECK_THAT(pattern.err, Catch::Contains("/passes/0/targets/0] must match an operator") &&
                              Catch::Contains("down_proj\""));

  arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--set", "/passes/0/group_size=100"});
  const ProcessResult shape = run_lcomp(arguments);
  CHECK(shape.exit_code == 2);
  CHECK_THAT(shape.err, Catch::Contains("group_size must divide"));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("an output that exists is refused and left alone", "[cli][run]") {
  const lcomp::test::TempDir dir;
  fs::create_directory(dir / "out");
  std::ofstream(dir / "out" / "precious.txt") << "mine";
  const ProcessResult result = run_lcomp(small_job("run", "demo_rtn_w4", dir / "out"));
  CHECK(result.exit_code == 2);
  CHECK_THAT(result.err, Catch::Contains((dir / "out").string()));
  CHECK(contents(dir.path()).size() == 1);
}

TEST_CASE("a bad model is told with the exit code of a bad input", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--set", fmt::format("/model={}", dir.path().string())});
  const ProcessResult result = run_lcomp(arguments);
  CHECK(result.exit_code == 3);
  CHECK_THAT(result.err, Catch::Contains("config.json"));
}

TEST_CASE("a memory bound that cannot be kept is told with its own exit code", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--set", "/max_memory=1MB"});
  const ProcessResult result = run_lcomp(arguments);
  CHECK(result.exit_code == 5);
  CHECK_THAT(result.err, Catch::Contains("max_memory"));
}

TEST_CASE("a text that is absent or no file is a bad input with its path", "[cli][run][eval]") {
  const lcomp::test::TempDir dir;
  fs::create_directory(dir / "folder");
  for (const auto& [text, reason] :
       {std::pair{dir / "absent.txt", "the file must be opened; No such file or directory"},
        std::pair{dir / "folder", "the file must be a regular file; it is a directory or a device"}}) {
    check_bad_text(text, fmt::format("[{}] {}", text.string(), reason), dir / "out");
  }
}

TEST_CASE("a text that is not UTF-8 is a bad input with its path and the byte", "[cli][run][eval]") {
  const lcomp::test::TempDir dir;
  const fs::path text = dir / "latin1.txt";
  std::ofstream(text) << "\r\nna\xEFve";
  check_bad_text(text, fmt::format("[{}] the text must be valid UTF-8; byte 4 (0xEF) is not", text.string()),
                 dir / "out");
}

TEST_CASE("a path that the system refuses is a bad input, not a bug", "[cli][inspect]") {
  const lcomp::test::TempDir dir;
  fs::create_symlink(dir / "loop", dir / "loop");
  const ProcessResult loop = run_lcomp({"inspect", (dir / "loop").string()});
  CHECK(loop.exit_code == 3);
  CHECK(loop.err ==
        fmt::format("lcomp: error: [{}] the path must be usable; Too many levels of symbolic links\n",
                    (dir / "loop").string()));
  if (geteuid() == 0) {
    WARN("skipped: root may read every directory");
    return;
  }
  fs::create_directory(dir / "closed");
  fs::permissions(dir / "closed", fs::perms::none);
  const ProcessResult closed = run_lcomp({"inspect", (dir / "closed").string()});
  fs::permissions(dir / "closed", fs::perms::owner_all);
  CHECK(closed.exit_code == 3);
  CHECK_THAT(closed.err, Catch::Contains((dir / "closed").string()) && Catch::Contains("Permission denied"));
}

TEST_CASE("--threads 0 overrides the threads of a job", "[cli][plan]") {
  const lcomp::test::TempDir dir;
  const auto threads = [&](const std::vector<std::string>& more) {
    std::vector<std::string> arguments = small_job("plan", "demo_rtn_w4", dir / "out");
    arguments.insert(arguments.end(), more.begin(), more.end());
    arguments.push_back("--json");
    return json::parse(run_lcomp(arguments).out).at("threads").get<int>();
  };
  CHECK(threads({"--set", "/threads=4095"}) == 4095);
  CHECK(threads({"--set", "/threads=4095", "--threads", "0"}) == threads({"--set", "/threads=0"}));
  CHECK(threads({"--set", "/threads=4095", "--threads", "3"}) == 3);
}

TEST_CASE("threads that cannot start end a run with the code of the system's limits", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--threads", "4096"});
  const ProcessResult run = run_lcomp_within("ulimit -s 8192 && ulimit -v 8000000", arguments);
  INFO(run.err);
  CHECK(run.exit_code == 5);
  CHECK_THAT(run.err, Catch::Contains("[ThreadPool] all of 4096 threads must start; the system started "));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("threads whose buffers find no room end a run with the code of the system's limits", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  arguments.insert(arguments.end(), {"--threads", "128"});
  // Of address space, and of data.
  const std::string limit = GENERATE("ulimit -v 12000000", "ulimit -d 12000000");
  const ProcessResult run = run_lcomp_within(limit, arguments);
  INFO(run.err);
  CHECK(run.exit_code == 5);
  CHECK_THAT(run.err, Catch::Contains("[ThreadPool] the address space must have room for the ") &&
                          Catch::Contains(" MB that OpenBLAS works in with 128 threads; it has not"));
  CHECK(fs::is_empty(dir.path()));
}

TEST_CASE("a run that is short of address space ends with the code of the system's limits", "[cli][run]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = small_job("run", "demo_sparsegpt", dir / "out");
  arguments.insert(arguments.end(), {"--threads", "1"});
  // From where the libraries can just be loaded; OpenBLAS alone would wait for its buffer for ever.
  for (const int kilobytes : {760'000, 800'000, 850'000, 900'000, 950'000}) {
    const ProcessResult run =
        run_lcomp_within(fmt::format("ulimit -v {} && ulimit -t 60", kilobytes), arguments);
    INFO(kilobytes << " kB: " << run.err);
    CHECK((run.exit_code == 0 || run.exit_code == 5));
    if (run.exit_code == 5) CHECK_THAT(run.err, !Catch::Contains("bug in lcomp"));
    fs::remove_all(dir / "out");
  }
}

TEST_CASE("a tensor that no memory holds is no bug", "[cli][bench]") {
  const ProcessResult bench = run_lcomp({"bench", "--shape", "1000000x1000000"});
  CHECK(bench.exit_code == 5);
  CHECK_THAT(bench.err, Catch::Contains("out of memory") && !Catch::Contains("bug in lcomp"));
}

TEST_CASE("a full disk ends a run without an output, and the same command then completes", "[cli][run]") {
  const lcomp::test::TempDir dir;
  const std::vector<std::string> arguments = small_job("run", "demo_rtn_w4", dir / "out");
  // A bound for each file stands for the full disk: all but the last of the weights fit.
  const ProcessResult full = run_lcomp_within("trap '' XFSZ && ulimit -f 1700", arguments);
  INFO(full.err);
  CHECK(full.exit_code == 5);
  CHECK_THAT(full.err, Catch::Contains("model.safetensors] the file must be written; File too large"));
  CHECK_FALSE(fs::exists(dir / "out"));

  REQUIRE(run_lcomp(arguments).exit_code == 0);
  CHECK(run_lcomp({"verify", (dir / "out").string()}).exit_code == 0);
  REQUIRE(run_lcomp(small_job("run", "demo_rtn_w4", dir / "undisturbed")).exit_code == 0);
  CHECK(contents(dir / "out").at("model.safetensors") ==
        contents(dir / "undisturbed").at("model.safetensors"));
}

TEST_CASE("inspect describes a model for people and for programs", "[cli][inspect]") {
  const ProcessResult text = run_lcomp({"inspect", example("model")});
  CHECK(text.exit_code == 0);
  CHECK_THAT(text.out, Catch::Contains("llama, 4 blocks") && Catch::Contains("1967808, 16.00 bits each"));
  const json found = json::parse(run_lcomp({"inspect", example("model"), "--deep", "--json"}).out);
  CHECK(found.at("model").at("family") == "llama");
  CHECK(found.at("values_read") == 1967808);
  CHECK(run_lcomp({"inspect", example("nothing")}).exit_code == 3);
}
