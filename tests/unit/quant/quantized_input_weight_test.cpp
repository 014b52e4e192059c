#include "lcomp/quant/quantized_input_weight.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <map>

#include "lcomp/core/threads.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"

using namespace lcomp::quant;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

at::Tensor input(int64_t tokens, int64_t in) {
  at::Tensor x = normal_matrix(tokens, in, "input") + 0.3;
  if (in > 3) x.select(1, 3).mul_(11);
  return x.to(at::kFloat);
}

QuantScheme weights_of(bool symmetric, Granularity granularity) {
  QuantScheme scheme{.bits = 8, .symmetric = symmetric, .granularity = granularity, .group_size = 16};
  return scheme;
}

QuantizedInputWeight make(const QuantScheme& weights, const ActivationScheme& activations, int64_t out,
                          int64_t in, const std::optional<ActivationGrid>& grid = {}) {
  return {rtn(normal_matrix(out, in, "weight").to(at::kFloat) + 0.1, weights), activations, grid};
}

/// sum_j (q_x - z_x)(q_w - z_w) s_x s_w in double, from the codes.
at::Tensor reference_product(const QuantizedInputWeight& weight, const at::Tensor& x) {
  const QuantizedActivations q = quantize_activations(x, weight.activations(), weight.grid());
  at::Tensor qx = q.codes.to(at::kDouble), qw = weight.weight().codes().to(at::kDouble);
  if (q.zero.defined()) qx = qx - q.zero.to(at::kDouble);
  if (weight.weight().zero().defined()) qw = qw - weight.weight().zero().to(at::kDouble);
  const at::Tensor rows = q.scale.to(at::kDouble), columns = weight.weight().scale().to(at::kDouble).t();
  return at::matmul(qx, qw.t()) * rows * columns;
}

}  // namespace

TEST_CASE("the integer product is exact, with any zero points, and the simulation agrees to rounding",
          "[quant][quantized_input]") {
  for (const bool weight_symmetric : {true, false}) {
    for (const bool input_symmetric : {true, false}) {
      for (const auto granularity : {Granularity::kChannel, Granularity::kTensor}) {
        for (const auto of_input : {ActivationGranularity::kToken, ActivationGranularity::kTensor}) {
          ActivationScheme activations;
          activations.symmetric = input_symmetric;
          activations.granularity = of_input;
          const QuantizedInputWeight weight =
              make(weights_of(weight_symmetric, granularity), activations, 50, 70);
          CAPTURE(weight.describe());
          REQUIRE(weight.has_int8_product());
          REQUIRE(weight.quantizes_input());
          for (const int64_t tokens : {1, 3, 128, 150}) {
            const at::Tensor x = input(tokens, 70);
            // Exact sums; two roundings of scales and one of the result in float32.
            REQUIRE(relative_difference(weight.apply(x), reference_product(weight, x)) < 3e-7);
            REQUIRE(relative_difference(weight.simulate(x), weight.apply(x)) < 2e-6);
          }
        }
      }
    }
  }
}

TEST_CASE("weights in groups of columns are simulated", "[quant][quantized_input]") {
  const QuantizedInputWeight weight = make(weights_of(true, Granularity::kGroup), {}, 20, 64);
  REQUIRE_FALSE(weight.has_int8_product());
  const at::Tensor x = input(130, 64);
  const at::Tensor rounded = dequantize_activations(quantize_activations(x, {}));
  const at::Tensor expected = at::matmul(rounded.to(at::kDouble), weight.dense().to(at::kDouble).t());
  REQUIRE(relative_difference(weight.apply(x), expected) < 1e-6);
  REQUIRE(relative_difference(weight.simulate(x), expected) < 1e-6);
}

TEST_CASE("eight bits come near the plain product and outliers of a channel cost what they should",
          "[quant][quantized_input]") {
  const at::Tensor x = input(64, 96);
  const QuantizedInputWeight weight = make(weights_of(true, Granularity::kChannel), {}, 48, 96);
  const at::Tensor exact = at::matmul(x, weight.dense().t());
  const double per_token = relative_difference(weight.apply(x), exact);
  REQUIRE(per_token < 0.02);
  ActivationScheme per_tensor;
  per_tensor.granularity = ActivationGranularity::kTensor;
  REQUIRE((make(weights_of(true, Granularity::kChannel), per_tensor, 48, 96).apply(x) - exact)
              .norm()
              .item<double>() > (weight.apply(x) - exact).norm().item<double>());
}

TEST_CASE("a static grid is applied and stored with the weight", "[quant][quantized_input]") {
  ActivationScheme fixed;
  fixed.symmetric = false;
  fixed.granularity = ActivationGranularity::kTensor;
  fixed.dynamic = false;
  const ActivationGrid grid = activation_grid(-4, 30, fixed);
  const QuantizedInputWeight weight = make(weights_of(true, Granularity::kChannel), fixed, 20, 32, grid);
  REQUIRE(weight.describe() ==
          "int8 symmetric, per channel; int8 asymmetric activations, per tensor, static");
  const at::Tensor x = input(5, 32);
  REQUIRE(relative_difference(weight.apply(x), reference_product(weight, x)) < 3e-7);
  // Tokens do not see each other then.
  REQUIRE(weight.apply(x.slice(0, 1, 2)).equal(weight.apply(x).slice(0, 1, 2)));
  lcomp::test::TensorMap tensors;
  weight.save(tensors, "op");
  REQUIRE(tensors.all.at("op.input_scale").item<float>() == grid.scale);
  REQUIRE(tensors.all.at("op.input_zero_point").item<int64_t>() == grid.zero);
  REQUIRE(tensors.all.at("op.input_zero_point").scalar_type() == at::kChar);
  int64_t stored = 0;
  for (const auto& [name, tensor] : tensors.all) stored += tensor.numel() * tensor.element_size();
  REQUIRE(weight.bytes() == stored);
}

TEST_CASE("products on several threads give the same bytes", "[quant][quantized_input]") {
  const QuantizedInputWeight weight = make(weights_of(false, Granularity::kChannel), {}, 40, 64);
  const at::Tensor x = input(200, 64);
  const at::Tensor expected = make(weights_of(false, Granularity::kChannel), {}, 40, 64).apply(x);
  lcomp::ThreadPool pool(3);
  std::vector<at::Tensor> results(12);
  pool.parallel_for(12, [&](int64_t i, int) { results[static_cast<size_t>(i)] = weight.apply(x); });
  for (const at::Tensor& result : results) REQUIRE(result.equal(expected));
}

TEST_CASE("what cannot be multiplied is refused", "[quant][quantized_input]") {
  const QuantScheme weights = weights_of(true, Granularity::kChannel);
  ActivationScheme fixed;
  fixed.granularity = ActivationGranularity::kTensor;
  fixed.dynamic = false;
  REQUIRE(error_text([&] { make(weights, fixed, 4, 8); }) ==
          "[QuantizedInputWeight] static activations must have a calibrated grid; received none");
  REQUIRE(error_text([&] { make(weights, {}, 4, 8, ActivationGrid{}); }) ==
          "[QuantizedInputWeight] dynamic activations must have no calibrated grid; received one");
  ActivationScheme asymmetric;
  asymmetric.symmetric = false;
  REQUIRE(
      error_text([&] { make(weights_of(false, Granularity::kChannel), asymmetric, 1, 32768); }) ==
      "[QuantizedInputWeight] the weight must have at most 32767 columns, so that sums fit 32 bits; it has "
      "32768");
  const QuantizedInputWeight weight = make(weights, {}, 4, 8);
  REQUIRE(
      error_text([&] {
        weight.apply(at::ones({2, 9}));
      }) ==
      "[QuantizedInputWeight] x must be a float32 matrix [tokens, 8]; received 2 dimensions of float32, 18 "
      "elements");
  at::Tensor x = at::ones({3, 8});
  x[1][5] = std::numeric_limits<float>::infinity();
  REQUIRE(error_text([&] { weight.apply(x); }) ==
          "[QuantizedInputWeight] the input must be finite; that of token 1 is not");
}
