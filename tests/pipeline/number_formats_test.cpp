// Jobs whose weights are not integers: what they write, and what it is worth.
#include <ATen/ATen.h>

#include "lcomp/model/model.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "pipeline/job_runs.h"

using namespace lcomp;
using model::Model;
using quant::Granularity;
using quant::NumberFormat;
using quant::QuantScheme;
using test::Json;

namespace {

const Json kFp8 = {{"format", "fp8_e4m3"}, {"granularity", "channel"}};
const Json kNf4 = {{"format", "nf4"}};
const Json kNestedNf4 = {{"format", "nf4"}, {"double_quant", true}};

bool verifies(const std::filesystem::path& output) {
  Observer silent;
  return pipeline::verify(output, silent).passed;
}

/// Perplexity and KL on all of the held-out text, calibrated as the demo is: with few tokens or few windows
/// the noise of perplexity is larger than the difference at 4 bits.
std::pair<double, double> scores(const test::TempDir& dir, const std::string& method, const Json& format) {
  static int run = 0;
  Json job = test::job_with(dir / std::to_string(run++), Json::array({test::pass(method, format)}));
  job["threads"] = 0;
  job["calibration"] = {{"text", test::calibration_text().string()}, {"samples", 128}, {"length", 256}};
  job["evaluate"] = {{"text", test::evaluation_text().string()}, {"window", 256}, {"reference", true}};
  const auto row = test::run(job).evaluation.at(1);
  return {*row.perplexity, *row.kl_mean};
}

}  // namespace

TEST_CASE("NF4 and E4M3 weights are written, verified and read back, with the size that was planned",
          "[pipeline][formats]") {
  const test::TempDir dir;
  const Model dense = Model::open(test::bundled_model());
  const std::vector<std::pair<Json, QuantScheme>> cases = {
      {kFp8, {.format = NumberFormat::kFp8E4m3, .granularity = Granularity::kChannel}},
      {{{"format", "fp8_e4m3"}, {"granularity", "tensor"}},
       {.format = NumberFormat::kFp8E4m3, .granularity = Granularity::kTensor}},
      {kNf4, {.format = NumberFormat::kNf4, .group_size = 64}},
      {kNestedNf4, {.format = NumberFormat::kNf4, .group_size = 64, .double_quant = true}}};
  for (size_t i = 0; i < cases.size(); ++i) {
    const auto& [settings, scheme] = cases[i];
    CAPTURE(scheme.describe());
    const auto output = dir / std::to_string(i);
    const Json job = test::rtn_job(output, settings);
    const auto report = test::run(job);
    REQUIRE(verifies(output));
    const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
    const Model written = Model::open(output);
    REQUIRE(written.parameters() == dense.parameters());
    for (size_t op = 0; op < report.operators.size(); ++op) {
      const auto& row = report.operators[op];
      REQUIRE(row.bytes_after == plan.operators[op].bytes_after);
      int64_t stored = 0;
      for (const std::string& name : written.checkpoint().names()) {
        if (name.starts_with(row.name + ".weight"))
          stored += static_cast<int64_t>(written.checkpoint().info(name).bytes());
      }
      REQUIRE(stored == row.bytes_after);
    }
    for (const auto& op : dense.architecture().operators(1)) {
      const auto direct = quant::rtn(dense.checkpoint().read(op.name + ".weight"), scheme);
      REQUIRE(written.load_weight(op)->dense().equal(direct.dense()));
      REQUIRE(written.quantization()->scheme_for(op.name)->describe() == scheme.describe());
    }
  }
  const Json fp8 = test::read_json(dir / "0" / "config.json")["quantization_config"];
  REQUIRE(fp8["quant_method"] == "compressed-tensors");
  REQUIRE(fp8["format"] == "float-quantized");
  const Json nf4 = test::read_json(dir / "3" / "config.json")["quantization_config"];
  REQUIRE(nf4["quant_method"] == "bitsandbytes");
  const Model written = Model::open(dir / "0");
  REQUIRE(written.checkpoint().info("model.layers.0.mlp.up_proj.weight").dtype == io::StoredDtype::kF8E4M3);
}

TEST_CASE("one job may write integers, NF4 and E4M3 side by side, and be the source of another",
          "[pipeline][formats]") {
  const test::TempDir dir;
  Json nested = kNestedNf4, fp8 = kFp8;
  nested["match"] = "*.down_proj";
  fp8["match"] = "*.v_proj";
  test::run(test::rtn_job(dir / "mixed", {{"overrides", Json::array({nested, fp8})}}));
  REQUIRE(verifies(dir / "mixed"));
  const Json config = test::read_json(dir / "mixed" / "config.json")["quantization_config"];
  REQUIRE(config["quant_method"] == "lcomp");
  REQUIRE(config["format"] == "mixed-precision");
  const Model mixed = Model::open(dir / "mixed");
  const auto format_of = [](const Model& model, const std::string& op) {
    return model.quantization()->group_for("model.layers.2." + op)->format;
  };
  REQUIRE(format_of(mixed, "mlp.down_proj") == "lcomp-nf4");
  REQUIRE(format_of(mixed, "self_attn.v_proj") == "float-quantized");
  REQUIRE(format_of(mixed, "mlp.up_proj") == "pack-quantized");

  Json job = test::gptq_job(dir / "again", {{"targets", {"*.up_proj"}}, {"bits", 8}});
  job["model"] = (dir / "mixed").string();
  test::run(job);
  REQUIRE(verifies(dir / "again"));
  const Model again = Model::open(dir / "again");
  for (const auto& op : mixed.architecture().operators(2)) {
    if (op.kind == "up_proj") continue;
    CAPTURE(op.name);
    REQUIRE(again.quantization()->group_for(op.name)->to_json().find(format_of(
                mixed, op.name.substr(std::string("model.layers.2.").size()))) != std::string::npos);
    REQUIRE(again.load_weight(op)->dense().equal(mixed.load_weight(op)->dense()));
  }
}

TEST_CASE("a killed run of other number formats resumes to the same bytes", "[pipeline][formats]") {
  const test::TempDir dir;
  test::Watcher counter;
  test::run(test::gptq_job(dir / "whole", kNestedNf4), counter);
  const Json job = test::gptq_job(dir / "stopped", kNestedNf4);
  test::Watcher watcher;
  watcher.stops = [half = counter.signs / 2](int sign) { return sign > half; };
  REQUIRE_THROWS_AS(test::run(job, watcher), Interrupted);
  test::run(job);
  REQUIRE(test::weights_hash(dir / "stopped") == test::weights_hash(dir / "whole"));
  REQUIRE(test::read_json(dir / "stopped" / "config.json") == test::read_json(dir / "whole" / "config.json"));
}

TEST_CASE("gptq on NF4 and E4M3 beats rounding to nearest on held-out text", "[pipeline][quality][slow]") {
  const test::TempDir dir;
  for (const Json& format : {kNf4, kNestedNf4, kFp8}) {
    CAPTURE(format.dump());
    const auto [rtn_perplexity, rtn_kl] = scores(dir, "rtn", format);
    const auto [gptq_perplexity, gptq_kl] = scores(dir, "gptq", format);
    CAPTURE(rtn_perplexity, gptq_perplexity, rtn_kl, gptq_kl);
    REQUIRE(gptq_kl < rtn_kl);
    // At 8 bits both are within the noise of the dense model's perplexity.
    if (format != kFp8) REQUIRE(gptq_perplexity < rtn_perplexity);
  }
}
