// Fitting grids: what the range rules minimise.
#include "lcomp/quant/grid.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;

namespace {

QuantScheme searched(RangeRule range, int64_t bits = 3, Granularity granularity = Granularity::kGroup) {
  return {.bits = bits, .granularity = granularity, .group_size = 16, .range = range};
}

/// Rows of `weight` minus what they round to on `grid`.
at::Tensor errors(const at::Tensor& weight, const Grid& grid, const QuantScheme& scheme) {
  return dequantize(quantize(weight, grid, scheme), grid) - weight;
}

/// d H_gg d^T summed over groups of 16, one number per row.
at::Tensor block_losses(const at::Tensor& d, const at::Tensor& h) {
  at::Tensor total = at::zeros({d.size(0)}, at::kDouble);
  for (int64_t c = 0; c < d.size(1); c += 16) {
    const at::Tensor part = d.narrow(1, c, 16), block = h.narrow(0, c, 16).narrow(1, c, 16);
    total += (at::matmul(part, block) * part).sum(1);
  }
  return total;
}

/// The least weighted error over the shrink factors and both signs, for one row that is one group, from the
/// formulas.
double least_error(const at::Tensor& row, const at::Tensor& importance, int64_t bits, int64_t steps) {
  const double m = row.abs().max().item<double>(), half = std::pow(2.0, bits - 1);
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < steps; ++i) {
    for (const double sign : {1, -1}) {
      const double s = sign * m * (1 - static_cast<double>(i) / 100) / half;
      const at::Tensor off = (row / s).round().clamp(-half, half - 1) * s - row;
      least = std::min(least, (off * off * importance).sum().item<double>());
    }
  }
  return least;
}

}  // namespace

TEST_CASE("range hessian finds the shrink factor with the least weighted error", "[quant][grid]") {
  const at::Tensor weight = normal_matrix(5, 16, "weight"), importance = normal_matrix(1, 16, "h")[0].abs();
  for (const int64_t bits : {2, 3, 4}) {
    for (const int64_t steps : {1, 30, 80}) {
      CAPTURE(bits, steps);
      QuantScheme scheme = searched(RangeRule::kHessian, bits);
      scheme.mse_steps = steps;
      const at::Tensor d = errors(weight, fit_grid(weight, scheme, "test", nullptr, importance), scheme);
      for (int64_t r = 0; r < 5; ++r) {
        REQUIRE((d[r] * d[r] * importance).sum().item<double>() ==
                Approx(least_error(weight[r], importance, bits, steps)).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("range hessian never loses more of the output than the exact range", "[quant][grid]") {
  for (const uint64_t seed : {1, 2, 3}) {
    const at::Tensor weight = normal_matrix(20, 64, "weight", seed), h = correlated_moment(64, 200, seed);
    for (const bool symmetric : {true, false}) {
      CAPTURE(seed, symmetric);
      QuantScheme exact = searched(RangeRule::kMinMax), found = searched(RangeRule::kHessian);
      exact.symmetric = found.symmetric = symmetric;
      const at::Tensor plain = errors(weight, fit_grid(weight, exact), exact);
      const at::Tensor diagonal =
          errors(weight, fit_grid(weight, found, "test", nullptr, h.diagonal()), found);
      const at::Tensor full = errors(weight, fit_grid(weight, found, "test", nullptr, h), found);
      REQUIRE((diagonal * diagonal * h.diagonal())
                  .sum(1)
                  .le((plain * plain * h.diagonal()).sum(1))
                  .all()
                  .item<bool>());
      REQUIRE((block_losses(full, h) <= block_losses(plain, h) * (1 + 1e-12)).all().item<bool>());
      REQUIRE((block_losses(full, h) <= block_losses(diagonal, h) * (1 + 1e-12)).all().item<bool>());
    }
  }
}

TEST_CASE("equal importance is the search for the least square, at every granularity", "[quant][grid]") {
  const at::Tensor weight = normal_matrix(7, 32, "weight"), ones = at::full({32}, 0.5, at::kFloat);
  for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
    QuantScheme squares = searched(RangeRule::kMse, 3, granularity);
    squares.mse_exponent = 2;
    const Grid expected = fit_grid(weight, squares);
    const Grid found = fit_grid(weight, searched(RangeRule::kHessian, 3, granularity), "test", nullptr, ones);
    REQUIRE(found.scale.equal(expected.scale));
    if (granularity == Granularity::kTensor) continue;
    const Grid from_matrix = fit_grid(weight, searched(RangeRule::kHessian, 3, granularity), "test", nullptr,
                                      at::eye(32, at::kDouble));
    REQUIRE(from_matrix.scale.equal(expected.scale));
  }
}

TEST_CASE("the factor of an importance is irrelevant, and inputs of no importance do not count",
          "[quant][grid]") {
  const QuantScheme scheme = searched(RangeRule::kHessian);
  at::Tensor weight = normal_matrix(7, 32, "weight"), importance = normal_matrix(1, 32, "h")[0].abs();
  const Grid grid = fit_grid(weight, scheme, "test", nullptr, importance);
  REQUIRE(fit_grid(weight, scheme, "test", nullptr, importance * 4).scale.equal(grid.scale));
  importance[3] = 0;
  weight.select(1, 3).fill_(0.01);  // far inside the range
  const Grid without = fit_grid(weight, scheme, "test", nullptr, importance);
  weight.select(1, 3).mul_(0.7);
  REQUIRE(fit_grid(weight, scheme, "test", nullptr, importance).scale.equal(without.scale));
}

TEST_CASE("round to nearest takes the importance along", "[quant][rtn]") {
  const QuantScheme scheme = searched(RangeRule::kHessian);
  const at::Tensor weight = normal_matrix(7, 32, "weight"), h = correlated_moment(32, 100);
  const QuantizedWeight rounded = rtn(weight, scheme, nullptr, h.diagonal());
  REQUIRE(rounded.scale().equal(fit_grid(weight, scheme, "test", nullptr, h.diagonal()).scale));
}

TEST_CASE("range hessian refuses an importance that is missing or does not fit", "[quant][grid]") {
  const at::Tensor weight = normal_matrix(4, 32, "weight");
  const auto text = [&](const at::Tensor& importance, Granularity granularity = Granularity::kGroup) {
    return error_text([&] {
      fit_grid(weight, searched(RangeRule::kHessian, 3, granularity), "test", nullptr, importance);
    });
  };
  REQUIRE(text({}) == "[test] range hessian must have an importance [32] or [32, 32]; received none");
  REQUIRE(text(at::ones({31})) ==
          "[test] range hessian must have an importance [32] or [32, 32]; received [31] of float32");
  REQUIRE(text(at::ones({32}, at::kInt)) ==
          "[test] range hessian must have an importance [32] or [32, 32]; received [32] of int32");
  REQUIRE(text(at::eye(32), Granularity::kTensor) ==
          "[test] range hessian must have an importance [32]; received [32, 32] of float32");
  REQUIRE(text(at::ones({32}), Granularity::kTensor) == "nothing was thrown");
}

TEST_CASE("signed scales lose no more than scales of one sign, and less where a group leans to one side",
          "[quant][grid]") {
  const at::Tensor weight = normal_matrix(64, 32, "weight");
  for (const RangeRule range : {RangeRule::kMinMax, RangeRule::kMse}) {
    CAPTURE(lcomp::name_of(range));
    QuantScheme either = searched(range), upward = either;
    upward.symmetric_convention = SymmetricConvention::kMidRange;
    either.mse_exponent = upward.mse_exponent = 2;
    const auto loss = [&](const at::Tensor& w, const QuantScheme& scheme) {
      return errors(w, fit_grid(w, scheme), scheme).square().sum().item<double>();
    };
    REQUIRE(loss(weight, either) < 0.95 * loss(weight, upward));
    REQUIRE(loss(weight, either) == Approx(loss(-weight, either)).epsilon(1e-12));
  }
}
