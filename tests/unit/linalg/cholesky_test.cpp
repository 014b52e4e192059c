#include "lcomp/linalg/cholesky.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <numeric>

#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::linalg;
using lcomp::ThreadPool;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::relative_difference;

namespace {

/// || U A U^T - I ||: small when A^-1 = U^T U.
double residual(const DampedInverse& factor, const at::Tensor& damped) {
  const at::Tensor product = at::matmul(at::matmul(factor.upper, damped), factor.upper.t());
  return (product - at::eye(damped.size(0), at::kDouble)).abs().max().item<double>();
}

at::Tensor damped_matrix(const at::Tensor& h, const DampedInverse& factor) {
  return h.to(at::kDouble) + at::diag(at::tensor(factor.added, at::kDouble));
}

}  // namespace

TEST_CASE("the factor of a damped inverse gives back the inverse at every size", "[linalg][cholesky]") {
  // Sizes below, at and beyond the block sizes of the factorisation.
  for (const int64_t n : {1, 2, 7, 64, 127, 128, 129, 300, 450}) {
    CAPTURE(n);
    const at::Tensor h = correlated_moment(n, 2 * n + 1);
    const DampedInverse factor = damped_inverse(h, 0.01);
    REQUIRE(factor.rung == Rung::kPlain);
    REQUIRE(factor.attempts.empty());
    REQUIRE(factor.upper.equal(factor.upper.triu()));
    REQUIRE(factor.upper.diagonal().min().item<double>() > 0);
    const double mean = h.diagonal().mean().item<double>();
    for (const double added : factor.added) REQUIRE(added == Approx(0.01 * mean));
    REQUIRE(residual(factor, damped_matrix(h, factor)) < 1e-9);
  }
}

TEST_CASE("the worked example's factor is reproduced", "[linalg][cholesky]") {
  const at::Tensor h = at::tensor({5.4, 1.58, -1.06, 2.76, 1.58, 5.12, .24, -.12, -1.06, .24, 6.04, -2.9,
                                   2.76, -.12, -2.9, 6.04},
                                  at::kDouble)
                           .reshape({4, 4});
  const at::Tensor expected = at::tensor({.521096, -.163833, -.021583, -.249401, 0., .439925, -.01706,
                                          .000544, 0., 0., .460433, .21902, 0., 0., 0., .405004},
                                         at::kDouble)
                                  .reshape({4, 4});
  REQUIRE((damped_inverse(h, 0.01).upper - expected).abs().max().item<double>() < 1e-6);
}

TEST_CASE("an order permutes rows and columns before the factorisation", "[linalg][cholesky]") {
  const at::Tensor h = correlated_moment(40, 100);
  std::vector<int64_t> order(40);
  std::iota(order.rbegin(), order.rend(), 0);
  const at::Tensor index = at::tensor(order, at::kLong);
  const at::Tensor permuted = h.index_select(0, index).index_select(1, index).contiguous();
  REQUIRE(damped_inverse(h, 0.01, order).upper.equal(damped_inverse(permuted, 0.01).upper));
}

TEST_CASE("float32 moments are factored in float64", "[linalg][cholesky]") {
  const at::Tensor h = correlated_moment(50, 200).to(at::kFloat);
  REQUIRE(damped_inverse(h).upper.equal(damped_inverse(h.to(at::kDouble)).upper));
}

TEST_CASE("the factor is the same at any number of threads", "[linalg][cholesky]") {
  const at::Tensor h = correlated_moment(450, 900);
  const at::Tensor alone = damped_inverse(h).upper;
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    REQUIRE(damped_inverse(h, 0.01, {}, &pool).upper.equal(alone));
  }
}

TEST_CASE("a diagonal moment has a diagonal factor, exactly", "[linalg][cholesky]") {
  const at::Tensor h = at::diag(at::tensor({4.0, 16.0, 1.0}, at::kDouble));
  const at::Tensor upper = damped_inverse(h, 0).upper;
  REQUIRE(upper.equal(at::diag(at::tensor({0.5, 0.25, 1.0}, at::kDouble))));
}

TEST_CASE("the ladder raises damping first and then the diagonal", "[linalg][cholesky]") {
  // Eigenvalues 1 +- 1.05 of every pair: damping 0.05 just suffices.
  const at::Tensor indefinite = at::eye(6, at::kDouble);
  for (int64_t i = 0; i < 6; i += 2) indefinite[i][i + 1] = indefinite[i + 1][i] = 1.05;
  const DampedInverse more = damped_inverse(indefinite, 0.01);
  REQUIRE(more.rung == Rung::kMoreDamping);
  REQUIRE(more.damping == Approx(0.08));
  REQUIRE(more.attempts == std::vector<std::string>{"damping 0.01: not positive definite at 5 of 6",
                                                    "damping 0.02: not positive definite at 5 of 6",
                                                    "damping 0.04: not positive definite at 5 of 6"});
  REQUIRE(residual(more, damped_matrix(indefinite, more)) < 1e-12);

  // A negative diagonal element beyond what damping 0.64 of the mean reaches.
  const at::Tensor negative = at::diag(at::tensor({1.0, 1.0, 1.0, -2.0}, at::kDouble));
  const DampedInverse floored = damped_inverse(negative, 0.01);
  REQUIRE(floored.rung == Rung::kDiagonalFloor);
  REQUIRE(floored.diagonal_floor == Approx(2e-6));
  REQUIRE(residual(floored, damped_matrix(negative, floored)) < 1e-9);
}

TEST_CASE("a singular moment without damping takes the first damping of the ladder", "[linalg][cholesky]") {
  const DampedInverse factor = damped_inverse(at::zeros({3, 3}, at::kDouble) + 1.0, 0);
  REQUIRE(factor.rung == Rung::kMoreDamping);
  REQUIRE(factor.damping == 0.01);
}

TEST_CASE("data without a factor are a status, not an exception", "[linalg][cholesky]") {
  const at::Tensor far_off = at::eye(4, at::kDouble) + 50 * (1 - at::eye(4, at::kDouble));
  const DampedInverse indefinite = damped_inverse(far_off, 0.01);
  REQUIRE(indefinite.rung == Rung::kFailed);
  REQUIRE_FALSE(indefinite.upper.defined());
  REQUIRE(indefinite.attempts.size() == 7 * 7);

  at::Tensor bad = correlated_moment(4, 10);
  bad[1][2] = bad[2][1] = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(damped_inverse(bad).attempts.back() == "the second moment is not finite");
  bad[0][0] = std::numeric_limits<double>::infinity();
  REQUIRE(damped_inverse(bad).attempts.back() == "the diagonal of the second moment is not finite");
  REQUIRE(damped_inverse(at::zeros({4, 4}, at::kDouble)).attempts.back() ==
          "the diagonal of the second moment is zero: no input ever fired");
}

TEST_CASE("an input that never fires counts as one of unit power", "[linalg][cholesky]") {
  at::Tensor h = correlated_moment(5, 20);
  h.select(0, 2).zero_();
  h.select(1, 2).zero_();
  const DampedInverse factor = damped_inverse(h, 0.01);
  const double mean = (h.diagonal().sum().item<double>() + 1) / 5;
  REQUIRE(factor.added[2] == Approx(1 + 0.01 * mean));
  REQUIRE(factor.added[1] == Approx(0.01 * mean));
}

TEST_CASE("the condition hint bounds the condition number from below", "[linalg][cholesky]") {
  const at::Tensor h = at::diag(at::tensor({100.0, 1.0, 4.0}, at::kDouble));
  REQUIRE(damped_inverse(h, 0).condition == Approx(100));
}

TEST_CASE("misuse of the factorisation is an exception", "[linalg][cholesky]") {
  REQUIRE(error_text([] {
            damped_inverse(at::ones({3, 4}));
          }) ==
          "[damped_inverse] the second moment must be a square matrix of float32 or float64; received [3, 4] "
          "of float32");
  REQUIRE(error_text([] {
            damped_inverse(at::ones({3, 3}, at::kHalf));
          }) ==
          "[damped_inverse] the second moment must be a square matrix of float32 or float64; received [3, 3] "
          "of float16");
  REQUIRE(error_text([] { damped_inverse(at::eye(3), -0.5); }) ==
          "[damped_inverse] damping must be at least 0; received -0.5");
  REQUIRE(error_text([] {
            damped_inverse(at::eye(3), 0.01, {0, 1, 1});
          }) == "[damped_inverse] the order must be a permutation of 0 .. 2");
}
