#include "lcomp/quant/activation_scheme.h"

#include <catch2/catch.hpp>

#include "support/error_text.h"

using namespace lcomp::quant;
using lcomp::test::error_text;

namespace {

std::string refusal(const ActivationScheme& scheme) {
  return error_text([&] { scheme.validate("int8"); });
}

}  // namespace

TEST_CASE("activations describe themselves", "[quant][activation_scheme]") {
  ActivationScheme scheme;
  REQUIRE(scheme.describe() == "int8 symmetric activations, per token");
  scheme.symmetric = false;
  scheme.granularity = ActivationGranularity::kTensor;
  REQUIRE(scheme.describe() == "int8 asymmetric activations, per tensor");
  scheme.dynamic = false;
  REQUIRE(scheme.describe() == "int8 asymmetric activations, per tensor, static");
  ActivationScheme floats;
  floats.format = NumberFormat::kFp8E4m3;
  REQUIRE(floats.describe() == "fp8_e4m3 activations, per token");
  REQUIRE_NOTHROW(floats.validate("int8"));
  REQUIRE(scheme.lowest_code() == -128);
  REQUIRE(scheme.highest_code() == 127);
}

TEST_CASE("activation settings that exclude each other are refused", "[quant][activation_scheme]") {
  REQUIRE_NOTHROW(ActivationScheme{}.validate("int8"));
  REQUIRE(refusal({.bits = 9}) == "[int8] activation_bits must be in [2, 8]; received 9");
  REQUIRE(
      refusal({.format = NumberFormat::kFp8E4m3, .symmetric = false}) ==
      "[int8] activation_format must be int, or fp8_e4m3 with 8 bits and symmetric; received fp8_e4m3 with 8 "
      "bits, asymmetric");
  REQUIRE(refusal({.percentile = 0.2}) == "[int8] activation_percentile must be in [0.5, 1]; received 0.2");
  REQUIRE(refusal({.dynamic = false}) ==
          "[int8] activations per token must be dynamic: a token has no range before it comes; received "
          "activation_dynamic false");
  REQUIRE(refusal({.percentile = 0.99}) ==
          "[int8] activation_percentile must be 1 for dynamic activations, whose range is exact; received "
          "0.99");
  REQUIRE(refusal({.symmetric_convention = SymmetricConvention::kFullRange}) ==
          "[int8] activation_convention must be mid_range or restricted; received full_range");
}
