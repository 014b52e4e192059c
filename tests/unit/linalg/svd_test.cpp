#include "lcomp/linalg/svd.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::linalg;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;
using lcomp::test::to_eigen;

namespace {

at::Tensor eye(int64_t n) {
  return at::eye(n, at::kDouble);
}

double squared_norm(const at::Tensor& m) {
  return m.square().sum().item<double>();
}

/// [m, n] with singular values 1, 1/2, 1/3 ...
at::Tensor harmonic(int64_t m, int64_t n) {
  const int64_t all = std::min(m, n);
  const at::Tensor u = orthonormal_columns(normal_matrix(m, all, "u"));
  const at::Tensor v = orthonormal_columns(normal_matrix(n, all, "v"));
  return (u / at::arange(1, all + 1, at::kDouble)).mm(v.t());
}

}  // namespace

TEST_CASE("every solver gives orthonormal vectors and the error of its tail", "[linalg][svd]") {
  for (const auto& [m, n] : {std::pair{40, 40}, {60, 25}, {25, 60}, {1, 7}, {7, 1}}) {
    const at::Tensor a = harmonic(m, n);
    const Eigen::VectorXd oracle = Eigen::JacobiSVD<Eigen::MatrixXd>(to_eigen(a)).singularValues();
    for (const auto solver : {SvdSolver::kExact, SvdSolver::kGram, SvdSolver::kRandomized}) {
      for (const int64_t k : {int64_t{1}, std::min<int64_t>({m, n, 8}), int64_t{-1}}) {
        CAPTURE(m, n, k, static_cast<int>(solver));
        const Svd svd = truncated_svd(a, k, solver);
        const int64_t count = k < 0 ? std::min(m, n) : k;
        REQUIRE(static_cast<int64_t>(svd.values.size()) == count);
        REQUIRE(relative_difference(svd.left.t().mm(svd.left), eye(count)) < 1e-9);
        REQUIRE(relative_difference(svd.right.mm(svd.right.t()), eye(count)) < 1e-9);
        for (int64_t i = 0; i < count; ++i)
          REQUIRE(svd.values[static_cast<size_t>(i)] == Approx(oracle[i]).epsilon(1e-5));
        const double error = squared_norm(a - svd.product());
        REQUIRE(std::abs(error - svd.tail) < 1e-12 + 1e-9 * squared_norm(a));
        REQUIRE(error >= oracle.tail(oracle.size() - count).squaredNorm() - 1e-12);
      }
    }
  }
}

TEST_CASE("power iterations sharpen the randomized solver", "[linalg][svd]") {
  const at::Tensor a = harmonic(200, 150);
  const double least = truncated_svd(a, 10).tail;
  double before = std::numeric_limits<double>::infinity();
  for (const int64_t power : {0, 1, 2}) {
    const double ratio = std::sqrt(
        truncated_svd(a, 10, SvdSolver::kRandomized, {.oversampling = 10, .power = power}).tail / least);
    REQUIRE(ratio >= 1 - 1e-12);
    REQUIRE(ratio < before);
    before = ratio;
  }
  REQUIRE(before < 1.001);
}

TEST_CASE("randomized: a matrix of small rank is found exactly, and the same in every run", "[linalg][svd]") {
  const at::Tensor a = normal_matrix(80, 6, "left").mm(normal_matrix(6, 50, "right"));
  const Svd svd = truncated_svd(a, 6, SvdSolver::kRandomized);
  REQUIRE(relative_difference(svd.product(), a) < 1e-12);
  REQUIRE(svd.left.equal(truncated_svd(a, 6, SvdSolver::kRandomized).left));
}

TEST_CASE("the largest eigenvalues solve the eigenvalue equation", "[linalg][svd]") {
  const at::Tensor h = correlated_moment(50, 120);
  for (const int64_t count : {1, 7, 50}) {
    const lcomp::linalg::Eigen eigen = largest_eigen(h, count);
    const at::Tensor values = at::tensor(eigen.values, at::kDouble);
    REQUIRE(std::is_sorted(eigen.values.rbegin(), eigen.values.rend()));
    REQUIRE(relative_difference(eigen.vectors.mm(h), eigen.vectors * values.unsqueeze(1)) < 1e-10);
    REQUIRE(relative_difference(eigen.vectors.mm(eigen.vectors.t()), eye(count)) < 1e-10);
  }
  REQUIRE(largest_eigen(h).values.size() == 50);
}

TEST_CASE("pivot rows: the first span the others with small factors", "[linalg][svd]") {
  const at::Tensor a = normal_matrix(90, 12, "tall");
  const auto [order, rank] = pivot_rows(a);
  REQUIRE(rank == 12);
  std::vector<int64_t> sorted = order;
  std::sort(sorted.begin(), sorted.end());
  for (int64_t i = 0; i < 90; ++i) REQUIRE(sorted[static_cast<size_t>(i)] == i);
  const at::Tensor taken = a.index_select(0, at::tensor(order, at::kLong).narrow(0, 0, 12));
  const at::Tensor factors = std::get<0>(at::linalg_solve_ex(taken.t(), a.t())).t();
  REQUIRE(factors.abs().max().item<double>() < 10);
}

TEST_CASE("bad matrices are refused", "[linalg][svd]") {
  const at::Tensor a = normal_matrix(4, 6, "a");
  CHECK_THAT(error_text([&] { truncated_svd(a, 5); }),
             Catch::Contains("the count must lie in [1, 4]; it is 5"));
  CHECK_THAT(error_text([&] { largest_eigen(a); }),
             Catch::Contains("the matrix must be square; it is [4, 6]"));
  CHECK_THAT(
      error_text([&] { truncated_svd(a.to(at::kHalf)); }),
      Catch::Contains(
          "the matrix must be two-dimensional, not empty, and of float32 or float64; it has 2 dimensions"));
  CHECK(error_text([&] { truncated_svd(a, 2, SvdSolver::kRandomized, {.oversampling = 4, .power = -1}); }) ==
        "[truncated_svd] oversampling and power must not be negative; they are 4 and -1");
  at::Tensor bad = a.clone();
  bad[1][2] = std::numeric_limits<double>::quiet_NaN();
  CHECK_THAT(error_text([&] { truncated_svd(bad); }),
             Catch::Contains("all elements of the matrix must be finite; some are not"));
}
