// What a job writes, opened again.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/eval/evaluate.h"
#include "lcomp/io/hf_dir.h"
#include "lcomp/model/model.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "pipeline/job_runs.h"

namespace fs = std::filesystem;
using namespace lcomp;
using model::Model;
using quant::Granularity;
using quant::QuantScheme;
using test::Json;

namespace {

std::string op_name(int64_t block, const std::string& rest) {
  return "model.layers." + std::to_string(block) + "." + rest;
}

eval::Evaluation evaluate(const Model& model, const Model* reference) {
  const auto tokenizer = io::Tokenizer::from_file(test::bundled_model() / "tokenizer.json");
  const auto text =
      eval::read_evaluation_text(test::evaluation_text(), tokenizer, {.window = 64, .max_windows = 4});
  ThreadPool pool(1);
  Observer silent;
  return eval::evaluate(model, reference, text, linalg::Precision::kF32, pool, silent);
}

}  // namespace

TEST_CASE("packed weights of 2 to 8 bits read back as the scheme and the values that were asked for",
          "[pipeline][formats]") {
  const test::TempDir dir;
  const Model dense = Model::open(test::bundled_model());
  int run = 0;
  for (int64_t bits = 2; bits <= 8; ++bits) {
    for (const bool symmetric : {true, false}) {
      QuantScheme scheme{.bits = bits, .symmetric = symmetric, .group_size = 32};
      if (bits % 2 == 0) scheme.granularity = Granularity::kChannel;
      CAPTURE(scheme.describe());
      const auto output = dir / std::to_string(run++);
      test::run(test::rtn_job(output, {{"bits", bits},
                                       {"symmetric", symmetric},
                                       {"granularity", std::string(name_of(scheme.granularity))},
                                       {"group_size", 32},
                                       {"targets", {"layers.0.*", "layers.3.mlp.down_proj"}}}));
      const Model written = Model::open(output);
      for (const auto& op : dense.architecture().operators(0)) {
        const auto stored = written.quantization()->scheme_for(op.name);
        REQUIRE(stored);
        REQUIRE(stored->describe() == scheme.describe());
        const auto direct = quant::rtn(dense.checkpoint().read(op.name + ".weight"), scheme);
        REQUIRE(written.load_weight(op)->dense().equal(direct.dense()));
      }
      REQUIRE_FALSE(written.quantization()->scheme_for(op_name(1, "mlp.down_proj")));
    }
  }
}

TEST_CASE("mixed schemes become config groups: the largest by class, the others by name",
          "[pipeline][formats]") {
  const test::TempDir dir;
  test::run(test::rtn_job(
      dir / "out",
      {{"ignore", {"layers.0.*", "lm_head"}},
       {"overrides", Json::array({Json{{"match", "*.down_proj"}, {"bits", 8}},
                                  Json{{"match", "layers.2.*.k_proj"}, {"granularity", "channel"}},
                                  Json{{"match", "layers.3.*.v_proj"}, {"symmetric", false}}})}}));
  const Json config = test::read_json(dir / "out" / "config.json")["quantization_config"];
  REQUIRE(config["quant_method"] == "compressed-tensors");
  REQUIRE(config["format"] == "pack-quantized");
  std::vector<Json> targets;
  for (const auto& [name, group] : config["config_groups"].items()) targets.push_back(group["targets"]);
  REQUIRE(targets.size() == 4);
  REQUIRE(std::count(targets.begin(), targets.end(), Json{"Linear"}) == 1);
  REQUIRE(std::count(targets.begin(), targets.end(), Json{op_name(2, "self_attn.k_proj")}) == 1);
  REQUIRE(config["ignore"].size() == 8);
  REQUIRE(config["ignore"][0] == "lm_head");

  const Model written = Model::open(dir / "out");
  const auto scheme = [&](int64_t block, const std::string& rest) {
    const auto found = written.quantization()->scheme_for(op_name(block, rest));
    return found ? found->describe() : "none";
  };
  REQUIRE(scheme(0, "mlp.down_proj") == "none");
  REQUIRE(scheme(1, "mlp.down_proj") == QuantScheme{.bits = 8, .group_size = 64}.describe());
  REQUIRE(scheme(1, "self_attn.k_proj") == QuantScheme{.group_size = 64}.describe());
  REQUIRE(scheme(2, "self_attn.k_proj") == QuantScheme{.granularity = Granularity::kChannel}.describe());
  REQUIRE(scheme(3, "self_attn.v_proj") == QuantScheme{.symmetric = false, .group_size = 64}.describe());
  REQUIRE_FALSE(written.quantization()->scheme_for("lm_head"));
}

TEST_CASE("a dense output has the model's type and layout, and the values on the grid",
          "[pipeline][formats]") {
  const test::TempDir dir;
  Json job = test::rtn_job(dir / "out");
  job["write"] = {{"format", "dense"}};
  const auto report = test::run(job);
  REQUIRE_FALSE(test::read_json(dir / "out" / "config.json").contains("quantization_config"));
  const Model dense = Model::open(test::bundled_model());
  const Model written = Model::open(dir / "out");
  REQUIRE(written.checkpoint().names() == dense.checkpoint().names());
  REQUIRE(written.stored_bytes() == dense.stored_bytes());
  REQUIRE(report.totals.bytes_after == report.totals.bytes_before);
  for (const auto& op : dense.architecture().operators(2)) {
    const auto direct = quant::rtn(dense.checkpoint().read(op.name + ".weight"), {.group_size = 64});
    REQUIRE(written.checkpoint().read(op.name + ".weight").equal(direct.dense().to(at::kBFloat16)));
  }
}

TEST_CASE("a compressed output opens as a working model, close to the dense one in 8 bits",
          "[pipeline][formats]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out", {{"bits", 8}, {"group_size", 32}}));
  const Model dense = Model::open(test::bundled_model());
  const Model written = Model::open(dir / "out");
  REQUIRE(written.parameters() == dense.parameters());
  const auto scores = evaluate(written, &dense);
  REQUIRE(*scores.kl_mean > 0);
  REQUIRE(*scores.kl_mean < 1e-3);
  REQUIRE(*scores.perplexity == Approx(*scores.reference_perplexity).epsilon(5e-3));
  REQUIRE(*scores.top1_agreement > 0.97);
}

TEST_CASE("what no pass changes is copied byte for byte", "[pipeline][formats]") {
  const test::TempDir dir;
  test::run(test::gptq_job(dir / "out", {{"targets", {"*.gate_proj"}}}));
  const Model dense = Model::open(test::bundled_model());
  const Model written = Model::open(dir / "out");
  int64_t copied = 0;
  for (const std::string& name : dense.checkpoint().names()) {
    CAPTURE(name);
    const bool changed = name.ends_with("gate_proj.weight");
    REQUIRE(written.checkpoint().contains(name) != changed);
    if (changed) continue;
    REQUIRE(written.checkpoint().hash_of_tensor(name) == dense.checkpoint().hash_of_tensor(name));
    ++copied;
  }
  REQUIRE(copied == 34);
  for (const std::string& name : io::companion_files(test::bundled_model()))
    REQUIRE(io::read_file(dir / "out" / name) == io::read_file(test::bundled_model() / name));
  REQUIRE(fs::exists(dir / "out" / "tokenizer.json"));
}

TEST_CASE("config.json keeps fields that lcomp does not know, in their order", "[pipeline][formats]") {
  const test::TempDir dir;
  const fs::path source = test::copy_of_model(dir);
  auto config = nlohmann::ordered_json::parse(io::read_file(source / "config.json"));
  config["zzz_unknown"] = {{"b", 1}, {"a", {1, 2.5, nullptr, "text"}}};
  config["auto_map"] = {{"AutoModel", "file.Class"}};
  test::write_text(source / "config.json", config.dump());
  Json job = test::rtn_job(dir / "out");
  job["model"] = source.string();
  test::run(job);
  auto written = nlohmann::ordered_json::parse(io::read_file(dir / "out" / "config.json"));
  REQUIRE(written.contains("quantization_config"));
  written.erase("quantization_config");
  REQUIRE(written.dump() == config.dump());
}

TEST_CASE("shards of a given size hold the tensors of a single file, with an index", "[pipeline][formats]") {
  const test::TempDir dir;
  Json job = test::rtn_job(dir / "one");
  test::run(job);
  job["output"] = (dir / "many").string();
  job["write"] = {{"shard_size", 400000}};
  test::run(job);
  REQUIRE_FALSE(fs::exists(dir / "many" / "model.safetensors"));
  const Json index = test::read_json(dir / "many" / "model.safetensors.index.json");
  int shards = 0;
  for (const fs::path& file : io::list_directory(dir / "many"))
    shards += file.extension() == ".safetensors" ? 1 : 0;
  REQUIRE(shards >= 3);
  const Model one = Model::open(dir / "one");
  const Model many = Model::open(dir / "many");
  REQUIRE(many.checkpoint().names() == one.checkpoint().names());
  REQUIRE(index["weight_map"].size() == one.checkpoint().names().size());
  for (const std::string& name : one.checkpoint().names())
    REQUIRE(many.checkpoint().hash_of_tensor(name) == one.checkpoint().hash_of_tensor(name));
  Observer silent;
  REQUIRE(pipeline::verify(dir / "many", silent).passed);
}

TEST_CASE("a packed checkpoint can be the source: operators that no pass touches stay packed as they were",
          "[pipeline][formats]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "eight", {{"bits", 8}, {"group_size", 32}}));
  const std::string format = GENERATE("compressed-tensors", "dense");
  CAPTURE(format);
  Json job = test::gptq_job(dir / "out", {{"targets", {"*.up_proj"}}});
  job["model"] = (dir / "eight").string();
  job["write"] = {{"format", format}};
  test::run(job);
  const Model source = Model::open(dir / "eight");
  const Model written = Model::open(dir / "out");
  for (const auto& op : source.architecture().operators(1)) {
    CAPTURE(op.name);
    if (op.kind == "up_proj") {
      REQUIRE(written.checkpoint().contains(op.name + ".weight") == (format == "dense"));
      if (format != "dense") REQUIRE(written.quantization()->scheme_for(op.name)->bits == 4);
    } else {
      REQUIRE(written.quantization()->scheme_for(op.name)->bits == 8);
      REQUIRE(written.load_weight(op)->dense().equal(source.load_weight(op)->dense()));
    }
  }
  Observer silent;
  REQUIRE(pipeline::verify(dir / "out", silent).passed);
}
