#include "lcomp/quant/mismatch.h"

#include <ATen/ATen.h>

#include <Eigen/Dense>
#include <algorithm>
#include <catch2/catch.hpp>
#include <cmath>

#include "lcomp/core/weight_error.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/grid.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;
using lcomp::test::to_eigen;

namespace {

/// Inputs of a dense and of a compressed model, tokens in rows.
struct Inputs {
  at::Tensor dense, compressed;

  at::Tensor h() const { return at::matmul(compressed.t(), compressed); }
  at::Tensor delta() const { return at::matmul((dense - compressed).t(), compressed); }
};

/// x~ = x + x B + noise: part of the mismatch can be made up for, part cannot.
Inputs make_inputs(int64_t tokens, int64_t in, double linear, double noise, const std::string& stream = "x") {
  const at::Tensor mix = at::eye(in, at::kDouble) + 0.7 * normal_matrix(in, in, "mix") / std::sqrt(in);
  const at::Tensor x = at::matmul(normal_matrix(tokens, in, stream), mix);
  const at::Tensor b = linear * normal_matrix(in, in, "bend") / std::sqrt(in);
  return {x, x + at::matmul(x, b) + noise * normal_matrix(tokens, in, stream + " noise")};
}

MismatchMoments moments_of(const Inputs& a, const Inputs& b) {
  return {a.delta() + b.delta(), {a.h(), b.h()}, {a.delta(), b.delta()}};
}

double squared(const at::Tensor& t) {
  return (t * t).sum().item<double>();
}

/// The rule from its formula, over all rows.
double split_weight(const at::Tensor& weight, const MismatchMoments& m, double damping) {
  const Eigen::MatrixXd w = to_eigen(weight);
  double along = 0, size = 0;
  for (size_t i = 0; i < 2; ++i) {
    const Eigen::MatrixXd h = to_eigen(m.half[i]), other = to_eigen(m.half[1 - i]);
    const Eigen::MatrixXd damped =
        h + damping * h.diagonal().mean() * Eigen::MatrixXd::Identity(h.rows(), h.cols());
    const Eigen::MatrixXd correction = w * to_eigen(m.half_delta[i]) * damped.inverse();
    along += (w * to_eigen(m.half_delta[1 - i])).cwiseProduct(correction).sum();
    size += (correction * other).cwiseProduct(correction).sum();
  }
  return std::clamp(along / size, 0.0, 1.0);
}

}  // namespace

TEST_CASE("the mismatch only moves the target of a solver", "[quant][mismatch]") {
  const Inputs inputs = make_inputs(300, 24, 0.3, 0.2);
  const at::Tensor weight = normal_matrix(10, 24, "weight"), h = inputs.h();
  const auto inverse = lcomp::linalg::damped_inverse(h, 0);
  const at::Tensor target = mismatch_target(weight, inputs.delta(), inverse, {}, 1);
  const auto real_loss = [&](const at::Tensor& w) {
    return squared(at::matmul(inputs.compressed, w.t()) - at::matmul(inputs.dense, weight.t()));
  };
  const double constant = real_loss(target);
  for (int k = 0; k < 5; ++k) {
    const at::Tensor other = weight + 0.1 * normal_matrix(10, 24, "other " + std::to_string(k));
    REQUIRE(real_loss(other) ==
            Approx(lcomp::activation_energy(other - target, h) + constant).epsilon(1e-10));
  }
}

TEST_CASE("a weight of 0 gives the weights themselves, and so GPTQ bit for bit", "[quant][mismatch]") {
  const Inputs inputs = make_inputs(200, 32, 0.3, 0.1);
  const at::Tensor weight = normal_matrix(6, 32, "weight").to(at::kBFloat16);
  const QuantScheme scheme{.bits = 3, .group_size = 16};
  const GptqFactor factor = gptq_factor(inputs.h(), scheme);
  const at::Tensor target = mismatch_target(weight, inputs.delta(), factor.inverse, factor.order, 0);
  REQUIRE(target.is_same(weight));
  REQUIRE(gptq(target, factor, scheme).weight.codes().equal(gptq(weight, factor, scheme).weight.codes()));
}

TEST_CASE("equal inputs have no mismatch and leave the target where it is", "[quant][mismatch]") {
  const at::Tensor weight = normal_matrix(6, 32, "weight"), zero = at::zeros({32, 32}, at::kDouble);
  const Inputs inputs = make_inputs(200, 32, 0, 0);
  REQUIRE(inputs.delta().equal(zero));
  const auto inverse = lcomp::linalg::damped_inverse(inputs.h());
  REQUIRE(mismatch_target(weight, zero, inverse, {}, 1).equal(weight));
  REQUIRE(mismatch_weight({weight}, moments_of(inputs, inputs), 0.01) == 0);
}

TEST_CASE("the order of the factor does not matter, nor do threads and other rows", "[quant][mismatch]") {
  const Inputs inputs = make_inputs(300, 32, 0.3, 0.2);
  const at::Tensor weight = normal_matrix(200, 32, "weight"), delta = inputs.delta();
  const QuantScheme scheme{.group_size = 16};
  const GptqFactor plain = gptq_factor(inputs.h(), scheme);
  const GptqFactor sorted = gptq_factor(inputs.h(), scheme, {.act_order = ActOrder::kGroupAware});
  REQUIRE_FALSE(sorted.order.empty());
  const at::Tensor one = mismatch_target(weight, delta, plain.inverse, plain.order, 0.7);
  REQUIRE(relative_difference(mismatch_target(weight, delta, sorted.inverse, sorted.order, 0.7), one) <
          1e-10);
  lcomp::ThreadPool pool(3);
  REQUIRE(mismatch_target(weight, delta, plain.inverse, plain.order, 0.7, &pool).equal(one));
  REQUIRE(mismatch_target(weight.narrow(0, 90, 20), delta, plain.inverse, plain.order, 0.7)
              .equal(one.narrow(0, 90, 20)));
}

TEST_CASE("the split rule is its formula", "[quant][mismatch]") {
  for (const double noise : {0.05, 0.5, 1.0}) {
    CAPTURE(noise);
    const MismatchMoments moments =
        moments_of(make_inputs(90, 24, 0.2, noise, "first"), make_inputs(80, 24, 0.2, noise, "second"));
    const at::Tensor q = normal_matrix(30, 24, "q"), k = normal_matrix(11, 24, "k");
    const double expected = split_weight(at::cat({q, k}), moments, 0.02);
    REQUIRE(mismatch_weight({q, k}, moments, 0.02) == Approx(expected).epsilon(1e-9));
    REQUIRE(expected > 0);
    if (noise > 0.1) REQUIRE(expected < 1);
  }
}

TEST_CASE("halves that agree are believed, and halves that contradict each other are not",
          "[quant][mismatch]") {
  const at::Tensor weight = normal_matrix(20, 24, "weight");
  const Inputs inputs = make_inputs(100, 24, 0.3, 0);
  MismatchMoments moments = moments_of(inputs, inputs);
  REQUIRE(mismatch_weight({weight}, moments, 0) == Approx(1.0).epsilon(1e-9));
  moments.half_delta[1].neg_();
  REQUIRE(mismatch_weight({weight}, moments, 0) == 0);
  moments.half[1].zero_();  // samples that never fired: no factor
  REQUIRE(mismatch_weight({weight}, moments, 0) == 0);
}

TEST_CASE("many rows are sampled evenly, and nearly give what all of them give", "[quant][mismatch]") {
  const MismatchMoments moments =
      moments_of(make_inputs(90, 24, 0.2, 0.5, "first"), make_inputs(80, 24, 0.2, 0.5, "second"));
  const at::Tensor weight = normal_matrix(1000, 24, "weight");
  REQUIRE(mismatch_weight({weight}, moments, 0.01) ==
          Approx(split_weight(weight, moments, 0.01)).epsilon(0.1));
}

TEST_CASE("the corrected target makes GPTQ better on inputs that it has not seen", "[quant][mismatch]") {
  const Inputs seen = make_inputs(600, 48, 0.1, 0.05), first = make_inputs(300, 48, 0.1, 0.05, "first"),
               second = make_inputs(300, 48, 0.1, 0.05, "second"),
               unseen = make_inputs(600, 48, 0.1, 0.05, "unseen");
  const at::Tensor weight = normal_matrix(60, 48, "weight");
  const QuantScheme scheme{.bits = 3, .group_size = 16};
  const GptqFactor factor = gptq_factor(seen.h(), scheme);
  const auto held_out = [&](double a) {
    const at::Tensor target = mismatch_target(weight, seen.delta(), factor.inverse, factor.order, a);
    const QuantizedWeight q = gptq(target, factor, scheme).weight;
    return squared(at::matmul(unseen.compressed, dequantize(q.codes(), {q.scale(), q.zero()}).t()) -
                   at::matmul(unseen.dense, weight.t()));
  };
  const double a = mismatch_weight({weight}, moments_of(first, second), 0.01);
  REQUIRE(a > 0.5);
  REQUIRE(held_out(a) < 0.8 * held_out(0));
}

TEST_CASE("arguments that do not fit are refused by the mismatch", "[quant][mismatch]") {
  const Inputs inputs = make_inputs(100, 8, 0.1, 0.1);
  const at::Tensor weight = normal_matrix(3, 8, "weight"), h = inputs.h();
  const auto inverse = lcomp::linalg::damped_inverse(h);
  REQUIRE(error_text([&] { mismatch_target(weight, h.narrow(0, 0, 7), inverse, {}, 1); }) ==
          "[mismatch] delta must be [8, 8] of float32 or float64; received [7, 8] of float64");
  REQUIRE(error_text([&] { mismatch_target(weight, h, {}, {}, 1); }) ==
          "[mismatch] the inverse must be the factor of a second moment [8, 8]");
  REQUIRE(error_text([&] { mismatch_target(weight.to(at::kInt), h, inverse, {}, 1); }) ==
          "[mismatch] the weight must be a matrix of a floating-point type");
  MismatchMoments moments = moments_of(inputs, inputs);
  moments.half_delta[1] = at::Tensor();
  REQUIRE(error_text([&] { mismatch_weight({weight}, moments, 0.01); }) ==
          "[mismatch] delta of a half must be [8, 8] of float32 or float64; received none");
  moments.half[0] = h.to(at::kHalf);
  REQUIRE(error_text([&] { mismatch_weight({weight}, moments, 0.01); }) ==
          "[mismatch] the second moment of a half must be [8, 8] of float32 or float64; received [8, 8] of "
          "float16");
}
