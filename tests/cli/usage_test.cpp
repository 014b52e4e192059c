// What every command has in common: help, errors, exit codes, and what goes to which stream.
#include <fmt/format.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/process.h"
#include "support/test_data.h"

using lcomp::test::ProcessResult;
using lcomp::test::run_lcomp;
using nlohmann::json;

TEST_CASE("help goes to standard output and names every command and exit code", "[cli]") {
  const ProcessResult result = run_lcomp({"--help"});
  CHECK(result.exit_code == 0);
  CHECK(result.err.empty());
  for (const char* command :
       {"run", "plan", "inspect", "eval", "verify", "export", "bench", "list", "schema"}) {
    INFO(command);
    CHECK_THAT(result.out, Catch::Contains(fmt::format("\n  {} ", command)));
  }
  CHECK_THAT(result.out, Catch::Contains("130 interrupted"));
}

TEST_CASE("every command has --json, --threads, --quiet and --help", "[cli]") {
  for (const char* command :
       {"run", "plan", "inspect", "eval", "verify", "export", "bench", "list", "schema"}) {
    const ProcessResult result = run_lcomp({command, "--help"});
    INFO(command);
    CHECK(result.exit_code == 0);
    for (const char* option : {"--json", "--threads", "--quiet"})
      CHECK_THAT(result.out, Catch::Contains(option));
  }
}

TEST_CASE("an unknown command is answered with the nearest one", "[cli]") {
  const ProcessResult result = run_lcomp({"inspekt", "x"});
  CHECK(result.exit_code == 2);
  CHECK(result.out.empty());
  CHECK(result.err ==
        "lcomp: error: the command must be one of run, plan, inspect, eval, verify, export, bench, list, "
        "schema; got "
        "inspekt (did you "
        "mean \"inspect\"?); lcomp --help shows the usage\n");
}

TEST_CASE("an unknown option is answered with the nearest one", "[cli]") {
  const ProcessResult result = run_lcomp({"list", "--thread", "2"});
  CHECK(result.exit_code == 2);
  CHECK(result.err ==
        "lcomp: error: list takes no --thread (did you mean \"--threads\"?); lcomp --help shows the usage\n");
}

TEST_CASE("a missing command or argument is bad usage", "[cli]") {
  CHECK(run_lcomp({}).exit_code == 2);
  CHECK_THAT(run_lcomp({}).err, Catch::StartsWith("lcomp: error: A subcommand is required"));
  const ProcessResult no_job = run_lcomp({"run"});
  CHECK(no_job.exit_code == 2);
  CHECK_THAT(no_job.err, Catch::StartsWith("lcomp: error: JOB is required"));
  CHECK(run_lcomp({"list", "--threads", "many"}).exit_code == 2);
  CHECK(run_lcomp({"list", "--threads", "-1"}).exit_code == 2);
}

TEST_CASE("with --json an error is also a document on standard output", "[cli]") {
  const ProcessResult usage = run_lcomp({"list", "gtpq", "--json"});
  CHECK(usage.exit_code == 2);
  const json error = json::parse(usage.out).at("error");
  CHECK(error.at("kind") == "invalid_argument");
  CHECK(error.at("exit_code") == 2);
  const std::string message = error.at("messages").at(0);
  CHECK_THAT(message, Catch::StartsWith("[MethodTable::find] the method must be one of rtn, gptq, "));
  CHECK_THAT(message, Catch::EndsWith("; got \"gtpq\" (did you mean \"gptq\"?)"));
  CHECK(json::parse(run_lcomp({"list", "--jsn", "--json"}).out).at("error").at("kind") == "usage");
}

TEST_CASE("an answer that cannot be written is no success, and no bug", "[cli]") {
  for (const char* command : {"list", "schema"}) {
    const auto full = lcomp::test::run_lcomp_within("exec > /dev/full", {command});
    CHECK(full.exit_code == 5);
    CHECK(full.err == "lcomp: error: [standard output] the answer must be written; a write failed\n");
  }
}

TEST_CASE("the version is printed", "[cli]") {
  const ProcessResult result = run_lcomp({"--version"});
  CHECK(result.exit_code == 0);
  CHECK_THAT(result.out, Catch::Matches("lcomp [0-9]+\\.[0-9]+\\.[0-9]+\n"));
}

TEST_CASE("list shows a line per method, and the settings of one", "[cli]") {
  const ProcessResult all = run_lcomp({"list"});
  CHECK(all.exit_code == 0);
  CHECK_THAT(all.out, Catch::Contains("rtn") && Catch::Contains("gptq"));
  const ProcessResult one = run_lcomp({"list", "rtn"});
  CHECK_THAT(one.out, Catch::Contains("| `bits` | integer from 2 to 8 | `4` |"));
}

TEST_CASE("list --json describes every method and its settings", "[cli]") {
  const json document = json::parse(run_lcomp({"list", "--json"}).out);
  REQUIRE(document.at("methods").size() >= 2);
  for (const json& method : document.at("methods")) {
    CHECK(method.at("name").is_string());
    CHECK_FALSE(method.at("summary").get<std::string>().empty());
    CHECK(method.at("needs_calibration").is_boolean());
    CHECK_FALSE(method.at("options").empty());
  }
}

TEST_CASE("schema prints the same document with and without --json", "[cli]") {
  const json plain = json::parse(run_lcomp({"schema"}).out);
  CHECK(plain == json::parse(run_lcomp({"schema", "--json"}).out));
  CHECK(plain.at("$schema") == "http://json-schema.org/draft-07/schema#");
}

TEST_CASE("an encoder is not measured without the dense model", "[cli][usage]") {
  const auto encoder = lcomp::test::shared_data("models/minilm-l6");
  if (!encoder) {
    WARN("skipped: the encoder is not in LCOMP_TEST_DATA");
    return;
  }
  const lcomp::test::TempDir dir;
  std::ofstream(dir / "text.txt") << "One sentence.\nAnother one.\n";
  const ProcessResult result = run_lcomp({"eval", encoder->string(), "--text", (dir / "text.txt").string()});
  CHECK(result.exit_code == 2);
  CHECK_THAT(result.err,
             Catch::Contains("[--reference] an encoder is measured by its embeddings beside those of the "
                             "dense model, which must be named; it is not"));
}

TEST_CASE("what a model says reaches no terminal as it is", "[cli][usage]") {
  const lcomp::test::TempDir dir;
  std::filesystem::copy(lcomp::test::source_dir() / "examples/model", dir.path(),
                        std::filesystem::copy_options::recursive);
  std::ofstream(dir / "config.json")
      << R"({"model_type": "\u001b[31mred\nlcomp: error: forged\u202e\u009b"})";
  const ProcessResult result = run_lcomp({"inspect", dir.path().string()});
  CHECK(result.exit_code == 3);
  CHECK_THAT(result.err, Catch::Contains("\\u001b[31mred\\u000alcomp: error: forged\\u202e\\u009b"));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
  CHECK(result.err.find('\x1b') == std::string::npos);
}

TEST_CASE("a path with a NUL, and an expression that backtracks without end, are refused by their place",
          "[cli][usage]") {
  const lcomp::test::TempDir dir;
  std::ofstream(dir / "nul.json") << R"({"model": "a\u0000b", "output": "o", "passes": [{"method": "rtn"}]})";
  CHECK_THAT(run_lcomp({"plan", (dir / "nul.json").string()}).err,
             Catch::Contains("/model] must not hold the character U+0000"));
  const std::string model = (lcomp::test::source_dir() / "examples/model").string();
  std::ofstream(dir / "re.json") << fmt::format(
      R"({{"model": "{}", "output": "o", "passes": [{{"method": "rtn", "group_size": 64, "targets": "re:((.*.*.*.*)*[!?])+"}}]}})",
      model);
  const ProcessResult result = run_lcomp({"plan", (dir / "re.json").string()});
  CHECK(result.exit_code != 0);
  CHECK_THAT(result.err, Catch::Contains("must match without backtracking so far"));
}
