#include "lcomp/lowrank/tucker.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/lowrank/head_tucker.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

at::Tensor normal_tensor(const std::vector<int64_t>& shape, const std::string& stream, uint64_t seed = 1) {
  return normal_matrix(1, c10::multiply_integers(shape), stream, seed).reshape(shape);
}

double distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).norm().item<double>();
}

/// Squared singular values of the unfolding beyond the rank.
double unfolding_tail(const at::Tensor& tensor, int64_t mode, int64_t rank) {
  const Eigen::VectorXd s =
      Eigen::JacobiSVD<Eigen::MatrixXd>(lcomp::test::to_eigen(unfold(tensor, mode))).singularValues();
  return s.tail(s.size() - rank).squaredNorm();
}

void require_orthonormal(const Tucker& tucker) {
  for (const at::Tensor& u : tucker.factors)
    REQUIRE(relative_difference(u.t().mm(u), at::eye(u.size(1), at::kDouble)) < 1e-12);
}

}  // namespace

TEST_CASE("unfolding puts a mode in front and keeps the order of the others", "[lowrank][tucker]") {
  const at::Tensor t = at::arange(24, at::kDouble).reshape({2, 3, 4});
  REQUIRE(unfold(t, 1).sizes() == at::IntArrayRef({3, 8}));
  REQUIRE(unfold(t, 1)[1][5].item<double>() == t[1][1][1].item<double>());
  for (const int64_t mode : {0, 1, 2}) REQUIRE(fold(unfold(t, mode), mode, t.sizes()).equal(t));
}

TEST_CASE("a mode product multiplies every fibre", "[lowrank][tucker]") {
  const at::Tensor t = normal_tensor({3, 4, 5}, "t"), a = normal_matrix(6, 4, "a");
  const at::Tensor result = mode_product(t, a, 1);
  REQUIRE(result.sizes() == at::IntArrayRef({3, 6, 5}));
  for (const int64_t i : {0, 2}) REQUIRE(relative_difference(result[i], a.mm(t[i])) < 1e-12);
}

TEST_CASE("errors of Tucker decompositions lie between those of the unfoldings", "[lowrank][tucker]") {
  for (const uint64_t seed : {1, 2, 3}) {
    const at::Tensor t = normal_tensor({8, 9, 10}, "t", seed);
    const std::vector<int64_t> ranks{3, 4, 2};
    double least = 0, most = 0;
    for (const int64_t mode : {0, 1, 2}) {
      const double tail = unfolding_tail(t, mode, ranks[static_cast<size_t>(mode)]);
      least = std::max(least, tail);
      most += tail;
    }
    const double norm = t.norm().item<double>();
    const Tucker by_hooi = hooi(t, ranks);
    for (const Tucker& tucker : {hosvd(t, ranks), st_hosvd(t, ranks), by_hooi,
                                 st_hosvd(t, ranks, {}, TuckerOrder::kLargestReduction)}) {
      require_orthonormal(tucker);
      const double error = distance(t, tucker.full());
      CHECK(error * error >= least * (1 - 1e-12));
      CHECK(error * error <= most * (1 + 1e-12));
      CHECK(tucker.relative_error == Approx(error / norm).epsilon(1e-9));
      CHECK(tucker.parameters() == 3 * 4 * 2 + 8 * 3 + 9 * 4 + 10 * 2);
      CHECK(by_hooi.relative_error <= tucker.relative_error * (1 + 1e-12));
      CHECK(tucker.relative_error <= std::sqrt(3.0) * by_hooi.relative_error);
    }
    for (size_t i = 1; i < by_hooi.sweep_errors.size(); ++i)
      CHECK(by_hooi.sweep_errors[i] <= by_hooi.sweep_errors[i - 1] * (1 + 1e-12));
  }
}

TEST_CASE("full ranks, and the ranks that a tensor has, are exact", "[lowrank][tucker]") {
  const at::Tensor t = normal_tensor({4, 5, 6}, "t");
  for (const Tucker& tucker : {hosvd(t, {4, 5, 6}), st_hosvd(t, {4, 5, 6}), hooi(t, {4, 5, 6})})
    CHECK(relative_difference(tucker.full(), t) < 1e-12);
  const Tucker small = hosvd(t, {2, 3, 2});
  CHECK(relative_difference(hosvd(small.full(), {2, 3, 2}).full(), small.full()) < 1e-12);
}

TEST_CASE("a partial decomposition leaves the other modes alone and follows their permutation",
          "[lowrank][tucker]") {
  // The attention heads of multi-head Tucker: the mode of heads has no factor.
  const at::Tensor t = normal_tensor({8, 4, 3, 5}, "heads");
  const std::vector<int64_t> ranks{3, 2, 2}, modes{0, 1, 2};
  const Tucker tucker = hooi(t, ranks, modes, {.tolerance = 1e-12});
  REQUIRE(tucker.core.sizes() == at::IntArrayRef({3, 2, 2, 5}));
  REQUIRE(tucker.factors.size() == 3);
  CHECK(tucker.parameters() == 5 * 3 * 2 * 2 + 8 * 3 + 4 * 2 + 3 * 2);
  const at::Tensor order = at::tensor({3, 0, 4, 1, 2}, at::kLong);
  const Tucker permuted = hooi(t.index_select(3, order), ranks, modes, {.tolerance = 1e-12});
  CHECK(relative_difference(permuted.full(), tucker.full().index_select(3, order)) < 1e-6);
  CHECK(relative_difference(hosvd(t, {8, 4, 3}, modes).full(), t) < 1e-12);
  // Bases of their own for each head can only be better than shared ones.
  double apart = 0;
  for (const int64_t head : {0, 1, 2, 3, 4}) {
    const at::Tensor one = t.select(3, head);
    apart += std::pow(distance(one, hooi(one, ranks, {}, {.tolerance = 1e-12}).full()), 2);
  }
  CHECK(std::sqrt(apart) <= distance(t, tucker.full()) * (1 + 1e-9));
}

TEST_CASE("a tensor of zeros has no error", "[lowrank][tucker]") {
  CHECK(hooi(at::zeros({3, 4}, at::kDouble), {1, 1}).relative_error == 0);
}

TEST_CASE(
    "heads: bases are orthonormal, exact where heads share them, and their error is that of the projection",
    "[lowrank][tucker]") {
  constexpr int64_t kHeadDim = 4, kHidden = 10;
  const auto orthonormal = [](int64_t rows, int64_t columns, const char* stream) {
    return std::get<0>(at::linalg_qr(normal_matrix(rows, columns, stream).to(at::kDouble)));
  };
  const at::Tensor hidden = orthonormal(kHidden, 3, "hidden"), head = orthonormal(kHeadDim, 2, "head");
  std::vector<at::Tensor> planted, noisy;
  for (const auto& [name, heads] : {std::pair("q", 6), std::pair("k", 2), std::pair("o", 6)}) {
    const at::Tensor cores = normal_matrix(heads * 2, 3, name).to(at::kDouble).reshape({heads, 2, 3});
    planted.push_back(head.matmul(cores).reshape({heads * kHeadDim, 3}).mm(hidden.t()));
    noisy.push_back(planted.back() + 0.1 * normal_matrix(heads * kHeadDim, kHidden, name, 2).to(at::kDouble));
  }
  const HeadBases exact = head_bases(planted, kHeadDim, 3, 2);
  CHECK(exact.relative_error < 1e-7);
  CHECK(relative_difference(exact.hidden.mm(exact.hidden.t()), hidden.mm(hidden.t())) < 1e-7);
  const HeadBases found = head_bases(noisy, kHeadDim, 3, 2);
  CHECK(relative_difference(found.hidden.t().mm(found.hidden), at::eye(3, at::kDouble)) < 1e-12);
  CHECK(relative_difference(found.head.t().mm(found.head), at::eye(2, at::kDouble)) < 1e-12);
  double lost = 0, all = 0;
  for (const at::Tensor& slice : noisy) {
    const int64_t heads = slice.size(0) / kHeadDim;
    const at::Tensor cores = heads_projected(slice, found.head).mm(found.hidden).reshape({heads, 2, 3});
    const at::Tensor back = found.head.matmul(cores).reshape({slice.size(0), 3}).mm(found.hidden.t());
    lost += (slice - back).square().sum().item<double>();
    all += slice.square().sum().item<double>();
  }
  CHECK(found.relative_error == Approx(std::sqrt(lost / all)).epsilon(1e-6));
  CHECK(head_bases(noisy, kHeadDim, 4, 2).relative_error < found.relative_error);
}

TEST_CASE("Tucker: what does not fit is refused", "[lowrank][tucker]") {
  const at::Tensor t = normal_tensor({3, 4, 5}, "t");
  CHECK_THAT(error_text([&] { unfold(t, 3); }), Catch::Contains("the mode must lie in [0, 2]; it is 3"));
  CHECK_THAT(error_text([&] { fold(t.flatten(1), 1, t.sizes()); }),
             Catch::Contains("must be an unfolding of [3, 4, 5] at 1; it is [3, 20]"));
  CHECK_THAT(error_text([&] { fold(t.flatten(1), 3, t.sizes()); }), Catch::Contains("must lie in [0, 2]"));
  CHECK_THAT(error_text([&] { mode_product(t, normal_matrix(2, 3, "a"), 1); }),
             Catch::Contains("must have 4 columns; it is [2, 3]"));
  CHECK_THAT(error_text([&] {
               hosvd(t, {1, 1});
             }),
             Catch::Contains("one rank for each of 3 modes; there are 2"));
  CHECK_THAT(error_text([&] {
               st_hosvd(t, {1, 5, 1});
             }),
             Catch::Contains("the rank of mode 1 must lie in [1, 4]; it is 5"));
  CHECK_THAT(error_text([&] {
               hosvd(t, {1, 1}, {1, 0});
             }),
             Catch::Contains("modes must ascend; they are 1, 0"));
  CHECK_THAT(
      error_text([&] {
        hosvd(at::zeros({0, 2}), {1, 1});
      }),
      Catch::Contains("the tensor must be of floating-point numbers and not empty; it is float32 [0, 2]"));
  CHECK(error_text([&] {
          head_bases({normal_matrix(8, 6, "q"), normal_matrix(6, 6, "k")}, 4, 2, 2);
        }) == "[head_bases] every slice must be [heads x 4, 6]; one is [6, 6]");
  CHECK_THAT(error_text([&] {
               hooi(t, {1, 1, 1}, {}, {.max_sweeps = 0});
             }),
             Catch::Contains("sweeps must be at least 1; they are 0"));
  at::Tensor bad = t.clone();
  bad[0][0][0] = std::numeric_limits<double>::infinity();
  CHECK_THAT(error_text([&] { hosvd(bad, {1, 1, 1}); }), Catch::Contains("must be finite"));
}
