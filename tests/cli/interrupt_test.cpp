// Ctrl-C: an orderly end with exit code 130, and the same command continues.
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <catch2/catch.hpp>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "support/process.h"
#include "support/test_data.h"

using lcomp::test::Process;
using lcomp::test::run_lcomp;
namespace fs = std::filesystem;

namespace {

std::string content(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::vector<std::string> job(const fs::path& output) {
  return {"run",   (lcomp::test::source_dir() / "configs" / "demo_gptq_w4.json").string(),
          "--set", fmt::format("/output={}", output.string()),
          "--set", "/evaluate=null"};
}

/// Waits for the first line of progress, which means that the run is at work.
void wait_for_work(const fs::path& err) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (content(err).find("lcomp: ") == std::string::npos && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace

TEST_CASE("an interrupted run exits with 130 and the same command ends in the bytes of an undisturbed one",
          "[cli][interrupt]") {
  const int signal = GENERATE(SIGINT, SIGTERM);
  const lcomp::test::TempDir dir;
  const fs::path whole = dir / "whole";
  const fs::path broken = dir / "broken";
  REQUIRE(run_lcomp(job(whole)).exit_code == 0);

  std::vector<std::string> arguments = job(broken);
  arguments.insert(arguments.begin(), std::getenv("LCOMP_BINARY"));
  const fs::path err = dir / "err";
  int code = 0;
  {
    Process process(arguments, (dir / "out").string(), err.string());
    wait_for_work(err);
    process.send(signal);
    code = process.wait();
  }
  INFO(content(err));
  REQUIRE(code == 130);
  CHECK_FALSE(fs::exists(broken));
  CHECK_THAT(content(err), Catch::Contains("lcomp: error: "));

  REQUIRE(run_lcomp(job(broken)).exit_code == 0);
  CHECK(content(broken / "model.safetensors") == content(whole / "model.safetensors"));
}

TEST_CASE("a second Ctrl-C kills at once", "[cli][interrupt]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = job(dir / "killed");
  arguments.insert(arguments.begin(), std::getenv("LCOMP_BINARY"));
  Process process(arguments, (dir / "out").string(), (dir / "err").string());
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (content(dir / "err").empty() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  process.send(SIGINT);
  process.send(SIGINT);
  const int code = process.wait();
  CHECK((code == 128 + SIGINT || code == 130));
  CHECK_FALSE(fs::exists(dir / "killed"));
}

TEST_CASE("a second run on an output that is in work is refused with the process and the host of the first",
          "[cli][interrupt]") {
  const lcomp::test::TempDir dir;
  std::vector<std::string> arguments = job(dir / "out");
  arguments.insert(arguments.begin(), std::getenv("LCOMP_BINARY"));
  Process first(arguments, (dir / "stdout").string(), (dir / "err").string());
  wait_for_work(dir / "err");
  const auto second = run_lcomp(job(dir / "out"));
  CHECK(second.exit_code == 5);
  std::array<char, 256> host{};
  REQUIRE(::gethostname(host.data(), host.size()) == 0);
  CHECK_THAT(second.err, Catch::Contains(fmt::format(
                             "the working directory must be free; process {} on host {} is using it",
                             first.id(), host.data())));
  CHECK(first.wait() == 0);
}

TEST_CASE("a measurement of storages ends between two of them", "[cli][interrupt][bench]") {
  const lcomp::test::TempDir dir;
  Process process({std::getenv("LCOMP_BINARY"), "bench", "--shape", "512x512", "--density",
                   "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9", "--repeat", "50"},
                  (dir / "out").string(), (dir / "err").string());
  wait_for_work(dir / "err");
  process.send(SIGINT);
  CHECK(process.wait() == 130);
  CHECK(content(dir / "out").empty());
  CHECK_THAT(content(dir / "err"), Catch::EndsWith("error: [bench] the measurement was asked to stop\n"));
}
