// Checkpoints whose operators round their input: those of the reference library, and damaged ones.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/quant/llm_int8.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/rounding_weight.h"
#include "support/tensor_map.h"
#include "support/test_data.h"
#include "support/tiny_llama.h"

using namespace lcomp;

namespace {

at::Tensor logits(const model::Model& model, const at::Tensor& ids) {
  std::vector<at::Tensor> rows;
  for (int64_t b = 0; b < ids.size(0); ++b) {
    const at::Tensor row = ids[b].contiguous();
    rows.push_back(test::logits_of(model, {row.data_ptr<int64_t>(), row.data_ptr<int64_t>() + row.numel()}));
  }
  return at::stack(rows);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

const std::string kOperator = "model.layers.0.self_attn.q_proj";

/// A tiny model with one stored operator, and what its config says of it.
model::Model with_operator(const Weight& weight, const nlohmann::json& group, const std::string& method,
                           const std::function<void(std::map<std::string, at::Tensor>&)>& damage = {},
                           const std::string& name = kOperator) {
  test::TinyLlama tiny;
  tiny.tensors.erase(name + ".weight");
  test::TensorMap saved;
  weight.save(saved, name);
  tiny.tensors.merge(saved.all);
  if (damage) damage(tiny.tensors);
  tiny.config["quantization_config"] = {
      {"quant_method", method}, {"format", group.at("format")}, {"config_groups", {{"group_0", group}}}};
  return tiny.model();
}

nlohmann::json group_of(const char* format) {
  return {{"targets", {kOperator}},
          {"format", format},
          {"weights", {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}}}};
}

quant::QuantizedInputWeight static_weight() {
  quant::ActivationScheme scheme;
  scheme.symmetric = false;
  scheme.granularity = quant::ActivationGranularity::kTensor;
  scheme.dynamic = false;
  return {quant::rtn(test::normal_matrix(16, 16, "q").to(at::kFloat),
                     {.bits = 8, .granularity = quant::Granularity::kChannel}),
          scheme, quant::ActivationGrid{0.05F, -7}};
}

nlohmann::json static_group() {
  auto group = group_of("int-quantized");
  group["input_activations"] = {
      {"num_bits", 8}, {"type", "int"}, {"symmetric", false}, {"strategy", "tensor"}, {"dynamic", false}};
  return group;
}

WeightPtr load(const model::Model& model) {
  return model.load_weight(model.architecture().operators(0).at(0));
}

}  // namespace

TEST_CASE("checkpoints of the reference library give its logits, with rounded inputs too",
          "[model][golden]") {
  const auto root = test::shared_data("golden/formats/compressed_tensors");
  if (!root) {
    WARN("skipped: no golden/formats/compressed_tensors");
    return;
  }
  for (const char* name : {"w8a8_int_dynamic", "fp8_channel_dynamic", "w8a8_int_asym_tensor"}) {
    CAPTURE(name);
    const model::Model model = model::Model::open(*root / name);
    const io::SafetensorsFile expected(*root / name / "expected.safetensors");
    const at::Tensor ids = expected.read("input_ids");
    const WeightPtr weight = model.load_weight(model.architecture().operators(0).at(0));
    if (!expected.contains("logits_activation_quant")) {
      REQUIRE_FALSE(weight->quantizes_input());
      REQUIRE(largest_difference(logits(model, ids), expected.read("logits_weight_only")) < 1e-4);
      continue;
    }
    REQUIRE(weight->quantizes_input());
    REQUIRE(largest_difference(logits(model, ids), expected.read("logits_activation_quant")) < 5e-3);
    // The weights alone, as the reference decodes them.
    const model::OperatorInfo op = model.architecture().operators(0).at(0);
    REQUIRE(weight->dense().equal(expected.read("dequant." + op.name + ".weight")));
  }
}

TEST_CASE("static ranges are read back with the weight", "[model][quantization]") {
  const quant::QuantizedInputWeight weight = static_weight();
  const WeightPtr back = load(with_operator(weight, static_group(), "compressed-tensors"));
  const auto* read = dynamic_cast<const quant::QuantizedInputWeight*>(back.get());
  REQUIRE(read != nullptr);
  REQUIRE(read->grid() == weight.grid());
  REQUIRE(read->describe() == weight.describe());
  const at::Tensor x = test::normal_matrix(5, 16, "x").to(at::kFloat);
  REQUIRE(read->apply(x).equal(weight.apply(x)));
}

TEST_CASE("an embedding that rounds its input is refused", "[model][quantization]") {
  const std::string name = "model.embed_tokens";
  auto group = group_of("int-quantized");
  group["targets"] = {name};
  group["input_activations"] = {
      {"num_bits", 8}, {"type", "int"}, {"symmetric", true}, {"strategy", "token"}, {"dynamic", true}};
  const auto open = [&] {
    with_operator(*test::rounding_weight(40, 16), group, "compressed-tensors", {}, name);
  };
  REQUIRE_THROWS_AS(open(), CorruptFile);
  REQUIRE(test::error_text(open) == "[tiny] '" + name + "' must not round its input; it does");
}

TEST_CASE("damaged static ranges are refused", "[model][quantization]") {
  const auto refusal = [](const std::string& tensor, const at::Tensor& value) {
    return test::error_text([&] {
      load(with_operator(static_weight(), static_group(), "compressed-tensors",
                         [&](auto& tensors) { tensors[kOperator + tensor] = value; }));
    });
  };
  REQUIRE(refusal(".input_scale", at::ones({2})) ==
          "[" + kOperator + ".input_scale] must hold one number; it has 2");
  REQUIRE(refusal(".input_scale", at::zeros({1})) ==
          "[" + kOperator + ".input_scale] must be positive; it is 0");
  REQUIRE(refusal(".input_zero_point", at::full({1}, 200, at::kShort)) ==
          "[" + kOperator + ".input_zero_point] must lie in [-128, 127]; it is 200");
}

TEST_CASE("LLM.int8() weights are read back, and damaged ones refused", "[model][quantization]") {
  at::Tensor found = at::zeros({16}, at::kBool);
  found[3] = true;
  quant::LlmInt8Options options;
  options.threshold = 2.5;
  options.outlier_maximum = quant::OutlierMaximum::kElements;
  const quant::OutlierInt8Weight weight =
      quant::llm_int8(test::normal_matrix(16, 16, "q").to(at::kFloat), options, found, at::kFloat);
  auto group = group_of("lcomp-llm-int8");
  group["lcomp"] = {{"threshold", 2.5}, {"outlier_weights", 0}, {"outlier_maximum", 1}};
  const WeightPtr back = load(with_operator(weight, group, "lcomp"));
  const at::Tensor x = test::normal_matrix(5, 16, "x").to(at::kFloat) * 2;
  REQUIRE(back->apply(x).equal(weight.apply(x)));
  REQUIRE(back->describe() == weight.describe());

  const auto refusal = [&](const nlohmann::json& numbers, const std::string& tensor = "",
                           const at::Tensor& value = {}) {
    auto changed = group;
    if (numbers.is_object()) changed["lcomp"].update(numbers);
    return test::error_text([&] {
      load(with_operator(weight, changed, "lcomp", [&](auto& tensors) {
        if (!tensor.empty()) tensors[kOperator + tensor] = value;
      }));
    });
  };
  REQUIRE(refusal({{"outlier_weights", 3}}) ==
          "[" + kOperator + "] the group's 'outlier_weights' must be a whole number below 3");
  REQUIRE(refusal({{"outlier_maximum", 0.5}}) ==
          "[" + kOperator + "] the group's 'outlier_maximum' must be a whole number below 2");
  REQUIRE_THAT(refusal({{"threshold", 0}}), Catch::Contains("threshold must be in [1e-06, 1000000000]"));
  REQUIRE_THAT(refusal({}, ".weight_outlier_index", at::tensor({16}, at::kInt)),
               Catch::StartsWith("[" + kOperator + "] the stored parts must fit together; ") &&
                   Catch::EndsWith("outlier columns must ascend and be below 16; 16 came after -1"));
  group["lcomp"].erase("threshold");
  REQUIRE(refusal(nlohmann::json::object()) ==
          "[" + kOperator + "] the group must have a 'threshold'; there is none");
}
