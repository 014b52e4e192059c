// Code books in a checkpoint: lcomp's own format `lcomp-codebook`.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/quant/squeezellm.h"
#include "model/weight_formats.h"
#include "support/error_text.h"
#include "support/tensor_map.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using test::TinyLlama;

namespace {

const std::string kUp = "model.layers.0.mlp.up_proj";

quant::CodebookWeight coded(const at::Tensor& weight) {
  return quant::squeezellm(weight, at::ones_like(weight), {.bits = 3, .outliers = 0.01}).weight;
}

/// The tiny model with one operator as a code book.
TinyLlama codebook_llama() {
  test::TensorMap saved;
  TinyLlama llama;
  const quant::CodebookWeight weight = coded(llama.tensors.at(kUp + ".weight"));
  llama.tensors.erase(kUp + ".weight");
  weight.save(saved, kUp);
  llama.tensors.merge(saved.all);
  model::QuantizationConfig config;
  config.groups = {*model::storage_group(weight)};
  config.groups[0].targets = {kUp};
  llama.config["quantization_config"] = nlohmann::json::parse(config.to_json());
  return llama;
}

}  // namespace

TEST_CASE("an operator stored as a code book is read and counts as its matrix", "[model][codebook]") {
  const TinyLlama llama = codebook_llama();
  REQUIRE(llama.config["quantization_config"]["quant_method"] == "lcomp");
  REQUIRE(llama.config["quantization_config"]["format"] == "lcomp-codebook");
  const auto model = llama.model();
  REQUIRE(model.parameters() == TinyLlama().model().parameters());
  const WeightPtr weight = model.load_weight(model.architecture().operators(0)[5]);
  const quant::CodebookWeight expected = coded(TinyLlama().tensors.at(kUp + ".weight"));
  REQUIRE(weight->dense().equal(expected.dense()));
  REQUIRE(weight->describe() == expected.describe());
  REQUIRE(test::logits_of(model, {3, 1, 4}).isfinite().all().item<bool>());
}

TEST_CASE("damaged code books of a checkpoint are refused when they are read", "[model][codebook]") {
  const auto refusal = [](const TinyLlama& llama) {
    const auto model = llama.model();
    REQUIRE_THROWS_AS(model.load_block(0), CorruptFile);
    return test::error_text([&] { model.load_block(0); });
  };
  {
    TinyLlama llama = codebook_llama();
    llama.tensors[kUp + ".weight_sparse_columns"][0] = -4;
    REQUIRE_THAT(refusal(llama), Catch::StartsWith("[" + kUp + ".weight_sparse_columns] must ascend"));
  }
  {
    TinyLlama llama = codebook_llama();
    llama.config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 4;
    REQUIRE_THAT(refusal(llama), Catch::StartsWith("[" + kUp + ".weight_codebook] must be float32, "));
  }
  {
    TinyLlama llama = codebook_llama();
    llama.tensors.erase(kUp + ".weight_codebook");
    REQUIRE_THAT(refusal(llama), Catch::Contains(kUp + ".weight_codebook"));
  }
  TinyLlama llama = codebook_llama();
  llama.config.erase("quantization_config");
  REQUIRE_THAT(test::error_text([&] { llama.model(); }),
               Catch::Contains("'" + kUp +
                               ".weight_codes' must belong to a group of quantization_config with "
                               "the format lcomp-codebook"));
}
