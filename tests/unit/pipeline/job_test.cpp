#include "lcomp/pipeline/job.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"
#include "support/test_data.h"
#include "unit/pipeline/toy_methods.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using lcomp::test::error_text;
using nlohmann::json;

namespace {

const char* const kExample = R"(
{ "model": "path/to/dir", "output": "path/to/out", "seed": 0, "max_memory": "4GB", "compute": "bf16",
  "calibration": { "text": "calib.txt", "samples": 32, "length": 2048, "short": "pack" },
  "passes": [ { "method": "gptq", "targets": ["layers.*"], "ignore": ["lm_head"], "bits": 4, "group_size": 64,
                "symmetric": true,
                "overrides": [ { "match": "layers.*.mlp.down_proj", "bits": 8 } ] } ],
  "write": { "format": "compressed-tensors", "shard_size": "4GB" },
  "evaluate": { "text": "eval.txt", "window": 2048, "max_windows": 16, "reference": true } }
)";

Job parse(const std::string& text) {
  return parse_job(text, "job.json", test::toy_methods());
}

std::string error(const std::string& text) {
  return error_text([&] { parse(text); });
}

/// A valid job with `keys` added at its top.
std::string with(const std::string& keys) {
  return R"({"model": "m", "output": "o", "passes": [{"method": "rtn"}], )" + keys + "}";
}

/// A valid job whose only pass has `keys`.
std::string with_pass(const std::string& keys) {
  return R"({"model": "m", "output": "o", "calibration": {"text": "t"}, "passes": [{)" + keys + "}]}";
}

void write_file(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path) << text;
}

}  // namespace

TEST_CASE("the job of the documentation is read field by field", "[pipeline][job]") {
  const Job job = parse(kExample);
  CHECK(job.model == "path/to/dir");
  CHECK(job.output == "path/to/out");
  CHECK(job.max_memory == 4'000'000'000);
  CHECK(job.compute == Compute::kBf16);
  CHECK(job.calibration.text == "calib.txt");
  CHECK(job.calibration.samples == 32);
  CHECK(job.calibration.short_samples == ShortSamples::kPack);
  CHECK(job.write.format == WriteFormat::kCompressedTensors);
  CHECK(job.write.shard_size == 4'000'000'000);
  REQUIRE(job.evaluate);
  CHECK(job.evaluate->max_windows == 16);
  CHECK(job.evaluate->reference);

  REQUIRE(job.passes.size() == 1);
  const PassSpec& pass = job.passes[0];
  CHECK(pass.method == "gptq");
  CHECK(pass.targets == std::vector<std::string>{"layers.*"});
  CHECK(pass.ignore == std::vector<std::string>{"lm_head"});
  const auto& base = dynamic_cast<const test::GptqToy&>(*pass.options);
  CHECK(base.get<test::ToyScheme>().bits == 4);
  CHECK(base.get<test::ToyScheme>().group_size == 64);
  CHECK(base.get<test::ToyTuning>().damping == 0.01);
}

TEST_CASE("an override starts from the settings of its pass", "[pipeline][job]") {
  const Job job = parse(kExample);
  REQUIRE(job.passes[0].overrides.size() == 1);
  const Override& entry = job.passes[0].overrides[0];
  CHECK(entry.match == std::vector<std::string>{"layers.*.mlp.down_proj"});
  const auto& scheme = dynamic_cast<const test::GptqToy&>(*entry.options).get<test::ToyScheme>();
  CHECK(scheme.bits == 8);
  CHECK(scheme.group_size == 64);
}

TEST_CASE("a job without evaluation has none", "[pipeline][job]") {
  CHECK_FALSE(parse(with(R"("seed": 1)")).evaluate);
  CHECK(parse(with(R"("evaluate": {"text": "t"})")).evaluate->window == 2048);
}

TEST_CASE("parsing a written job gives the same job", "[pipeline][job]") {
  for (const std::string& text :
       {std::string(kExample), with(R"("seed": 7, "strict": true, "threads": 2)"),
        with(R"("calibration": {"starts": 64, "cache": "disk", "short": "error"})")}) {
    const std::string written = to_json(parse(text));
    INFO(written);
    CHECK(to_json(parse(written)) == written);
  }
  const json document = json::parse(to_json(parse(kExample)));
  CHECK(document["max_memory"] == 4'000'000'000);
  CHECK(document["calibration"]["short"] == "pack");
  CHECK(document["passes"][0]["damping"] == 0.01);
  CHECK(document["passes"][0]["overrides"][0]["bits"] == 8);
  CHECK(document["passes"][0]["overrides"][0]["group_size"] == 64);
}

TEST_CASE("every error of a job is listed, each with pointer and nearest name", "[pipeline][job]") {
  CHECK(
      error(R"({ "model": "m", "ouput": "o", "compute": "fp16", "max_memory": "lots",
                   "calibration": { "text": "t", "lenght": 128, "short": "pakc" },
                   "passes": [ { "method": "gptq", "bitz": 4, "group_size": -1,
                                 "overrides": [ { "bits": 9 }, 3 ] },
                               { "method": "gtpq" },
                               { "method": "rtn", "damping": 0.1 } ],
                   "evaluate": { "stride": 4096 } })") ==
      "[job.json: /max_memory] must be a size such as 4000000000, \"4GB\" or \"512MiB\"; got \"lots\"\n"
      "[job.json: /compute] must be one of auto, f32, bf16; got \"fp16\"\n"
      "[job.json: /calibration/short] must be one of pack, drop, error, keep; got \"pakc\" (did you mean "
      "\"pack\"?)\n"
      "[job.json: /calibration/lenght] every key must be known; \"lenght\" is not (did you mean "
      "\"length\"?)\n"
      "[job.json: /ouput] every key must be known; \"ouput\" is not (did you mean \"output\"?)\n"
      "[job.json: /passes/0/group_size] must be an integer from 0 to 1048576; got -1\n"
      "[job.json: /passes/0/bitz] every key must be known; \"bitz\" is not (did you mean \"bits\"?)\n"
      "[job.json: /passes/0/overrides/0/bits] must be an integer from 2 to 8; got 9\n"
      "[job.json: /passes/0/overrides/0] an override must have \"match\", the operators it is for; it has "
      "none\n"
      "[job.json: /passes/0/overrides/1] must be an object; got 3\n"
      "[job.json: /passes/1/method] must be one of rtn, gptq; got \"gtpq\" (did you mean \"gptq\"?)\n"
      "[job.json: /passes/2/damping] every key must be known; \"damping\" is not; the keys here are method, "
      "targets, "
      "ignore, overrides, bits, group_size, symmetric, range\n"
      "[job.json: /output] must name the directory to write; it is missing or empty\n"
      "[job.json: /evaluate/text] must name a text; it is missing or empty\n"
      "[job.json: /evaluate/stride] must be at most the window of 2048 tokens; got 4096");
}

TEST_CASE("what a job must have is asked for", "[pipeline][job]") {
  CHECK(error("{}") ==
        "[job.json: /passes] must list at least one pass; it is missing\n"
        "[job.json: /model] must name the directory of a checkpoint; it is missing or empty\n"
        "[job.json: /output] must name the directory to write; it is missing or empty");
  CHECK(error(R"({"model": "m", "output": "o", "passes": []})") ==
        "[job.json: /passes] must list at least one pass; it is empty");
  CHECK(error(R"({"model": "m", "output": "o", "passes": {}})") ==
        "[job.json: /passes] must be a list of objects; got {}");
  CHECK(error(with_pass(R"("bits": 4)")) ==
        "[job.json: /passes/0] a pass must have \"method\", one of rtn, gptq; it has none");
  CHECK(error(with_pass(R"("method": 4)")) == "[job.json: /passes/0/method] must be a string; got 4");
  CHECK(error(with_pass(R"("method": "rtn", "overrides": {})")) ==
        "[job.json: /passes/0/overrides] must be a list of objects; got {}");
  CHECK(error(with(R"("evaluate": null)")) ==
        "[job.json: /evaluate] must be an object; got null\n"
        "[job.json: /evaluate/text] must name a text; it is missing or empty");
}

TEST_CASE("a method that calibrates asks for a text, once", "[pipeline][job]") {
  CHECK(
      error(
          R"({"model": "m", "output": "o", "passes": [{"method": "rtn"}, {"method": "gptq"}, {"method": "gptq"}]})") ==
      "[job.json: /calibration/text] must name a text, which the method gptq takes its statistics from; it "
      "is "
      "missing "
      "or empty");
}

TEST_CASE("the number of starts fits the token budget", "[pipeline][job]") {
  const auto starts = [](int64_t n) {
    return with(fmt::format("\"calibration\": {{\"samples\": 8, \"length\": 16, \"starts\": {}}}", n));
  };
  CHECK(parse(starts(0)).calibration.starts == 0);
  CHECK(parse(starts(8)).calibration.starts == 8);
  CHECK(parse(starts(64)).calibration.starts == 64);
  CHECK(error(starts(7)) ==
        "[job.json: /calibration/starts] must be 0 or at least the number of samples, 8; got 7");
  CHECK(error(starts(65)) ==
        "[job.json: /calibration/starts] must leave two tokens or more for each window of the budget of 8 x "
        "16 tokens; "
        "got 65");
}

TEST_CASE("the numbers of samples and starts are bounded, because plans list them", "[pipeline][job]") {
  CHECK(parse(with(R"("calibration": {"samples": 1048576})")).calibration.samples == 1 << 20);
  CHECK(error(with(R"("calibration": {"samples": 1048577, "starts": 1073741824})")) ==
        "[job.json: /calibration/samples] must be an integer from 1 to 1048576; got 1048577\n"
        "[job.json: /calibration/starts] must be an integer from 0 to 1048576; got 1073741824");
}

TEST_CASE("errors of a job are of the kind that the command line calls bad usage", "[pipeline][job]") {
  CHECK_THROWS_AS(parse("{}"), ConfigError);
  CHECK_THROWS_AS(parse("{"), ConfigError);
}

TEST_CASE("relative paths of a job file are relative to its directory", "[pipeline][job]") {
  const test::TempDir dir;
  std::filesystem::create_directories(dir / "jobs");
  write_file(dir / "jobs" / "j.json",
             R"({"model": "../models/a", "output": "/abs/out", "calibration": {"text": "c.txt"},
      "passes": [{"method": "rtn"}], "evaluate": {"text": "./e.txt"}})");
  const Job job = load_job((dir / "jobs" / "j.json").string(), test::toy_methods());
  CHECK(job.model == (dir / "models" / "a").string());
  CHECK(job.output == "/abs/out");
  CHECK(job.calibration.text == (dir / "jobs" / "c.txt").string());
  CHECK(job.evaluate->text == (dir / "jobs" / "e.txt").string());
}

TEST_CASE(
    "assignments change the job before it is checked; their paths are relative to the current directory",
    "[pipeline][job]") {
  const test::TempDir dir;
  const std::string path = (dir / "j.json").string();
  write_file(path, kExample);
  const Job job =
      load_job(path, test::toy_methods(),
               {"/model=here", "/passes/0/bits=3", "/passes/0/overrides/0/match=[\"mlp.*\", \"x=y\"]",
                "/passes/-/method=rtn", "/evaluate=null", "/calibration/samples=16", "/write/format=dense"});
  CHECK(job.model == (std::filesystem::current_path() / "here").string());
  CHECK(job.output == (dir.path() / "path" / "to" / "out").string());
  CHECK(dynamic_cast<const test::GptqToy&>(*job.passes[0].options).get<test::ToyScheme>().bits == 3);
  CHECK(job.passes[0].overrides[0].match == std::vector<std::string>{"mlp.*", "x=y"});
  REQUIRE(job.passes.size() == 2);
  CHECK(job.passes[1].method == "rtn");
  CHECK_FALSE(job.evaluate);
  CHECK(job.calibration.samples == 16);
  CHECK(job.write.format == WriteFormat::kDense);
}

TEST_CASE("assignments make the objects that they need", "[pipeline][job]") {
  const test::TempDir dir;
  const std::string path = (dir / "j.json").string();
  write_file(path, R"({"passes": [{"method": "rtn"}]})");
  const Job job = load_job(path, test::toy_methods(), {"/model=/m", "/output=/o", "/evaluate/text=/e.txt"});
  CHECK(job.evaluate->text == "/e.txt");
}

TEST_CASE("bad assignments are reported with the other errors of the job", "[pipeline][job]") {
  const test::TempDir dir;
  const std::string path = (dir / "j.json").string();
  write_file(path, R"({"model": "m", "output": "o", "passes": [{"method": "rtn"}]})");
  CHECK(error_text([&] {
          load_job(
              path, test::toy_methods(),
              {"seed=1", "/seed", "/passes/3/bits=2", "/model/x=1", "/passes/0/bits=12", "/passes/x/bits=1"});
        }) == fmt::format("[{0}] --set takes /pointer=value, such as /seed=1; got seed=1\n"
                          "[{0}] --set takes /pointer=value, such as /seed=1; got /seed\n"
                          "[{0}: /passes/3/bits] --set must name a place in the job; there is no \"3\"\n"
                          "[{0}: /model/x] --set must name a place in the job; there is no \"x\"\n"
                          "[{0}: /passes/x/bits] --set must name a place in the job; there is no \"x\"\n"
                          "[{0}: /passes/0/bits] must be an integer from 2 to 8; got 12",
                          path));
}

TEST_CASE("a job file that cannot be read is named", "[pipeline][job]") {
  const test::TempDir dir;
  const std::string missing = (dir / "none.json").string();
  CHECK(error_text([&] { load_job(missing, test::toy_methods()); }) ==
        fmt::format("[{}] the job file must be readable; it is not", missing));
  CHECK(error_text([&] { load_job(dir.path().string(), test::toy_methods()); }) ==
        fmt::format("[{}] the job file must be readable; it is not", dir.path().string()));
}

TEST_CASE("the table of methods refuses a taken name and names the nearest of an unknown one",
          "[pipeline][method]") {
  MethodTable table = test::toy_methods();
  CHECK(table.find("gptq").summary == "Rounds and compensates.");
  CHECK(error_text([&] { table.add(test::toy_method<test::RtnToy>("rtn", "", false)); }) ==
        "[MethodTable::add] method names must differ; \"rtn\" is taken");
  CHECK(error_text([&] { table.find("gtpq"); }) ==
        "[MethodTable::find] the method must be one of rtn, gptq; got \"gtpq\" (did you mean \"gptq\"?)");
}

TEST_CASE("the tables of the docs have every key of a job and of each method", "[pipeline][job]") {
  const std::string tables = job_tables(test::toy_methods());
  CHECK_THAT(tables, Catch::Contains("| `calibration.short` | pack, drop, error, keep | `pack` |"));
  CHECK_THAT(tables, Catch::Contains("| `evaluate.window` | integer from 2 to 1073741824 | `2048` |"));
  CHECK_THAT(tables, Catch::Contains("### gptq\n\nRounds and compensates.\n\n| key |"));
  CHECK_THAT(tables, Catch::Contains("| `damping` | number from 0 to 1 | `0.01` |"));
}
