#include "lcomp/quant/sensitivity.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <numeric>

#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::ThreadPool;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;

namespace {

const std::vector<int64_t> kBits = {2, 3, 4, 8};

QuantScheme groups_of_16() {
  return {.bits = 4, .group_size = 16};
}

}  // namespace

TEST_CASE("sampled rows stand for strata of the rows sorted by energy", "[quant][sensitivity]") {
  const RowSample sample = sample_rows({5, 1, 4, 2, 3, 0, 6}, 3);
  // Sorted: rows 5 1 | 3 4 | 2 0 6.
  REQUIRE(sample.rows == std::vector<int64_t>{5, 3, 0});
  REQUIRE(sample.weights == std::vector<double>{2, 2, 3});
}

TEST_CASE("a sample of all rows is all rows, each for itself", "[quant][sensitivity]") {
  const RowSample sample = sample_rows({2, 2, 1}, 10);
  REQUIRE(sample.rows == std::vector<int64_t>{2, 0, 1});
  REQUIRE(sample.weights == std::vector<double>{1, 1, 1});
}

TEST_CASE("with all rows the losses are those that gptq reports", "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(24, 48, "w");
  const at::Tensor moment = correlated_moment(48, 300);
  const GptqFactor factor = gptq_factor(moment, groups_of_16());
  const std::vector<double> losses = losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 24);
  for (size_t b = 0; b < kBits.size(); ++b) {
    QuantScheme scheme = groups_of_16();
    scheme.bits = kBits[b];
    REQUIRE(losses[b] == Approx(gptq(weight, moment, scheme).loss).epsilon(1e-6));
  }
}

TEST_CASE("a few rows estimate the loss of all", "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(512, 64, "w");
  const at::Tensor moment = correlated_moment(64, 400);
  const GptqFactor factor = gptq_factor(moment, groups_of_16());
  const std::vector<double> all = losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 512);
  const std::vector<double> few = losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 64);
  for (size_t b = 0; b < kBits.size(); ++b) REQUIRE(few[b] == Approx(all[b]).epsilon(0.15));
}

TEST_CASE("more bits never lose more, at any number of threads", "[quant][sensitivity]") {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    CAPTURE(seed);
    const at::Tensor weight = normal_matrix(40, 32, "w", seed);
    const GptqFactor factor = gptq_factor(correlated_moment(32, 100, seed), groups_of_16());
    const std::vector<int64_t> bits = {2, 3, 4, 5, 6, 7, 8};
    ThreadPool three(3);
    const auto losses = losses_by_bits(weight, factor, groups_of_16(), bits, {}, 8);
    REQUIRE(losses == losses_by_bits(weight, factor, groups_of_16(), bits, {}, 8, {}, &three));
    for (size_t b = 1; b < bits.size(); ++b) REQUIRE(losses[b] <= losses[b - 1]);
    REQUIRE(losses.back() < 0.01 * losses.front());
  }
}

TEST_CASE("row weights count the loss of each output", "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(6, 32, "w");
  const GptqFactor factor = gptq_factor(correlated_moment(32, 100), groups_of_16());
  const at::Tensor s = at::tensor({0.0, 1.0, 0.0, 0.0, 3.0, 0.0}, at::kDouble);
  const auto both = losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 6, s);
  const auto second = losses_by_bits(weight.narrow(0, 1, 1), factor, groups_of_16(), kBits, {}, 6);
  const auto fifth = losses_by_bits(weight.narrow(0, 4, 1), factor, groups_of_16(), kBits, {}, 6);
  for (size_t b = 0; b < kBits.size(); ++b) REQUIRE(both[b] == Approx(second[b] + 3 * fifth[b]));
}

// Outputs whose gradients are independent of the inputs: F_oi = sum_t g_to^2 x_ti^2 averages to s_o H_ii.
TEST_CASE("the sensitivity of an output is the mean square of its gradient", "[quant][sensitivity]") {
  const at::Tensor x = normal_matrix(4000, 8, "x") * at::linspace(0.5, 4, 8, at::kDouble);
  const at::Tensor g = normal_matrix(4000, 3, "g") * at::tensor({0.1, 1.0, 5.0}, at::kDouble);
  const at::Tensor squares = at::matmul(g.square().t(), x.square());
  const at::Tensor s = output_sensitivity(squares, at::matmul(x.t(), x));
  for (int64_t o = 0; o < 3; ++o) {
    REQUIRE(s[o].item<double>() == Approx(g.select(1, o).square().mean().item<double>()).epsilon(0.1));
  }
  REQUIRE(output_sensitivity(squares, at::zeros({8, 8})).equal(at::zeros({3}, at::kDouble)));
}

TEST_CASE("widths that do not ascend and empty samples are refused", "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(4, 16, "w");
  const GptqFactor factor = gptq_factor(correlated_moment(16, 50), groups_of_16());
  REQUIRE(error_text([&] {
            losses_by_bits(weight, factor, groups_of_16(), {4, 4});
          }) == "[losses_by_bits] the bit widths must ascend; received [4, 4]");
  REQUIRE(error_text([&] { losses_by_bits(weight, factor, groups_of_16(), {}); }) ==
          "[losses_by_bits] the bit widths must ascend; received []");
  REQUIRE(error_text([&] { losses_by_bits(weight, factor, groups_of_16(), {4}, {}, 0); }) ==
          "[losses_by_bits] at least one row must be sampled; received 0");
  REQUIRE(error_text([&] { losses_by_bits(weight, factor, groups_of_16(), {4}, {}, 1, at::ones({3})); }) ==
          "[losses_by_bits] the row weights must be [4]; received [3]");
}
