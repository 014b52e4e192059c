#include "lcomp/calib/input_stats.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/matrices.h"

using namespace lcomp;
using calib::StatsAccumulator;

TEST_CASE("statistics equal their formulas in double", "[calib][stats]") {
  const int64_t tokens = 300;
  const int64_t features = 37;
  const at::Tensor exact =
      test::normal_matrix(tokens, features, "x") * at::linspace(0.1, 5, features, at::kDouble);
  const at::Tensor x = exact.to(at::kFloat).contiguous();
  const at::Tensor d = x.to(at::kDouble);
  StatsAccumulator accumulator(features, {.second_moment = true, .abs_mean = true, .abs_max = true});
  ThreadPool pool(2);
  accumulator.add(&pool, x.data_ptr<float>(), 100);
  accumulator.add(&pool, x.data_ptr<float>() + 100 * features, 200);
  const auto stats = accumulator.finish();
  REQUIRE(stats.tokens == tokens);
  REQUIRE(test::relative_difference(stats.second_moment, at::matmul(d.t(), d)) < 1e-6);
  REQUIRE(stats.second_moment.equal(stats.second_moment.t()));
  REQUIRE(test::relative_difference(stats.abs_mean, d.abs().mean(0)) < 1e-7);
  REQUIRE(stats.abs_max.equal(x.abs().amax(0)));
}

TEST_CASE("the mismatch is that of the two inputs, in whole and in halves", "[calib][stats]") {
  const int64_t features = 300, tokens = 40;
  const at::Tensor x = test::normal_matrix(tokens, features, "x").to(at::kFloat).contiguous();
  const at::Tensor dense =
      (x + 0.01 * test::normal_matrix(tokens, features, "d")).to(at::kFloat).contiguous();
  const at::Tensor d = dense.to(at::kDouble) - x.to(at::kDouble), wide = x.to(at::kDouble);
  StatsAccumulator whole(features, {.second_moment = true, .mismatch = true});
  StatsAccumulator halves(features, {.second_moment = true, .mismatch = true, .halves = true});
  for (StatsAccumulator* accumulator : {&whole, &halves}) {
    at::Tensor reference = dense.clone();
    float* r = reference.data_ptr<float>();
    accumulator->add(nullptr, x.data_ptr<float>(), 15, r, 0);
    accumulator->add(nullptr, x.data_ptr<float>() + 15 * features, 25, r + 15 * features, 1);
  }
  const auto in_all = whole.finish(), split = halves.finish();
  REQUIRE(test::relative_difference(in_all.mismatch, at::matmul(d.t(), wide)) < 1e-5);
  REQUIRE_FALSE(in_all.half_mismatch[0].defined());
  REQUIRE(test::relative_difference(split.mismatch, in_all.mismatch) < 1e-6);
  REQUIRE(test::relative_difference(split.second_moment, in_all.second_moment) < 1e-6);
  const at::Tensor first = wide.narrow(0, 0, 15), second = wide.narrow(0, 15, 25);
  REQUIRE(test::relative_difference(split.half_moment[0], at::matmul(first.t(), first)) < 1e-6);
  REQUIRE(test::relative_difference(split.half_moment[1], at::matmul(second.t(), second)) < 1e-6);
  REQUIRE(test::relative_difference(split.half_mismatch[0], at::matmul(d.narrow(0, 0, 15).t(), first)) <
          1e-5);
  REQUIRE(test::relative_difference(split.half_mismatch[1], at::matmul(d.narrow(0, 15, 25).t(), second)) <
          1e-5);
}

TEST_CASE("statistics that were not asked for are not made", "[calib][stats]") {
  const at::Tensor x = at::ones({2, 3});
  StatsAccumulator only_max(3, {.abs_max = true});
  only_max.add(nullptr, x.data_ptr<float>(), 2);
  const auto stats = only_max.finish();
  REQUIRE(stats.tokens == 2);
  REQUIRE_FALSE(stats.second_moment.defined());
  REQUIRE_FALSE(stats.abs_mean.defined());
  REQUIRE(stats.abs_max.equal(at::ones({3})));
  REQUIRE_FALSE(calib::Needs{}.any());
  REQUIRE((calib::Needs{.abs_mean = true} | calib::Needs{.second_moment = true}).second_moment);
}

TEST_CASE("statistics do not depend on the number of threads", "[calib][stats]") {
  const at::Tensor x = test::normal_matrix(500, 600, "x").to(at::kFloat).contiguous();
  std::vector<at::Tensor> moments;
  for (const int threads : {1, 3}) {
    ThreadPool pool(threads);
    StatsAccumulator accumulator(600, {.second_moment = true});
    accumulator.add(&pool, x.data_ptr<float>(), 500);
    moments.push_back(accumulator.finish().second_moment);
  }
  REQUIRE(moments[0].equal(moments[1]));
}

TEST_CASE("no tokens give zero statistics", "[calib][stats]") {
  StatsAccumulator accumulator(4, {.second_moment = true, .abs_mean = true});
  const auto stats = accumulator.finish();
  REQUIRE(stats.tokens == 0);
  REQUIRE(stats.second_moment.equal(at::zeros({4, 4})));
  REQUIRE(stats.abs_mean.equal(at::zeros({4})));
}

TEST_CASE("sampled tokens are spread over all tokens, and the same in every run", "[calib][stats]") {
  const int64_t tokens = 1000;
  const at::Tensor x = at::arange(tokens, at::kFloat).unsqueeze(1).contiguous();
  const auto sample = [&](int64_t count, int64_t batch) {
    StatsAccumulator accumulator(1, {.sampled_tokens = count}, tokens);
    for (int64_t first = 0; first < tokens; first += batch)
      accumulator.add(nullptr, x.data_ptr<float>() + first, std::min(batch, tokens - first));
    return accumulator.finish().samples;
  };
  const at::Tensor ten = sample(10, 1000);
  REQUIRE(ten.sizes() == at::IntArrayRef{10, 1});
  for (int64_t k = 0; k < 10; ++k) {
    const double token = ten[k][0].item<double>();
    REQUIRE((token >= 100.0 * static_cast<double>(k) && token < 100.0 * static_cast<double>(k + 1)));
  }
  REQUIRE(sample(10, 7).equal(ten));
  REQUIRE(sample(5000, 33).equal(x));
}

TEST_CASE("statistics of divided inputs follow by algebra", "[calib][stats]") {
  const at::Tensor x = test::normal_matrix(50, 6, "x").to(at::kFloat).contiguous();
  const at::Tensor scale = at::linspace(0.3, 4, 6, at::kDouble);
  const calib::Needs needs{.second_moment = true, .abs_mean = true, .abs_max = true, .sampled_tokens = 9};
  const auto of = [&](const at::Tensor& inputs) {
    StatsAccumulator accumulator(6, needs, 50);
    accumulator.add(nullptr, inputs.data_ptr<float>(), 50);
    return accumulator.finish();
  };
  const auto derived = calib::divided(of(x), scale);
  const auto taken = of((x / scale).to(at::kFloat).contiguous());
  REQUIRE(derived.tokens == 50);
  REQUIRE(test::relative_difference(derived.second_moment, taken.second_moment) < 1e-6);
  REQUIRE(derived.second_moment.equal(derived.second_moment.t()));
  REQUIRE(test::relative_difference(derived.abs_mean, taken.abs_mean) < 1e-6);
  REQUIRE(test::relative_difference(derived.abs_max, taken.abs_max) < 1e-6);
  REQUIRE(test::relative_difference(derived.samples, taken.samples) < 1e-6);
  REQUIRE(needs.covers({.abs_mean = true, .sampled_tokens = 9}));
  REQUIRE_FALSE(needs.covers({.sampled_tokens = 10}));
  REQUIRE_FALSE(calib::Needs{.abs_mean = true}.covers(needs));
}

TEST_CASE("ranges of tokens, distribution and outliers are those of the values", "[calib][stats]") {
  const int64_t tokens = 90, features = 35;
  const at::Tensor x = (test::normal_matrix(tokens, features, "x") * 2).to(at::kFloat).contiguous();
  StatsAccumulator accumulator(features, {.token_range = true, .value_counts = true, .outlier_threshold = 3});
  accumulator.add(nullptr, x.data_ptr<float>(), 40);
  accumulator.add(nullptr, x.data_ptr<float>() + 40 * features, 50);
  const auto stats = accumulator.finish();
  REQUIRE(stats.token_lowest.equal(x.amin(1)));
  REQUIRE(stats.token_highest.equal(x.amax(1)));
  REQUIRE(stats.outlier_tokens.equal((x.abs() >= 3).sum(0)));
  REQUIRE(stats.value_counts.sum().item<int64_t>() == tokens * features);
  // bfloat16 cut off, not rounded: 1 and all up to the next step above it.
  const at::Tensor near_one = x.ge(1).logical_and(x.lt(1 + 0x1p-7));
  REQUIRE(stats.value_counts[0x3f80].item<int64_t>() == near_one.sum().item<int64_t>());
  REQUIRE((calib::Needs{.outlier_threshold = 2} | calib::Needs{.token_range = true}).outlier_threshold == 2);
  REQUIRE(calib::Needs{.value_counts = true}.any());
}
