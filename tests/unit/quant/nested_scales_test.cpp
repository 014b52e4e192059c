#include "lcomp/quant/nested_scales.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/io/safetensors.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::test::normal_matrix;

TEST_CASE("the dynamic map ascends, is nearly antisymmetric, and has 0 and 1", "[quant][nested]") {
  const at::Tensor map = dynamic_map();
  REQUIRE(map.numel() == 256);
  REQUIRE((map.slice(0, 1) > map.slice(0, 0, -1)).all().item<bool>());
  REQUIRE(map[127].item<float>() == 0);
  REQUIRE(map[255].item<float>() == 1);
  REQUIRE(map.slice(0, 0, 127).equal(-map.slice(0, 128, 255).flip(0)));
  REQUIRE(map[254].item<float>() == Approx(0.9929688));
}

TEST_CASE("every scale goes to the nearest value of its block", "[quant][nested]") {
  const at::Tensor scales = normal_matrix(30, 19, "scales").abs().to(at::kFloat);
  const NestedScales nested = nest_scales(scales);
  REQUIRE(nested.absmax.numel() == 3);
  REQUIRE(nested.codes.sizes() == scales.sizes());
  const at::Tensor back = unnest_scales(nested);
  REQUIRE(back.scalar_type() == at::kFloat);
  const at::Tensor flat = scales.flatten();
  for (int64_t i = 0; i < flat.numel(); ++i) {
    const double x = flat[i].item<float>() - nested.offset;
    const at::Tensor values = nested.map.to(at::kDouble) * nested.absmax[i / 256].item<double>();
    const double least = (values - x).abs().min().item<double>();
    CAPTURE(i, x);
    REQUIRE(std::abs(back.flatten()[i].item<double>() - flat[i].item<double>()) <= least + 1e-6);
  }
}

TEST_CASE("equal scales are exact", "[quant][nested]") {
  const at::Tensor scales = at::full({5, 3}, 0.375, at::kFloat);
  REQUIRE(unnest_scales(nest_scales(scales)).equal(scales));
}

TEST_CASE("nested scales are those of the reference library", "[quant][nested][golden]") {
  const auto root = lcomp::test::shared_data("golden/formats/bnb");
  if (!root) {
    WARN("skipped: no golden/formats/bnb");
    return;
  }
  for (const char* name : {"nf4_64x96", "nf4_33x50_tail", "nf4_32x512_bf16", "fp4_64x96", "nf4_zero_block"}) {
    CAPTURE(name);
    const lcomp::io::SafetensorsFile file(*root / (std::string(name) + ".safetensors"));
    // The library's own float32 values depend on its version in the last bit.
    REQUIRE((dynamic_map() - file.read("dq.code")).abs().max().item<float>() < 1e-7F);
    const NestedScales nested = nest_scales(file.read("absmax"));
    REQUIRE(nested.offset == Approx(file.read("dq.offset").item<float>()).epsilon(1e-6));
    REQUIRE(lcomp::test::relative_difference(nested.absmax, file.read("dq.absmax_of_absmax")) < 1e-6);
    const at::Tensor off = nested.codes.flatten().to(at::kInt) - file.read("dq.absmax_codes").to(at::kInt);
    REQUIRE(off.abs().max().item<int>() == 0);
  }
}
