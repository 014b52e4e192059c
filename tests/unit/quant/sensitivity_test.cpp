#include "lcomp/quant/sensitivity.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>
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
    REQUIRE(losses == losses_by_bits(weight, factor, groups_of_16(), bits, {}, 8, {}, {}, &three));
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

// With gradients g_to = a_t b_o the factors are exact: sum_to g_to^2 (d_o x_t)^2 over all rows.
TEST_CASE("a moment weighted by gradients gives the second-order change of the loss",
          "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(6, 32, "w");
  const at::Tensor x = normal_matrix(300, 32, "x");
  const at::Tensor a = normal_matrix(300, 1, "a"), b = normal_matrix(1, 6, "b");
  const at::Tensor g = a * b;
  const GptqFactor factor = gptq_factor(at::matmul(x.t(), x), groups_of_16());
  const at::Tensor by_token = g.square().sum(1, true);
  const auto losses = losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 6,
                                     g.square().sum(0) / by_token.sum(), at::matmul((x * by_token).t(), x));
  for (size_t w = 0; w < kBits.size(); ++w) {
    QuantScheme scheme = groups_of_16();
    scheme.bits = kBits[w];
    const at::Tensor d = weight - gptq(weight, factor, scheme, {}).weight.dense();
    const double exact = (g.square() * at::matmul(x, d.t()).square()).sum().item<double>();
    REQUIRE(losses[w] == Approx(exact).epsilon(1e-5));
  }
  REQUIRE(error_text([&] {
            losses_by_bits(weight, factor, groups_of_16(), kBits, {}, 6, {}, at::ones({3, 3}));
          }) ==
          "[sampled_losses] the moment of the loss must be [32, 32], as that of the inputs; received [3, 3]");
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
          "[sampled_losses] at least one row must be sampled; received 0");
  REQUIRE(error_text([&] { losses_by_bits(weight, factor, groups_of_16(), {4}, {}, 1, at::ones({3})); }) ==
          "[sampled_losses] the row weights must be [4]; received [3]");
}

TEST_CASE("losses of all rows are exact, those of a sample stand for them", "[quant][sensitivity]") {
  const at::Tensor weight = normal_matrix(300, 16, "w"), moment = correlated_moment(16, 50);
  const at::Tensor s = normal_matrix(300, 1, "s").square().flatten();
  const auto halved = [&](const at::Tensor& rows, size_t way) {
    return weight.index_select(0, rows) * (way == 0 ? 1.0 : 0.5);
  };
  const auto all = sampled_losses(weight, moment, s, 300, 2, halved);
  const at::Tensor d = (weight / 2).to(at::kDouble);
  const double exact = (d.matmul(moment.to(at::kDouble)) * d).sum(1).dot(s.to(at::kDouble)).item<double>();
  REQUIRE(all[0] == 0);
  REQUIRE(all[1] == Approx(exact).epsilon(1e-9));
  REQUIRE(sampled_losses(weight, moment, s, 50, 2, halved)[1] == Approx(exact).epsilon(0.1));
  const auto endless = [&](const at::Tensor& rows, size_t) {
    return weight.index_select(0, rows) + std::numeric_limits<double>::infinity();
  };
  REQUIRE_THAT(error_text([&] { sampled_losses(weight, moment, s, 4, 1, endless); }),
               Catch::StartsWith("[sampled_losses] the estimated loss must be finite; of way 0 it is "));
}
