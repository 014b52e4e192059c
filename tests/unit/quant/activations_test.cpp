#include "lcomp/quant/activations.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;

namespace {

at::Tensor activations(int64_t tokens, int64_t in, uint64_t seed = 1) {
  at::Tensor x = normal_matrix(tokens, in, "activations", seed) + 0.4;
  x.select(1, 0).mul_(9);
  return x.to(at::kFloat);
}

ActivationScheme scheme_of(bool symmetric, ActivationGranularity granularity, int64_t bits = 8) {
  ActivationScheme scheme;
  scheme.bits = bits;
  scheme.symmetric = symmetric;
  scheme.granularity = granularity;
  return scheme;
}

/// clamp(x / s + z) by the formulas in double, before it is rounded to a code.
at::Tensor reference_points(const at::Tensor& x, const ActivationScheme& scheme) {
  at::Tensor points = at::empty(x.sizes(), at::kDouble);
  const double least = scheme.lowest_code(), most = scheme.highest_code();
  for (int64_t t = 0; t < x.size(0); ++t) {
    const at::Tensor seen = (scheme.granularity == ActivationGranularity::kToken ? x[t] : x).to(at::kDouble);
    const double lo = std::min(seen.min().item<double>(), 0.0), hi = std::max(seen.max().item<double>(), 0.0);
    double scale = (hi - lo) / (most - least);
    double zero = std::clamp(std::nearbyint(least - lo / scale), least, most);
    if (scheme.symmetric) {
      scale = std::max(-lo, hi) / ((most - least) / 2);
      zero = 0;
    }
    points[t] = (x[t].to(at::kDouble) / scale + zero).clamp(least, most);
  }
  return points;
}

}  // namespace

TEST_CASE("codes follow the formulas in double, for every kind of scheme", "[quant][activations]") {
  const at::Tensor x = activations(9, 37);
  for (const bool symmetric : {true, false}) {
    for (const auto granularity : {ActivationGranularity::kToken, ActivationGranularity::kTensor}) {
      for (const int64_t bits : {8, 4, 2}) {
        const ActivationScheme scheme = scheme_of(symmetric, granularity, bits);
        CAPTURE(scheme.describe());
        // The nearest code; either one where float32 cannot tell which that is (the largest magnitude of a
        // symmetric mid-range grid always falls between two).
        const at::Tensor codes = quantize_activations(x, scheme).codes;
        const at::Tensor off = (codes.to(at::kDouble) - reference_points(x, scheme)).abs();
        REQUIRE(off.max().item<double>() <= 0.5 + 1e-4);
      }
    }
  }
}

TEST_CASE("rounding an activation costs at most half a step, and rounding it again nothing",
          "[quant][activations]") {
  const at::Tensor x = activations(30, 64);
  for (const bool symmetric : {true, false}) {
    const ActivationScheme scheme = scheme_of(symmetric, ActivationGranularity::kToken);
    const QuantizedActivations q = quantize_activations(x, scheme);
    const at::Tensor off = (dequantize_activations(q) - x).abs() / q.scale;
    // Rounding the zero point, or the top of a mid-range grid, may add half a step at the ends.
    REQUIRE(off.max().item<double>() <= 1.0 + 1e-5);
    REQUIRE((off > 0.5 + 1e-5).sum().item<int64_t>() <= 30);
    const ActivationGrid grid{q.scale[0].item<float>(), symmetric ? 0 : q.zero[0].item<int32_t>()};
    ActivationScheme same = scheme;
    same.granularity = ActivationGranularity::kTensor;
    same.dynamic = false;
    const at::Tensor once = dequantize_activations(quantize_activations(x.slice(0, 0, 1), same, grid));
    REQUIRE(quantize_activations(once, same, grid).codes.equal(q.codes.slice(0, 0, 1)));
  }
}

TEST_CASE("powers of two scale the result and tokens do not see each other", "[quant][activations]") {
  const at::Tensor x = activations(6, 40);
  const ActivationScheme scheme;
  const QuantizedActivations q = quantize_activations(x, scheme), large = quantize_activations(x * 8, scheme);
  REQUIRE(large.codes.equal(q.codes));
  REQUIRE(large.scale.equal(q.scale * 8));
  REQUIRE(quantize_activations(x.slice(0, 2, 3), scheme).codes.equal(q.codes.slice(0, 2, 3)));
}

TEST_CASE("zeros and constants are exact", "[quant][activations]") {
  for (const bool symmetric : {true, false}) {
    const ActivationScheme scheme = scheme_of(symmetric, ActivationGranularity::kToken);
    REQUIRE(dequantize_activations(quantize_activations(at::zeros({2, 5}), scheme)).equal(at::zeros({2, 5})));
  }
  const ActivationScheme asymmetric = scheme_of(false, ActivationGranularity::kToken);
  for (const double value : {3.0, -3.0}) {
    const at::Tensor constant = at::full({1, 5}, value);
    REQUIRE(at::allclose(dequantize_activations(quantize_activations(constant, asymmetric)), constant, 1e-6));
  }
}

TEST_CASE("static grids are those of the calibration", "[quant][activations]") {
  ActivationScheme scheme = scheme_of(false, ActivationGranularity::kTensor);
  REQUIRE(activation_grid(0, 2.55F, scheme) == ActivationGrid{0.01F, -128});
  REQUIRE(activation_grid(-2.55F, 0, scheme) == ActivationGrid{0.01F, 127});
  REQUIRE(activation_grid(1, 2.55F, scheme) == activation_grid(0, 2.55F, scheme));  // zero is on the grid
  scheme.symmetric = true;
  REQUIRE(activation_grid(-127.5F, 4, scheme) == ActivationGrid{1, 0});
  REQUIRE(activation_grid(0, 0, scheme).scale == std::numeric_limits<float>::epsilon());
  scheme.symmetric_convention = SymmetricConvention::kRestricted;
  REQUIRE(activation_grid(-127, 4, scheme) == ActivationGrid{1, 0});
  REQUIRE(activation_grid(0, 0, scheme).scale == 1e-5F / 127);
  // Rounded to its stored type before codes are computed.
  REQUIRE(activation_grid(0, 127, scheme, at::kBFloat16).scale == 1);
  REQUIRE(activation_grid(0, 100, scheme, at::kBFloat16).scale ==
          at::tensor(100.0F / 127).to(at::kBFloat16).item<float>());

  scheme.dynamic = false;
  const at::Tensor x = at::tensor({-500.0F, -1.4F, 0.5F, 1.5F, 500.0F}).unsqueeze(0);
  const QuantizedActivations q = quantize_activations(x, scheme, ActivationGrid{1, 0});
  REQUIRE(q.codes.equal(at::tensor({-128, -1, 0, 2, 127}, at::kChar).unsqueeze(0)));
}

TEST_CASE("a covered range leaves out exactly the share it may", "[quant][activations]") {
  const at::Tensor x = activations(200, 16, 3);
  SeenRange seen{x.amin(1), x.amax(1), at::zeros({1 << 16}, at::kLong)};
  for (int64_t i = 0; i < x.numel(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, x.data_ptr<float>() + i, sizeof bits);
    ++seen.value_counts.data_ptr<int64_t>()[bits >> 16U];
  }
  ActivationScheme scheme = scheme_of(false, ActivationGranularity::kTensor);
  scheme.dynamic = false;
  REQUIRE(covered_range(seen, scheme) == std::pair(x.min().item<float>(), x.max().item<float>()));
  for (const double share : {0.5, 0.9, 0.99}) {
    CAPTURE(share);
    scheme.percentile = share;
    scheme.percentile_of = PercentileOf::kTokens;
    const auto [lo, hi] = covered_range(seen, scheme);
    const auto rank = static_cast<int64_t>(std::ceil(share * 200)) - 1;
    REQUIRE(hi == std::get<0>(x.amax(1).sort())[rank].item<float>());
    REQUIRE(lo == std::get<0>(x.amin(1).sort(0, true))[rank].item<float>());

    scheme.percentile_of = PercentileOf::kValues;
    const auto [low, high] = covered_range(seen, scheme);
    const at::Tensor sorted = std::get<0>(x.flatten().sort());
    const auto value_rank = static_cast<int64_t>(std::ceil(share * 3200)) - 1;
    const float exact = sorted[value_rank].item<float>(), exact_low = sorted[3199 - value_rank].item<float>();
    REQUIRE(high >= exact);
    REQUIRE(high <= exact + std::abs(exact) / 128);
    REQUIRE(low <= exact_low + std::abs(exact_low) / 128);
    REQUIRE(low >= exact_low - std::abs(exact_low) / 128);
  }
}

TEST_CASE("codes of the golden tokens are met exactly", "[quant][activations][golden]") {
  const auto problem = lcomp::test::shared_data("golden/methods/problem.safetensors");
  const auto golden = lcomp::test::shared_data("golden/methods/rtn_tokens_int8.safetensors");
  if (!problem || !golden) {
    WARN("skipped: no golden/methods");
    return;
  }
  ActivationScheme scheme;
  scheme.symmetric_convention = SymmetricConvention::kRestricted;
  const at::Tensor x = lcomp::io::SafetensorsFile(*problem).read("x").to(at::kFloat);
  const QuantizedActivations q = quantize_activations(x, scheme);
  const lcomp::io::SafetensorsFile expected(*golden);
  REQUIRE(q.codes.to(at::kShort).equal(expected.read("codes")));
  REQUIRE(lcomp::test::relative_difference(q.scale.flatten(), expected.read("scale")) < 1e-7);
}

TEST_CASE("activations that cannot be quantized are refused", "[quant][activations]") {
  const ActivationScheme scheme;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(
      error_text([&] {
        quantize_activations(at::ones({2, 3}, at::kDouble), scheme);
      }) ==
      "[quantize_activations] x must be a float32 matrix [tokens, in]; received 2 dimensions of float64, 6 "
      "elements");
  at::Tensor bad = at::ones({4, 40});
  for (const auto& [token, column] : {std::pair{2, 1}, std::pair{3, 39}}) {
    for (const float value : {nan, std::numeric_limits<float>::infinity()}) {
      at::Tensor x = bad.clone();
      x[token][column] = value;
      REQUIRE(error_text([&] { quantize_activations(x, scheme); }) ==
              "[quantize_activations] activations must be finite; those of token " + std::to_string(token) +
                  " are not");
    }
  }
  ActivationScheme fixed = scheme_of(true, ActivationGranularity::kTensor);
  fixed.dynamic = false;
  REQUIRE(error_text([&] { quantize_activations(bad, fixed); }) ==
          "[quantize_activations] static activations need a calibrated grid; received none");
  REQUIRE(error_text([&] { covered_range({}, fixed); }) ==
          "[covered_range] static activations need the range of calibration tokens; there are none");
  fixed.percentile = 0.9;
  fixed.percentile_of = PercentileOf::kValues;
  REQUIRE(error_text([&] {
            covered_range({at::ones({2}), at::ones({2}), {}}, fixed);
          }) ==
          "[covered_range] static activations need the distribution of calibration tokens; there are none");
  REQUIRE(error_text([&] { activation_grid(0, 1e38F, fixed, at::kHalf); }) ==
          "[activation_grid] the scale must be finite in float16; it is 7.843137e+35");
}
