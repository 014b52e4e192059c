#include "lcomp/model/model.h"

#include <ATen/ATen.h>

#include <fmt/ranges.h>
#include <catch2/catch.hpp>
#include <filesystem>
#include <set>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/test_data.h"
#include "support/tiny_llama.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::TinyLlama;

namespace {

constexpr const char* kUp = "model.layers.0.mlp.up_proj";

std::string open_error(const TinyLlama& llama) {
  REQUIRE_THROWS_AS(llama.model(), CorruptFile);
  return test::error_text([&] { llama.model(); });
}

/// The tiny model with one operator packed in 4 bits.
TinyLlama packed_llama() {
  TinyLlama llama;
  const auto packed = quant::rtn(llama.tensors.at(std::string(kUp) + ".weight"), {.group_size = 16}).pack();
  llama.tensors.erase(std::string(kUp) + ".weight");
  llama.tensors[std::string(kUp) + ".weight_packed"] = packed.packed;
  llama.tensors[std::string(kUp) + ".weight_scale"] = packed.scale;
  llama.tensors[std::string(kUp) + ".weight_shape"] = packed.shape;
  model::QuantizationConfig config;
  config.groups = {{{kUp}, {.group_size = 16}}};
  llama.config["quantization_config"] = nlohmann::json::parse(config.to_json());
  return llama;
}

/// The reference decodes in the type of the scales: in a bfloat16 model its weights are the exact ones
/// rounded.
std::function<void(model::Block&)> expected_rounding(const model::Model& model) {
  if (model.dtype() != at::kBFloat16) return {};
  return [](model::Block& block) {
    for (size_t op = 0; op < block.ops().size(); ++op) {
      const at::Tensor exact = block.ops()[op].weight->dense();
      block.replace(op, std::make_shared<DenseWeight>(exact.to(at::kBFloat16)));
    }
  };
}

}  // namespace

TEST_CASE("a model opens with its sizes, and its tensors are shared out between blocks and the rest",
          "[model]") {
  const auto model = TinyLlama().model();
  REQUIRE(model.size() == 2);
  REQUIRE(model.dtype() == at::kFloat);
  REQUIRE(model.parameters() == 2 * 40 * 16 + 16 + 2 * (2 * 16 + 256 + 128 + 128 + 256 + 3 * 512));
  REQUIRE(model.stored_bytes() == 4 * static_cast<uint64_t>(model.parameters()));
  REQUIRE(model.block_tensors(0).size() == 9);
  REQUIRE(model.outer_tensors() ==
          std::vector<std::string>{"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"});
  REQUIRE(model.warnings().empty());
}

TEST_CASE("block 1 does not take the tensors of block 10", "[model]") {
  TinyLlama llama;
  llama.tensors["model.layers.10.extra.weight"] = at::ones({2});
  const auto model = llama.model();
  REQUIRE(model.block_tensors(1).size() == 9);
  REQUIRE(model.outer_tensors().size() == 4);
}

TEST_CASE("buffers that old files carry along are skipped", "[model]") {
  TinyLlama llama;
  llama.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = at::ones({4});
  const auto model = llama.model();
  REQUIRE(model.block_tensors(0).size() == 9);
  REQUIRE(model.parameters() == TinyLlama().model().parameters());
}

TEST_CASE(
    "tensors that no part of the model reads are warned of, with a bias that the config does not announce",
    "[model]") {
  TinyLlama llama;
  llama.tensors["model.layers.0.self_attn.q_proj.bias"] = at::ones({16});
  llama.tensors["model.layers.9.mlp.up_proj.weight"] = at::ones({32, 16});
  llama.tensors["model.layers.0.mlp.up_proj.output_scale"] = at::ones({1});
  REQUIRE(
      llama.model().warnings() ==
      std::vector<std::string>{"tiny: tensors that no part of the model reads are only copied: "
                               "model.layers.0.self_attn.q_proj.bias, model.layers.9.mlp.up_proj.weight"});
  llama.tensors.erase("model.layers.9.mlp.up_proj.weight");
  llama.tensors.erase("model.layers.0.self_attn.q_proj.bias");
  REQUIRE(llama.model().warnings().empty());
}

TEST_CASE("missing tensors and wrong shapes are named when the model is opened", "[model]") {
  for (const std::string name : {"model.norm.weight", "lm_head.weight", "model.layers.1.mlp.down_proj.weight",
                                 "model.layers.0.post_attention_layernorm.weight"}) {
    TinyLlama llama;
    const std::string shape = fmt::format("[{}]", fmt::join(llama.tensors.at(name).sizes(), ", "));
    llama.tensors.erase(name);
    REQUIRE(open_error(llama) ==
            "[tiny] the model must have the tensor '" + name + "' " + shape + "; it is missing");
  }
  TinyLlama llama;
  llama.tensors["model.layers.1.mlp.down_proj.weight"] = at::ones({16, 31});
  REQUIRE_THAT(open_error(llama),
               Catch::EndsWith("] the tensor 'model.layers.1.mlp.down_proj.weight' must be [16, 32]; it is "
                               "[16, 31]"));
}

TEST_CASE("tied embeddings are one matrix under either name; two that differ are kept and reported",
          "[model]") {
  TinyLlama llama;
  llama.config["tie_word_embeddings"] = true;
  const auto both = llama.model();
  REQUIRE(both.warnings() == std::vector<std::string>{"tiny: tie_word_embeddings is true, but embedding and "
                                                      "head differ; both are kept"});
  REQUIRE(both.head_rows(3, 2).equal(llama.tensors["lm_head.weight"].slice(0, 3, 5)));
  const at::Tensor embedding = llama.tensors["model.embed_tokens.weight"];
  llama.tensors.erase("lm_head.weight");
  REQUIRE(llama.model().head_rows(0, 40).equal(embedding));
  llama.tensors.erase("model.embed_tokens.weight");
  llama.tensors["lm_head.weight"] = embedding;
  REQUIRE(llama.model().embed(std::vector<int64_t>{7})[0].equal(embedding[7]));
}

TEST_CASE("embedding rows are those of the ids, and other ids are refused", "[model]") {
  const TinyLlama llama;
  const auto model = llama.model();
  const std::vector<int64_t> ids = {39, 0, 39};
  REQUIRE(model.embed(ids).equal(
      llama.tensors.at("model.embed_tokens.weight").index_select(0, at::tensor(ids, at::kLong))));
  for (const int64_t id : {int64_t{40}, int64_t{-1}}) {
    const auto call = [&] { model.embed(std::vector<int64_t>{id}); };
    REQUIRE_THROWS_AS(call(), InvalidArgument);
    REQUIRE(test::error_text(call) ==
            "[Model::embed] token ids must lie in [0, 40); received " + std::to_string(id));
  }
}

TEST_CASE("NaN and infinite values are refused with their place when a block is loaded", "[model]") {
  TinyLlama llama;
  llama.tensors[std::string(kUp) + ".weight"][3][5] = NAN;
  llama.tensors["model.layers.1.input_layernorm.weight"][2] = INFINITY;
  const auto model = llama.model();
  REQUIRE_THROWS_AS(model.load_block(0), CorruptFile);
  REQUIRE_THAT(test::error_text([&] { model.load_block(0); }),
               Catch::EndsWith("] the tensor '" + std::string(kUp) +
                               ".weight' must hold finite values; the one at [3, 5] is NaN or infinite"));
  REQUIRE_THAT(
      test::error_text([&] { model.load_block(1); }),
      Catch::EndsWith("] the tensor 'model.layers.1.input_layernorm.weight' must hold finite values; "
                      "the one at [2] is NaN or infinite"));
  REQUIRE(model.read_finite("model.norm.weight").equal(llama.tensors["model.norm.weight"]));
}

TEST_CASE("NaN in rows of embedding and head are refused with their place", "[model]") {
  TinyLlama llama;
  llama.tensors["model.embed_tokens.weight"][7][1] = NAN;
  llama.tensors["lm_head.weight"][33][2] = -INFINITY;
  const auto model = llama.model();
  REQUIRE(model.embed(std::vector<int64_t>{6, 8}).sizes() == at::IntArrayRef({2, 16}));
  REQUIRE_THROWS_AS(model.embed(std::vector<int64_t>{6, 7}), CorruptFile);
  REQUIRE_THAT(
      test::error_text([&] { model.embed(std::vector<int64_t>{7}); }),
      Catch::EndsWith("'model.embed_tokens.weight' must hold finite values; the one at [7, 1] is NaN or "
                      "infinite"));
  REQUIRE_THAT(
      test::error_text([&] { model.head_rows(30, 10); }),
      Catch::EndsWith("'lm_head.weight' must hold finite values; the one at [33, 2] is NaN or infinite"));
}

TEST_CASE("a packed operator decodes, and counts as the matrix it stands for", "[model]") {
  const TinyLlama llama = packed_llama();
  const auto model = llama.model();
  const auto dense = TinyLlama().model();
  REQUIRE(model.parameters() == dense.parameters());
  const auto direct = quant::rtn(TinyLlama().tensors.at(std::string(kUp) + ".weight"), {.group_size = 16});
  REQUIRE(model.load_weight(model.architecture().operators(0)[5])->dense().equal(direct.dense()));
}

TEST_CASE("packed operators that contradict config or architecture are refused", "[model]") {
  {
    TinyLlama llama = packed_llama();
    llama.tensors[std::string(kUp) + ".weight"] = at::ones({32, 16});
    REQUIRE(open_error(llama) ==
            "[tiny] the operator '" + std::string(kUp) +
                "' must be dense or pack-quantized; it has both .weight and .weight_packed");
  }
  {
    TinyLlama llama = packed_llama();
    llama.config["quantization_config"]["ignore"] = {kUp};
    REQUIRE(open_error(llama) == "[tiny] '" + std::string(kUp) +
                                     ".weight_packed' must belong to a group of quantization_config with the "
                                     "format pack-quantized; none matches it");
  }
  {
    TinyLlama llama = packed_llama();
    const auto packed = quant::rtn(at::ones({24, 16}), {.group_size = 16}).pack();
    llama.tensors[std::string(kUp) + ".weight_packed"] = packed.packed;
    llama.tensors[std::string(kUp) + ".weight_scale"] = packed.scale;
    llama.tensors[std::string(kUp) + ".weight_shape"] = packed.shape;
    const auto model = llama.model();
    REQUIRE_THROWS_AS(model.load_block(0), CorruptFile);
    REQUIRE_THAT(test::error_text([&] { model.load_block(0); }),
                 Catch::EndsWith("] the pack-quantized weight of '" + std::string(kUp) +
                                 "' must be [32, 16]; it is [24, 16]"));
  }
  {
    TinyLlama llama = packed_llama();
    llama.tensors.erase(std::string(kUp) + ".weight_scale");
    const auto model = llama.model();
    REQUIRE_THAT(test::error_text([&] { model.load_block(0); }), Catch::Contains(".weight_scale"));
  }
}

TEST_CASE("a path that is no model directory is refused", "[model]") {
  const test::TempDir dir;
  const fs::path nothing = dir / "nothing";
  REQUIRE_THROWS_AS(model::Model::open(nothing), CorruptFile);
  REQUIRE(test::error_text([&] { model::Model::open(nothing); }) ==
          "[" + nothing.string() +
              "] the model must be a directory with config.json and safetensors files; it is no directory");
  REQUIRE(test::error_text([&] { model::Model::open(dir.path()); }) ==
          "[" + dir.path().string() + "] the model directory must hold config.json; there is none");
}

TEST_CASE(
    "every golden compressed-tensors model of integers and 8-bit floats decodes and gives the recorded "
    "logits; "
    "the others are refused by name",
    "[model][golden]") {
  const auto root = test::shared_data("golden/formats/compressed_tensors");
  if (!root) {
    WARN("skipped: golden/formats/compressed_tensors is not in LCOMP_TEST_DATA");
    return;
  }
  int64_t checked = 0;
  std::set<std::string> formats;
  for (const auto& entry : fs::directory_iterator(*root)) {
    if (!fs::exists(entry.path() / "expected.safetensors")) continue;
    CAPTURE(entry.path().filename().string());
    auto config = nlohmann::json::parse(io::read_file(entry.path() / "config.json"));
    auto& quantization = config["quantization_config"];
    const std::string format = quantization["format"];
    if (format.starts_with("nvfp4") || format.starts_with("mxfp4")) {
      REQUIRE_THROWS_AS(model::Model::open(entry.path()), Unsupported);
      REQUIRE_THAT(test::error_text([&] { model::Model::open(entry.path()); }),
                   Catch::EndsWith("it is '" + format + "'"));
      continue;
    }
    formats.insert(format);
    // The recorded logits that are compared here are those with exact activations.
    quantization["config_groups"]["group_0"]["input_activations"] = nullptr;
    const model::Model model(config.dump(), io::open_checkpoint(entry.path()), entry.path().string());
    const io::SafetensorsFile expected(entry.path() / "expected.safetensors");
    for (int64_t b = 0; b < model.size(); ++b) {
      for (const auto& op : model.architecture().operators(b)) {
        const std::string exact = "dequant_exact." + op.name + ".weight";
        const std::string plain = "dequant." + op.name + ".weight";
        const std::string wanted = expected.contains(exact) ? exact : plain;
        if (!expected.contains(wanted)) continue;
        REQUIRE(model.load_weight(op)->dense().equal(expected.read(wanted).to(at::kFloat)));
        ++checked;
      }
    }
    const at::Tensor ids = expected.read("input_ids");
    const at::Tensor logits = expected.read("logits_weight_only").to(at::kFloat);
    for (int64_t row = 0; row < ids.size(0); ++row) {
      const at::Tensor one = ids[row].contiguous();
      const std::vector<int64_t> tokens(one.data_ptr<int64_t>(), one.data_ptr<int64_t>() + one.numel());
      const at::Tensor ours = test::logits_of(model, tokens, expected_rounding(model));
      const double off = (ours - logits[row]).abs().max().item<double>();
      REQUIRE(off <= 1e-4 * std::max(1.0, logits[row].abs().max().item<double>()));
    }
  }
  REQUIRE(checked >= 36);
  REQUIRE(formats == std::set<std::string>{"pack-quantized", "int-quantized", "float-quantized"});
}
