#include "lcomp/quant/refine.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/weight_error.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/rtn.h"
#include "reference/refine_reference.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::to_eigen;

namespace {

constexpr RefineOptions kSweep{.sweeps = 1, .refit = false};
constexpr RefineOptions kRefit{.sweeps = 0, .refit = true};

QuantScheme groups_of(int64_t group_size, bool symmetric = true, int64_t bits = 3) {
  return {.bits = bits, .symmetric = symmetric, .group_size = group_size};
}

at::Tensor exact_dense(const QuantizedWeight& weight) {
  return dequantize(weight.codes(), {weight.scale(), weight.zero()});
}

lcomp::reference::Rounding to_reference(const QuantizedWeight& weight) {
  const QuantScheme& scheme = weight.scheme();
  const Eigen::MatrixXd scales = to_eigen(weight.scale());
  return {
      to_eigen(weight.codes()),
      scales,
      weight.zero().defined() ? to_eigen(weight.zero()) : Eigen::MatrixXd::Zero(scales.rows(), scales.cols()),
      scheme.columns_per_group(weight.in_features()),
      static_cast<double>(scheme.lowest_code()),
      static_cast<double>(scheme.highest_code())};
}

/// A start that is far from the best: rounded to nearest.
struct Problem {
  explicit Problem(const QuantScheme& scheme, int64_t out = 20, int64_t in = 96)
      : weight(normal_matrix(out, in, "weight")),
        h(correlated_moment(in, 3 * in)),
        added(static_cast<size_t>(in), 0.01 * h.diagonal().mean().item<double>()),
        damped(h + at::diag(at::tensor(added, at::kDouble))),
        start(rtn(weight, scheme)) {}

  at::Tensor weight, h;
  std::vector<double> added;
  at::Tensor damped;
  QuantizedWeight start;
};

}  // namespace

TEST_CASE("a sweep gives every code what the formula gives it", "[quant][refine]") {
  for (const int64_t group : {8, 32, 48, 96}) {
    for (const bool symmetric : {true, false}) {
      CAPTURE(group, symmetric);
      const Problem p(groups_of(group, symmetric));
      lcomp::reference::Rounding expected = to_reference(p.start);
      for (int64_t sweeps = 1; sweeps <= 2; ++sweeps) {
        lcomp::reference::sweep(expected, to_eigen(p.weight), to_eigen(p.damped));
        const RefineResult result =
            refine(p.weight, p.h, p.added, p.start, {.sweeps = sweeps, .refit = false});
        REQUIRE(to_eigen(result.weight.codes()) == expected.codes);
        REQUIRE(result.weight.scale().equal(p.start.scale()));
      }
    }
  }
}

TEST_CASE("groups wider than a block of columns are swept alike", "[quant][refine]") {
  const Problem p({.bits = 3, .granularity = Granularity::kChannel}, 5, 300);
  lcomp::reference::Rounding expected = to_reference(p.start);
  lcomp::reference::sweep(expected, to_eigen(p.weight), to_eigen(p.damped));
  REQUIRE(to_eigen(refine(p.weight, p.h, p.added, p.start, kSweep).weight.codes()) == expected.codes);
}

TEST_CASE("the refit is the least squares solution for the codes", "[quant][refine]") {
  for (const int64_t group : {8, 48, 96}) {  // 96: a single group
    for (const bool symmetric : {true, false}) {
      CAPTURE(group, symmetric);
      const Problem p(groups_of(group, symmetric));
      const RefineResult result = refine(p.weight, p.h, p.added, p.start, kRefit);
      REQUIRE(result.weight.codes().equal(p.start.codes()));
      for (int64_t r = 0; r < p.weight.size(0); ++r) {
        const Eigen::VectorXd expected =
            lcomp::reference::best_scales(to_reference(p.start), to_eigen(p.weight), to_eigen(p.damped), r);
        const Eigen::VectorXd found = to_eigen(result.weight.scale()).row(r);
        REQUIRE((found - expected).cwiseAbs().maxCoeff() < 1e-6 * expected.cwiseAbs().maxCoeff());
      }
    }
  }
}

TEST_CASE("independent inputs make the refit <c, w> / <c, c>", "[quant][refine]") {
  const at::Tensor weight = normal_matrix(6, 32, "weight");
  const QuantizedWeight start = rtn(weight, groups_of(16));
  const RefineResult result = refine(weight, at::eye(32, at::kDouble), {}, start, kRefit);
  const at::Tensor c = start.codes().to(at::kDouble).reshape({6, 2, 16}), w = weight.reshape({6, 2, 16});
  REQUIRE(lcomp::test::relative_difference(result.weight.scale(), (c * w).sum(2) / (c * c).sum(2)) < 1e-8);
}

TEST_CASE("the losses are the quadratic forms of what is returned", "[quant][refine]") {
  for (const RefineOptions& options : {kSweep, kRefit, RefineOptions{.sweeps = 3, .refit = true}}) {
    for (const bool symmetric : {true, false}) {
      CAPTURE(options.sweeps, options.refit, symmetric);
      const Problem p(groups_of(16, symmetric));
      const RefineResult result = refine(p.weight, p.h, p.added, p.start, options);
      const at::Tensor before = p.weight - exact_dense(p.start), d = p.weight - exact_dense(result.weight);
      REQUIRE(result.start_loss == Approx(lcomp::activation_energy(before, p.damped)).epsilon(1e-10));
      REQUIRE(result.damped_loss == Approx(lcomp::activation_energy(d, p.damped)).epsilon(1e-10));
      REQUIRE(result.loss == Approx(lcomp::activation_energy(d, p.h)).epsilon(1e-9));
    }
  }
}

TEST_CASE("a weight on the grid is found again from scales that are off", "[quant][refine]") {
  for (const bool symmetric : {true, false}) {
    const Problem p(groups_of(16, symmetric));
    const at::Tensor on_grid = exact_dense(p.start);
    const QuantizedWeight off(p.start.scheme(), p.start.codes(), p.start.scale() * 1.07, p.start.zero());
    const RefineResult result = refine(on_grid, p.h, p.added, off, {.sweeps = 1, .refit = true});
    REQUIRE(result.weight.codes().equal(p.start.codes()));
    REQUIRE(lcomp::test::relative_difference(result.weight.scale(), p.start.scale()) < 1e-7);
    REQUIRE(result.damped_loss < 1e-12 * result.start_loss);
  }
}

TEST_CASE("inputs that have nothing to do with each other leave no code to improve", "[quant][refine]") {
  const at::Tensor weight = normal_matrix(9, 64, "weight"), h = at::diag(normal_matrix(1, 64, "h")[0].abs());
  const QuantizedWeight start = rtn(weight, groups_of(16));
  REQUIRE(refine(weight, h, {}, start, {.sweeps = 3, .refit = false}).weight.codes().equal(start.codes()));
}

TEST_CASE("columns are refined in their own groups when a group index says so", "[quant][refine]") {
  const int64_t in = 64;
  const at::Tensor weight = normal_matrix(12, in, "weight"), h = correlated_moment(in, 200);
  const GptqResult walked =
      gptq(weight, h, groups_of(16, false), {.act_order = ActOrder::kActivation, .store_group_index = true});
  const at::Tensor index = walked.weight.group_index().to(at::kLong);
  const RefineResult result = refine(weight, h, {}, walked.weight, {.sweeps = 2, .refit = true});
  REQUIRE(result.weight.group_index().equal(walked.weight.group_index()));

  // The same with columns sorted by group.
  const at::Tensor order = at::argsort(index, true, 0, false);
  const QuantizedWeight sorted(walked.weight.scheme(), walked.weight.codes().index_select(1, order),
                               walked.weight.scale(), walked.weight.zero());
  const at::Tensor sorted_h = h.index_select(0, order).index_select(1, order);
  const RefineResult plain =
      refine(weight.index_select(1, order), sorted_h, {}, sorted, {.sweeps = 2, .refit = true});
  REQUIRE(result.weight.codes().index_select(1, order).equal(plain.weight.codes()));
  REQUIRE(result.weight.scale().equal(plain.weight.scale()));
  REQUIRE(result.damped_loss < result.start_loss);
}

TEST_CASE("inputs that never fire change nothing", "[quant][refine]") {
  at::Tensor h = correlated_moment(32, 100);
  h[3].zero_();
  h.select(1, 3).zero_();
  const at::Tensor weight = normal_matrix(4, 32, "weight");
  const QuantizedWeight start = rtn(weight, groups_of(16));
  const RefineResult result = refine(weight, h, {}, start, {.sweeps = 2, .refit = true});
  REQUIRE(result.weight.codes().select(1, 3).equal(start.codes().select(1, 3)));
  REQUIRE(result.damped_loss < result.start_loss);
}

TEST_CASE("arguments that do not fit are refused by refine", "[quant][refine]") {
  const Problem p(groups_of(16), 4, 32);
  const auto text = [&](const at::Tensor& w, const at::Tensor& h, const std::vector<double>& added) {
    return error_text([&] { refine(w, h, added, p.start); });
  };
  REQUIRE(text(p.weight.narrow(0, 0, 3), p.h, {}) ==
          "[refine] the target must be [4, 32] of a floating-point type; received [3, 32] of float64");
  REQUIRE(text(p.weight.to(at::kInt), p.h, {}) ==
          "[refine] the target must be [4, 32] of a floating-point type; received [4, 32] of int32");
  REQUIRE(text(p.weight, p.h.narrow(0, 0, 3), {}) ==
          "[refine] the second moment must be [32, 32] of float32 or float64; received [3, 32] of float64");
  REQUIRE(text(p.weight, p.h, {1, 2}) ==
          "[refine] what is added to the diagonal must have 32 elements, or none; received 2");
  REQUIRE(error_text([&] {
            refine(p.weight, p.h, {}, p.start, {}, nullptr, at::ones({4, 32}));
          }) == "[refine] the mask must be bool [4, 32]; received [4, 32] of float32");
}
