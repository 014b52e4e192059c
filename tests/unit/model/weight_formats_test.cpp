// Every way of storing a weight, through a model that has one operator stored so.
#include "model/weight_formats.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cstring>

#include "lcomp/core/error.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using quant::Granularity;
using quant::NumberFormat;
using quant::QuantScheme;
using test::TinyLlama;

namespace {

const std::string kUp = "model.layers.0.mlp.up_proj";
const std::string kState = kUp + ".weight.quant_state.bitsandbytes__nf4";

class StoreInto final : public TensorSink {
 public:
  explicit StoreInto(TinyLlama& llama) : llama_(llama) {}
  void add(const std::string& name, const at::Tensor& tensor) override { llama_.tensors[name] = tensor; }
  void add_float8_e4m3(const std::string& name, const at::Tensor& codes) override {
    add(name, codes);
    llama_.float8.insert(name);
  }

 private:
  TinyLlama& llama_;
};

void set_group(TinyLlama& llama, model::StorageGroup group) {
  group.targets = {kUp};
  model::QuantizationConfig config;
  config.groups = {std::move(group)};
  llama.config["quantization_config"] = nlohmann::json::parse(config.to_json());
}

quant::QuantizedWeight rounded(const QuantScheme& scheme) {
  return quant::rtn(TinyLlama().tensors.at(kUp + ".weight"), scheme);
}

/// The tiny model with one operator as the weight saves itself.
TinyLlama stored(const QuantScheme& scheme) {
  TinyLlama llama;
  const quant::QuantizedWeight weight = rounded(scheme);
  llama.tensors.erase(kUp + ".weight");
  StoreInto sink(llama);
  weight.save(sink, kUp);
  set_group(llama, *model::storage_group(weight));
  return llama;
}

WeightPtr load_up(const model::Model& model) {
  return model.load_weight(model.architecture().operators(0)[5]);
}

TinyLlama nf4_llama(bool nested = false) {
  return stored({.format = NumberFormat::kNf4, .group_size = 8, .double_quant = nested});
}

/// The error of loading the operator after `spoil`.
std::string load_error(TinyLlama llama, const std::function<void(TinyLlama&)>& spoil) {
  for (auto& [name, tensor] : llama.tensors) tensor = tensor.clone();  // others may share them
  spoil(llama);
  return test::error_text([&] { load_up(llama.model()); });
}

at::Tensor bytes_of_text(const std::string& text) {
  at::Tensor bytes = at::empty({static_cast<int64_t>(text.size())}, at::kByte);
  std::memcpy(bytes.data_ptr<uint8_t>(), text.data(), text.size());
  return bytes;
}

}  // namespace

TEST_CASE("every kind of weight reads back as what was saved", "[model][formats]") {
  const auto check = [](const QuantScheme& scheme, const std::string& format) {
    CAPTURE(scheme.describe(), format);
    const auto model = stored(scheme).model();
    const auto ops = model.architecture().operators(0);
    const auto& op = ops[5];
    REQUIRE(model.group_of(op)->format == format);
    REQUIRE(model.group_of(model.architecture().operators(1)[5]) == nullptr);
    REQUIRE(load_up(model)->dense().equal(rounded(scheme).dense()));
    REQUIRE(load_up(model)->bytes() == rounded(scheme).bytes());
    REQUIRE(model.parameters() == TinyLlama().model().parameters());
    REQUIRE_NOTHROW(model.load_block(0));
  };
  for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
    check({.bits = 3, .symmetric = false, .granularity = granularity, .group_size = 8}, "pack-quantized");
    check({.format = NumberFormat::kFp8E4m3, .granularity = granularity, .group_size = 8}, "float-quantized");
    check({.format = NumberFormat::kNf4, .granularity = granularity, .group_size = 8}, "lcomp-nf4");
    check({.format = NumberFormat::kNf4, .granularity = granularity, .group_size = 8, .double_quant = true},
          "lcomp-nf4");
  }
  REQUIRE_FALSE(model::storage_group(DenseWeight(at::ones({2, 2}))));
}

TEST_CASE("integers of a byte each and scales of blocks are read", "[model][formats]") {
  const QuantScheme scheme{.bits = 8, .symmetric = false, .group_size = 8};
  TinyLlama llama;
  StoreInto sink(llama);
  const quant::QuantizedWeight weight = rounded(scheme);
  weight.save_plain(sink, kUp);
  set_group(llama, {{}, scheme, "int-quantized"});
  REQUIRE(load_up(llama.model())->dense().equal(weight.dense()));

  // One scale for 5 rows and 8 columns: the last block has 2 of the 32 rows.
  const QuantScheme symmetric{.bits = 8, .group_size = 8};
  llama.tensors[kUp + ".weight_scale"] = at::arange(1, 15, at::kFloat).reshape({7, 2});
  llama.tensors.erase(kUp + ".weight_zero_point");
  set_group(llama, {{}, symmetric, "int-quantized", 5});
  const at::Tensor scale =
      llama.tensors[kUp + ".weight_scale"].repeat_interleave(5, 0).narrow(0, 0, 32).repeat_interleave(8, 1);
  REQUIRE(load_up(llama.model())->dense().equal(weight.codes().to(at::kFloat) * scale));
}

TEST_CASE("an operator whose tensors are not what its group says is refused", "[model][formats]") {
  const auto open_error = [](const TinyLlama& llama) {
    REQUIRE_THROWS_AS(llama.model(), CorruptFile);
    return test::error_text([&] { llama.model(); });
  };
  TinyLlama codes = stored({.format = NumberFormat::kFp8E4m3, .group_size = 8});
  codes.config.erase("quantization_config");
  REQUIRE(open_error(codes) == "[tiny] '" + kUp +
                                   ".weight' must belong to a group of quantization_config with the format "
                                   "float-quantized; none matches it");
  set_group(codes, {{}, {.bits = 8, .group_size = 8}, "int-quantized"});
  REQUIRE_THAT(open_error(codes), Catch::Contains("with the format float-quantized; none matches it"));
  TinyLlama nf4 = nf4_llama();
  set_group(nf4, {{}, {.group_size = 8}});
  REQUIRE_THAT(open_error(nf4), Catch::Contains("with the format lcomp-nf4; none matches it"));
}

TEST_CASE("broken NF4 weights are refused by the tensor that is broken", "[model][formats][corrupt]") {
  const auto state_error = [](const std::string& text) {
    return load_error(nf4_llama(), [&](TinyLlama& llama) { llama.tensors[kState] = bytes_of_text(text); });
  };
  REQUIRE_THAT(state_error("{"), Catch::StartsWith("[" + kState));
  REQUIRE_THAT(state_error("{}"), Catch::StartsWith("[" + kState) && Catch::Contains("quant_type"));
  REQUIRE(state_error(R"({"quant_type": "fp4"})") == "[" + kState + "] quant_type must be nf4; it is 'fp4'");
  REQUIRE(state_error(R"({"quant_type": "nf4", "shape": [32]})") ==
          "[" + kState + "] shape must hold out and in; it has 1 numbers");
  REQUIRE_THAT(state_error(R"({"quant_type": "nf4", "shape": [32, -16], "blocksize": 8})"),
               Catch::StartsWith("[" + kState + ": /shape"));
  REQUIRE_THAT(state_error(R"({"quant_type": "nf4", "shape": [32, 16], "blocksize": 0})"),
               Catch::StartsWith("[" + kState + ": /blocksize"));
  REQUIRE(state_error(R"({"quant_type": "nf4", "shape": [32, 17], "blocksize": 8})") ==
          "[" + kUp + ".weight] must hold 272 bytes for [32, 17]; it has 256");
  REQUIRE_THAT(state_error(R"({"quant_type": "nf4", "shape": [16, 32], "blocksize": 8})"),
               Catch::EndsWith("the lcomp-nf4 weight of '" + kUp + "' must be [32, 16]; it is [16, 32]"));
  REQUIRE(state_error(R"({"quant_type": "nf4", "shape": [32, 16], "blocksize": 8, "nested_offset": 1,
                          "nested_blocksize": 128})") ==
          "[" + kState + "] nested_blocksize must be 256; it is 128");
  REQUIRE(load_error(nf4_llama(), [](TinyLlama& llama) {
            llama.tensors[kUp + ".weight.quant_map"].neg_();
          }) == "[" + kUp + ".weight.quant_map] must hold the 16 values of NF4; it holds others");
  for (const std::string part : {".weight", ".weight.absmax", ".weight.quant_map"}) {
    CAPTURE(part);
    REQUIRE_THAT(load_error(nf4_llama(), [&](TinyLlama& llama) { llama.tensors.erase(kUp + part); }),
                 Catch::Contains(kUp + part));
  }
  REQUIRE_THAT(load_error(nf4_llama(true),
                          [](TinyLlama& llama) { llama.tensors.erase(kUp + ".weight.nested_quant_map"); }),
               Catch::Contains("nested_quant_map"));
}

TEST_CASE("broken weights of a byte each are refused by the tensor that is broken",
          "[model][formats][corrupt]") {
  const TinyLlama good = stored({.format = NumberFormat::kFp8E4m3, .group_size = 8});
  REQUIRE(load_error(good, [](TinyLlama& llama) { llama.tensors[kUp + ".weight"][3][4] = 0x7F; }) ==
          "[" + kUp + ".weight] E4M3 numbers must be finite; one is NaN");
  REQUIRE_THAT(load_error(good, [](TinyLlama& llama) { llama.tensors[kUp + ".weight_scale"][3][1] = NAN; }),
               Catch::EndsWith("must hold finite values; the one at [3, 1] is NaN or infinite"));
  REQUIRE_THAT(load_error(good, [](TinyLlama& llama) { llama.tensors.erase(kUp + ".weight_scale"); }),
               Catch::Contains(".weight_scale"));
  REQUIRE_THAT(load_error(good,
                          [](TinyLlama& llama) {
                            llama.tensors[kUp + ".weight_scale"] = at::ones({32, 3});
                          }),
               Catch::StartsWith("[" + kUp + ".weight_scale] must be [32, 2] of a floating-point type"));
}
