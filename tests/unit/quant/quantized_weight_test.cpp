#include "lcomp/quant/quantized_weight.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <map>

#include "lcomp/core/rng.h"
#include "lcomp/quant/packing.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"

using namespace lcomp::quant;
using lcomp::test::error_text;

namespace {

class MapSink final : public lcomp::TensorSink {
 public:
  void add(const std::string& name, const at::Tensor& tensor) override { tensors[name] = tensor; }
  void add_float8_e4m3(const std::string& name, const at::Tensor& codes) override { tensors[name] = codes; }
  int64_t bytes() const {
    int64_t total = 0;
    for (const auto& [name, tensor] : tensors) total += tensor.numel() * tensor.element_size();
    return total;
  }
  std::map<std::string, at::Tensor> tensors;
};

at::Tensor random_weight(int64_t out, int64_t in) {
  lcomp::Rng rng(3, "quantized_weight");
  at::Tensor weight = at::empty({out, in}, at::kFloat);
  for (int64_t i = 0; i < weight.numel(); ++i) weight.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return weight;
}

/// 4-bit asymmetric [6, 32] in groups of 16.
QuantizedWeight small_weight() {
  return rtn(random_weight(6, 32), {.bits = 4, .symmetric = false, .group_size = 16});
}

}  // namespace

TEST_CASE("what is saved reads back as the same weight, and bytes() is its exact size", "[quant][weight]") {
  for (int64_t bits = 2; bits <= 8; ++bits) {
    for (const bool symmetric : {true, false}) {
      for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
        for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
          const QuantScheme scheme{
              .bits = bits, .symmetric = symmetric, .granularity = granularity, .group_size = 8};
          CAPTURE(scheme.describe(), lcomp::quant::packed_words(24, static_cast<int>(bits)));
          const QuantizedWeight weight = rtn(random_weight(5, 24).to(type), scheme);
          MapSink sink;
          weight.save(sink, "op");
          REQUIRE(sink.bytes() == weight.bytes());
          REQUIRE(sink.tensors.count("op.weight_zero_point") == (symmetric ? 0u : 1u));
          REQUIRE(sink.tensors.at("op.weight_scale").scalar_type() == type);
          const QuantizedWeight read = QuantizedWeight::from_packed(weight.pack(), scheme, "op");
          REQUIRE(read.codes().equal(weight.codes()));
          REQUIRE(read.dense().equal(weight.dense()));
        }
      }
    }
  }
}

TEST_CASE("dense is (q - z) s", "[quant][weight]") {
  const QuantScheme scheme{.bits = 4, .symmetric = false, .group_size = 2};
  const QuantizedWeight weight(scheme, at::tensor({-8, 7, 3, 0}, at::kInt).to(at::kChar).reshape({1, 4}),
                               at::tensor({0.5, 0.25}, at::kFloat).reshape({1, 2}),
                               at::tensor({-8, 1}, at::kInt).to(at::kChar).reshape({1, 2}));
  REQUIRE(weight.dense().equal(at::tensor({0.0, 7.5, 0.5, -0.25}, at::kFloat).reshape({1, 4})));
  REQUIRE(weight.describe() == "int4 asymmetric, groups of 2");
  REQUIRE(weight.out_features() == 1);
  REQUIRE(weight.in_features() == 4);
  const at::Tensor x = at::tensor({1.0, 2.0, 4.0, 8.0}, at::kFloat).reshape({1, 4});
  REQUIRE(weight.apply(x).item<float>() == 15.0f);
}

TEST_CASE("a group index tells which group a column belongs to", "[quant][weight]") {
  const QuantScheme scheme{.bits = 4, .group_size = 2};
  const at::Tensor codes = at::tensor({1, 1, 1, 1}, at::kInt).to(at::kChar).reshape({1, 4});
  const at::Tensor scale = at::tensor({2.0, 3.0}, at::kFloat).reshape({1, 2});
  const QuantizedWeight weight(scheme, codes, scale, {}, at::tensor({1, 0, 1, 0}, at::kInt));
  REQUIRE(weight.dense().equal(at::tensor({3.0, 2.0, 3.0, 2.0}, at::kFloat).reshape({1, 4})));
  REQUIRE(weight.bytes() == packed_bytes(scheme, 1, 4, at::kFloat) + 16);
  PackedTensors stored = weight.pack();
  REQUIRE(QuantizedWeight::from_packed(stored, scheme, "op").dense().equal(weight.dense()));
  stored.group_index = at::tensor({-1, -1, -1, -1}, at::kInt);
  REQUIRE(QuantizedWeight::from_packed(stored, scheme, "op")
              .dense()
              .equal(at::tensor({2.0, 2.0, 3.0, 3.0}, at::kFloat).reshape({1, 4})));
}

TEST_CASE("parts that disagree with the scheme are refused", "[quant][weight]") {
  const QuantizedWeight good = small_weight();
  const QuantScheme scheme = good.scheme();
  const auto text = [&](const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& zero,
                        const at::Tensor& index = {}) {
    return error_text([&] { QuantizedWeight(scheme, codes, scale, zero, index); });
  };
  REQUIRE(text(good.codes().to(at::kInt), good.scale(), good.zero()) ==
          "[QuantizedWeight] codes must be an int8 matrix [out, in]; received [6, 32] of int32");
  REQUIRE(text(at::full({6, 32}, 9, at::kChar), good.scale(), good.zero()) ==
          "[QuantizedWeight] codes must be in [-8, 7]; received [9, 9]");
  REQUIRE(text(good.codes(), good.scale().t(), good.zero()) ==
          "[QuantizedWeight] scales must be [6, 2] of a floating-point type; received [2, 6] of float32");
  REQUIRE(text(good.codes(), good.scale(), {}) ==
          "[QuantizedWeight] an asymmetric scheme must have zero points; received none");
  REQUIRE(text(good.codes(), good.scale(), good.zero().to(at::kInt)) ==
          "[QuantizedWeight] zero points must be [6, 2] of int8; received [6, 2] of int32");
  REQUIRE(text(good.codes(), good.scale(), good.zero(), at::zeros({31}, at::kInt)) ==
          "[QuantizedWeight] the group index must be [32] of int32; received [31] of int32");
  QuantScheme symmetric = scheme;
  symmetric.symmetric = true;
  REQUIRE(error_text([&] { QuantizedWeight(symmetric, good.codes(), good.scale(), good.zero()); }) ==
          "[QuantizedWeight] a symmetric scheme must have no zero points; received some");
}

TEST_CASE("stored tensors that disagree are refused by the tensor's name", "[quant][weight]") {
  const QuantizedWeight good = small_weight();
  const auto text = [&](auto&& spoil, bool symmetric = false) {
    PackedTensors stored = good.pack();
    spoil(stored);
    QuantScheme scheme = good.scheme();
    scheme.symmetric = symmetric;
    return error_text([&] { QuantizedWeight::from_packed(stored, scheme, "layers.0.q"); });
  };
  REQUIRE(text([](PackedTensors&) {}) == "nothing was thrown");

  REQUIRE(text([](PackedTensors& t) { t.shape.reset(); }) ==
          "[layers.0.q.weight_shape] a packed weight must have its shape; the tensor is missing");
  REQUIRE(text([](PackedTensors& t) { t.shape = at::ones({3}, at::kLong); }) ==
          "[layers.0.q.weight_shape] must hold two integers, out and in; it has [3] of int64");
  REQUIRE(text([](PackedTensors& t) {
            t.shape = at::tensor({6, -32}, at::kLong);
          }) == "[layers.0.q.weight_shape] out and in must be positive and below 2^31; they are 6 and -32");

  REQUIRE(text([](PackedTensors& t) { t.packed.reset(); }) ==
          "[layers.0.q.weight_packed] a packed weight must have its codes; the tensor is missing");
  REQUIRE(text([](PackedTensors& t) { t.packed = t.packed.narrow(1, 0, 3); }) ==
          "[layers.0.q.weight_packed] must be [6, 4] of int32, as weight_shape and 4 bits ask; it has [6, 3] "
          "of int32");

  REQUIRE(text([](PackedTensors& t) { t.scale.reset(); }) ==
          "[layers.0.q.weight_scale] a packed weight must have its scales; the tensor is missing");
  REQUIRE(
      text([](PackedTensors& t) {
        t.scale = at::ones({6, 3});
      }) ==
      "[layers.0.q.weight_scale] must be [6, 2] of a floating-point type, as 'int4 asymmetric, groups of 16' "
      "asks; it has [6, 3] of float32");
  REQUIRE(text([](PackedTensors& t) {
            t.scale = at::full({6, 2}, std::numeric_limits<float>::infinity());
          }) == "[layers.0.q.weight_scale] scales must be finite; one is not");

  REQUIRE(text([](PackedTensors& t) { t.zero_point.reset(); }) ==
          "[layers.0.q.weight_zero_point] an asymmetric scheme must have zero points; the tensor is missing");
  REQUIRE(text([](PackedTensors& t) {
            t.zero_point = at::zeros({2, 2}, at::kInt);
          }) ==
          "[layers.0.q.weight_zero_point] must be [1, 2] of int32 (packed along the rows); it has [2, 2] of "
          "int32");
  REQUIRE(text([](PackedTensors& t) {
            t.zero_point = at::full({6, 2}, 100, at::kChar);
          }) == "[layers.0.q.weight_zero_point] zero points must fit 4 bits; one does not");
  REQUIRE(text([](PackedTensors&) {}, true) ==
          "[layers.0.q.weight_zero_point] a symmetric scheme must have zero points of 0; one differs");
  REQUIRE(text(
              [](PackedTensors& t) {
                t.zero_point = pack_codes(at::zeros({6, 2}, at::kChar), 4, 0);
              },
              true) == "nothing was thrown");

  REQUIRE(text([](PackedTensors& t) { t.group_index = at::zeros({31}, at::kInt); }) ==
          "[layers.0.q.weight_g_idx] must hold the group of each of the 32 columns; it has [31] of int32");
  REQUIRE(text([](PackedTensors& t) { t.group_index = at::arange(32, at::kInt); }) ==
          "[layers.0.q.weight_g_idx] groups must be in [0, 1]; they are in [0, 31]");
}

TEST_CASE("codes of a byte each read back as the same weight", "[quant][weight]") {
  for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
    for (const bool symmetric : {true, false}) {
      const QuantScheme scheme{
          .bits = 8, .symmetric = symmetric, .granularity = granularity, .group_size = 8};
      const QuantizedWeight weight = rtn(random_weight(5, 24), scheme);
      MapSink sink;
      weight.save_plain(sink, "op");
      REQUIRE(sink.tensors.at("op.weight").equal(weight.codes()));
      const at::Tensor zero = symmetric ? at::Tensor() : sink.tensors.at("op.weight_zero_point");
      const PlainTensors plain{sink.tensors.at("op.weight"), sink.tensors.at("op.weight_scale"), zero};
      REQUIRE(QuantizedWeight::from_plain(plain, scheme, "op").dense().equal(weight.dense()));
    }
  }
}

TEST_CASE("a weight of 8-bit floats is its numbers times the scale, and is saved as bytes",
          "[quant][weight]") {
  const QuantScheme scheme{.format = NumberFormat::kFp8E4m3, .granularity = Granularity::kChannel};
  const at::Tensor codes = at::tensor({0x38, -0x48, 0x7E, 1}, at::kInt).to(at::kChar).reshape({2, 2});
  const QuantizedWeight weight(scheme, codes, at::tensor({0.5, 2.0}, at::kFloat).reshape({2, 1}));
  REQUIRE(weight.dense().equal(at::tensor({0.5, -0.5, 896.0, 0x1p-8}, at::kFloat).reshape({2, 2})));
  REQUIRE(weight.describe() == "fp8_e4m3, per channel");
  MapSink sink;
  weight.save(sink, "op");
  REQUIRE(sink.tensors.size() == 2);
  REQUIRE(sink.bytes() == weight.bytes());
  const PlainTensors plain{
      sink.tensors.at("op.weight").view(at::kByte), sink.tensors.at("op.weight_scale"), {}};
  REQUIRE(QuantizedWeight::from_plain(plain, scheme, "op").dense().equal(weight.dense()));
  REQUIRE(error_text([&] {
            QuantizedWeight(scheme, at::full({2, 2}, 0x7F, at::kChar), weight.scale());
          }) == "[QuantizedWeight] codes of E4M3 must be finite; received NaN (0x7F or 0xFF)");
}

TEST_CASE("codes of a byte each that disagree are refused by the tensor's name", "[quant][weight]") {
  const QuantScheme eight{.bits = 8, .group_size = 16};
  const QuantizedWeight good = rtn(random_weight(6, 32), eight);
  const auto text = [&](const QuantScheme& scheme, const PlainTensors& plain) {
    return error_text([&] { QuantizedWeight::from_plain(plain, scheme, "q"); });
  };
  REQUIRE(text(eight, {good.codes(), good.scale(), {}}) == "nothing was thrown");
  REQUIRE(text(eight, {{}, good.scale(), {}}) ==
          "[q.weight] a quantized weight must have its codes; the tensor is missing");
  REQUIRE(text(eight, {good.codes().to(at::kInt), good.scale(), {}}) ==
          "[q.weight] must be a matrix of bytes [out, in]; it has [6, 32] of int32");
  REQUIRE(text({.bits = 4, .group_size = 16}, {at::full({6, 32}, 8, at::kChar), good.scale(), {}}) ==
          "[q.weight] codes must fit 4 bits; one does not");
  const QuantScheme fp8{.format = NumberFormat::kFp8E4m3, .group_size = 16};
  REQUIRE(text(fp8, {at::full({6, 32}, 0xFF, at::kByte), good.scale(), {}}) ==
          "[q.weight] E4M3 numbers must be finite; one is NaN");
  REQUIRE(
      text(eight, {good.codes(), good.scale().narrow(0, 0, 3), {}}) ==
      "[q.weight_scale] must be [6, 2] of a floating-point type, as 'int8 symmetric, groups of 16' asks; it "
      "has [3, 2] of float32");
}
