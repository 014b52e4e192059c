#include "lcomp/quant/nf4_storage.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/io/safetensors.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::TensorMap;

namespace {

int64_t bytes_of(const TensorMap& saved) {
  int64_t total = 0;
  for (const auto& [name, tensor] : saved.all) total += static_cast<int64_t>(tensor.nbytes());
  return total;
}

QuantizedWeight nf4_weight(int64_t out, int64_t in, const QuantScheme& scheme) {
  return rtn(normal_matrix(out, in, "weight"), scheme);
}

/// The tensors of a saved weight as a reader finds them.
Nf4Tensors stored(const QuantizedWeight& weight, int64_t block_size) {
  TensorMap sink;
  save_nf4(weight, sink, "op");
  Nf4Tensors t;
  t.out = weight.out_features();
  t.in = weight.in_features();
  t.block_size = block_size;
  t.packed = sink.all.at("op.weight");
  if (sink.all.contains("op.weight.nested_absmax")) {
    t.nested = weight.nested_scales();
    t.nested.codes = sink.all.at("op.weight.absmax");
    t.nested.absmax = sink.all.at("op.weight.nested_absmax");
    t.nested.map = sink.all.at("op.weight.nested_quant_map");
  } else {
    t.absmax = sink.all.at("op.weight.absmax");
  }
  return t;
}

}  // namespace

TEST_CASE("saved NF4 weights read back as the same weight, and their size is known beforehand",
          "[quant][nf4]") {
  for (const bool nested : {false, true}) {
    for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
      const QuantScheme scheme{
          .format = NumberFormat::kNf4, .granularity = granularity, .group_size = 8, .double_quant = nested};
      CAPTURE(scheme.describe());
      const QuantizedWeight weight = nf4_weight(25, 24, scheme);
      TensorMap sink;
      weight.save(sink, "op");
      REQUIRE(sink.all.size() == (nested ? 6 : 4));
      REQUIRE(bytes_of(sink) == nf4_bytes(scheme, 25, 24));
      REQUIRE(weight.bytes() == bytes_of(sink));
      const int64_t block = 25 * 24 / weight.scale().numel();
      const auto back = from_nf4(stored(weight, block), "op");
      REQUIRE(back->dense().equal(weight.dense()));
      TensorMap again;
      back->save(again, "op");
      for (const auto& [name, tensor] : sink.all) REQUIRE(again.all.at(name).equal(tensor));
    }
  }
}

TEST_CASE("the first code of a pair is in the upper half of its byte, and a state says how to read it",
          "[quant][nf4]") {
  const QuantScheme scheme{.format = NumberFormat::kNf4, .group_size = 4};
  const at::Tensor codes = at::tensor({0, 15, 7, 8}, at::kInt).to(at::kChar).reshape({1, 4});
  const QuantizedWeight weight(scheme, codes, at::ones({1, 1}));
  TensorMap sink;
  weight.save(sink, "op");
  REQUIRE(sink.all.at("op.weight").equal(at::tensor({0x0F, 0x78}, at::kInt).to(at::kByte).reshape({2, 1})));
  const at::Tensor state = sink.all.at("op.weight.quant_state.bitsandbytes__nf4");
  std::string text(reinterpret_cast<const char*>(state.data_ptr<uint8_t>()), 256);
  text.erase(text.find_last_not_of(' ') + 1);
  REQUIRE(text == R"({"quant_type": "nf4", "blocksize": 4, "dtype": "float32", "shape": [1, 4]})");
}

TEST_CASE("blocks that reach from one row into the next are read as the decoded matrix", "[quant][nf4]") {
  const QuantScheme scheme{.format = NumberFormat::kNf4, .group_size = 16};
  Nf4Tensors t = stored(nf4_weight(6, 16, scheme), 16);
  const at::Tensor decoded = from_nf4(t, "op")->dense();
  t.out = 16;
  t.in = 6;
  const auto odd = from_nf4(t, "op");
  REQUIRE(odd->describe() == "dense float32");
  REQUIRE(odd->dense().equal(decoded.reshape({16, 6})));
}

TEST_CASE("stored NF4 tensors that disagree are refused by the tensor's name", "[quant][nf4]") {
  const auto text = [](bool nested, const std::function<void(Nf4Tensors&)>& spoil) {
    const QuantScheme scheme{.format = NumberFormat::kNf4, .group_size = 8, .double_quant = nested};
    Nf4Tensors t = stored(nf4_weight(6, 16, scheme), 8);
    spoil(t);
    return error_text([&] { from_nf4(t, "q"); });
  };
  REQUIRE(text(false, [](Nf4Tensors&) {}) == "nothing was thrown");
  REQUIRE(text(false, [](Nf4Tensors& t) { t.out = 7; }) ==
          "[q.weight] must hold 56 bytes for [7, 16]; it has 48");
  REQUIRE(text(false, [](Nf4Tensors& t) { t.absmax = at::ones({11}); }) ==
          "[q.weight.absmax] must hold 12 float32 numbers; it has 11");
  REQUIRE(text(false, [](Nf4Tensors& t) { t.block_size = 16; }) ==
          "[q.weight.absmax] must hold 6 float32 numbers; it has 12");
  REQUIRE(text(true, [](Nf4Tensors& t) { t.nested.codes = at::zeros({3}, at::kByte); }) ==
          "[q.weight.absmax] must hold 12 bytes; it has 3");
  REQUIRE(text(true, [](Nf4Tensors& t) { t.nested.absmax = at::zeros({2}); }) ==
          "[q.weight.nested_absmax] must hold 1 float32 numbers; it has 2");
  REQUIRE(text(true, [](Nf4Tensors& t) { t.nested.map = at::zeros({16}); }) ==
          "[q.weight.nested_quant_map] must hold 256 float32 numbers; it has 16");
  REQUIRE(text(false, [](Nf4Tensors& t) { t.absmax = at::full({12}, INFINITY); }) ==
          "[q.weight.absmax] scales must be finite; one is not");
  const QuantScheme nested{.format = NumberFormat::kNf4, .group_size = 8, .double_quant = true};
  REQUIRE(error_text([&] {
            QuantizedWeight(nested, at::zeros({1, 8}, at::kChar), at::ones({1, 1}));
          }) == "[QuantizedWeight] double_quant must have nested scales; received none");
  const Grid grid{at::ones({1, 1}), {}, NumberFormat::kNf4, nest_scales(at::ones({1, 1}))};
  const QuantScheme plain{.format = NumberFormat::kNf4, .group_size = 8};
  REQUIRE(error_text([&] {
            QuantizedWeight(plain, at::zeros({1, 8}, at::kChar), grid);
          }) == "[QuantizedWeight] nested scales must have double_quant; it is false");
}

TEST_CASE("NF4 blocks of bitsandbytes decode exactly, and rounding gives its codes and scales",
          "[quant][nf4][golden]") {
  const auto root = lcomp::test::shared_data("golden/formats/bnb");
  if (!root) {
    WARN("skipped: no golden/formats/bnb");
    return;
  }
  for (const char* name : {"nf4_64x96", "nf4_33x50_tail", "nf4_32x512_bf16", "nf4_zero_block"}) {
    CAPTURE(name);
    const lcomp::io::SafetensorsFile file(*root / (std::string(name) + ".safetensors"));
    const at::Tensor weight = file.read("weight"), dequant = file.read("dequant");
    Nf4Tensors t;
    t.out = weight.size(0);
    t.in = weight.size(1);
    t.packed = file.read("packed");
    t.absmax = file.read("absmax");
    // The library decodes in the weight's type; where that is bfloat16 the exact values are rounded to it.
    REQUIRE(from_nf4(t, name)->dense().to(dequant.scalar_type()).equal(dequant));

    Nf4Tensors nested = t;
    nested.absmax = at::Tensor();
    nested.nested.codes = file.read("dq.absmax_codes");
    nested.nested.absmax = file.read("dq.absmax_of_absmax");
    nested.nested.map = file.read("dq.code");
    nested.nested.offset = file.read("dq.offset").item<float>();
    REQUIRE(from_nf4(nested, name)->dense().to(dequant.scalar_type()).equal(file.read("dq.dequant")));

    if (t.in % 64 != 0) continue;
    const QuantizedWeight ours = rtn(weight, {.format = NumberFormat::kNf4, .group_size = 64});
    TensorMap sink;
    ours.save(sink, "op");
    REQUIRE(ours.dense().to(dequant.scalar_type()).equal(dequant));
    const bool has_zero_block = std::string(name) == "nf4_zero_block";
    if (!has_zero_block) REQUIRE(sink.all.at("op.weight.absmax").equal(t.absmax));
    if (!has_zero_block) REQUIRE(sink.all.at("op.weight").equal(t.packed));
  }
}

TEST_CASE("NF4 rounding agrees with the recorded indices", "[quant][nf4][golden]") {
  const auto path = lcomp::test::shared_data("golden/methods/number_formats.safetensors");
  const auto problem = lcomp::test::shared_data("golden/methods/problem.safetensors");
  if (!path || !problem) {
    WARN("skipped: no golden/methods/number_formats.safetensors");
    return;
  }
  const lcomp::io::SafetensorsFile file(*path);
  const at::Tensor weight = lcomp::io::SafetensorsFile(*problem).read("w");
  const QuantizedWeight ours = rtn(weight, {.format = NumberFormat::kNf4, .group_size = 64});
  REQUIRE(ours.codes().equal(file.read("nf4.indices").to(at::kChar)));
  REQUIRE(ours.scale().flatten().equal(file.read("nf4.absmax")));
  REQUIRE(ours.dense().equal(file.read("nf4.dequant")));
}
