#include "lcomp/quant/scheme.h"

#include <catch2/catch.hpp>

#include "support/error_text.h"

using namespace lcomp::quant;
using lcomp::test::error_text;

TEST_CASE("a group size that does not divide is refused with the operator's name", "[quant][scheme]") {
  const QuantScheme scheme{.group_size = 100};
  REQUIRE(error_text([&] {
            scheme.validate({8192, 28672}, "gptq", "layers.3.mlp.down_proj");
          }) ==
          "[gptq] group_size must divide the 28672 input columns of 'layers.3.mlp.down_proj', as 64 does; "
          "received 100");
  REQUIRE(error_text([&] {
            scheme.validate({4, 64}, "rtn");
          }) == "[rtn] group_size must divide the 64 input columns, as 64 does; received 100");
  REQUIRE_NOTHROW(
      QuantScheme{.granularity = Granularity::kChannel, .group_size = 100}.validate({4, 64}, "rtn"));
}

TEST_CASE("fields out of their range are refused", "[quant][scheme]") {
  const auto text = [](const QuantScheme& scheme) {
    return error_text([&] { scheme.validate({4, 128}, "rtn"); });
  };
  REQUIRE(text({.bits = 9}) == "[rtn] bits must be in [2, 8]; received 9");
  REQUIRE(text({.bits = 1}) == "[rtn] bits must be in [2, 8]; received 1");
  REQUIRE(text({.group_size = 0}) == "[rtn] group_size must be at least 1; received 0");
  REQUIRE(text({.mse_steps = 101}) == "[rtn] mse_steps must be in [1, 100]; received 101");
  REQUIRE(text({.mse_exponent = 0}) == "[rtn] mse_exponent must be in [0.1, 10]; received 0");
}

TEST_CASE("shapes that are not a non-empty matrix are refused", "[quant][scheme]") {
  const QuantScheme scheme;
  REQUIRE(error_text([&] { scheme.validate({128}, "rtn", "q_proj"); }) ==
          "[rtn] the weight of 'q_proj' must be a matrix [out, in]; received 1 dimensions");
  REQUIRE(error_text([&] {
            scheme.validate({0, 128}, "rtn");
          }) == "[rtn] the weight must not be empty; received shape [0, 128]");
}

TEST_CASE("a scheme describes itself and its matrix of scales", "[quant][scheme]") {
  QuantScheme scheme{.group_size = 64};
  REQUIRE(scheme.describe() == "int4 symmetric, groups of 64");
  REQUIRE(scheme.groups(256) == 4);
  REQUIRE(scheme.scale_rows(10) == 10);
  scheme.granularity = Granularity::kChannel;
  scheme.symmetric = false;
  REQUIRE(scheme.describe() == "int4 asymmetric, per channel");
  REQUIRE(scheme.groups(256) == 1);
  scheme.granularity = Granularity::kTensor;
  REQUIRE(scheme.describe() == "int4 asymmetric, per tensor");
  REQUIRE(scheme.scale_rows(10) == 1);
  REQUIRE(scheme.scale_type(c10::kBFloat16) == c10::kBFloat16);
  scheme.scale_dtype = ScaleDtype::kFloat16;
  REQUIRE(scheme.scale_type(c10::kBFloat16) == c10::kHalf);
}
