#include "lcomp/lowrank/tensor_train.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/lowrank/kronecker.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::linalg::SvdSolver;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

using Sizes = std::vector<int64_t>;

at::Tensor normal_tensor(const Sizes& shape, const std::string& stream, uint64_t seed = 1) {
  return normal_matrix(1, c10::multiply_integers(shape), stream, seed).reshape(shape);
}

TensorTrain random_train(const Sizes& shape, const Sizes& ranks, uint64_t seed = 1) {
  TensorTrain train;
  for (size_t k = 0; k < shape.size(); ++k) {
    train.cores.push_back(
        normal_tensor({ranks[k], shape[k], ranks[k + 1]}, "core" + std::to_string(k), seed));
  }
  return train;
}

double error_of(const at::Tensor& tensor, const at::Tensor& result) {
  return ((tensor - result).norm() / tensor.norm()).item<double>();
}

Eigen::VectorXd singular_values(const at::Tensor& matrix) {
  return Eigen::JacobiSVD<Eigen::MatrixXd>(lcomp::test::to_eigen(matrix)).singularValues();
}

/// A tensor whose unfoldings have falling singular values.
at::Tensor smooth_tensor(const Sizes& shape, uint64_t seed) {
  at::Tensor sum = 0.02 * normal_tensor(shape, "noise", seed);
  for (const int64_t rank : {1, 2, 3}) {
    const Sizes ranks{1, rank, rank, rank, 1};
    sum = sum + random_train(shape, ranks, seed).full() / std::pow(4.0, rank);
  }
  return sum;
}

void require_left_orthogonal(const TensorTrain& train) {
  for (size_t k = 0; k + 1 < train.cores.size(); ++k) {
    const at::Tensor core = train.cores[k].flatten(0, 1);
    REQUIRE(relative_difference(core.t().mm(core), at::eye(core.size(1), at::kDouble)) < 1e-10);
  }
}

}  // namespace

TEST_CASE("TT-SVD keeps its promise for any eps and says what it lost", "[lowrank][train]") {
  const Sizes shape{4, 5, 6, 3};
  for (const uint64_t seed : {1, 2}) {
    const at::Tensor t = smooth_tensor(shape, seed);
    for (const double eps : {0.0, 1e-3, 0.01, 0.1, 0.5}) {
      for (const auto solver : {std::optional<SvdSolver>(), std::optional(SvdSolver::kGram)}) {
        CAPTURE(seed, eps);
        const TrainResult result = tt_svd(t, {.eps = eps, .solver = solver});
        const double error = error_of(t, result.train.full());
        CHECK(error <= eps + 1e-7);
        CHECK(std::abs(result.relative_error - error) < 1e-6);
        require_left_orthogonal(result.train);
        const Sizes ranks = result.train.ranks();
        CHECK(ranks.front() == 1);
        CHECK(ranks.back() == 1);
        for (size_t k = 1; k < 4; ++k) {
          const int64_t left = c10::multiply_integers(shape.begin(), shape.begin() + static_cast<int>(k));
          CHECK(ranks[k] <= std::min(left, t.numel() / left));
        }
      }
    }
  }
}

TEST_CASE("TT-SVD at given ranks loses no more than the unfoldings together", "[lowrank][train]") {
  const at::Tensor t = smooth_tensor({4, 5, 6, 3}, 3);
  const Sizes ranks{2, 3, 2};
  const TrainResult result = tt_svd(t, {.ranks = ranks});
  double most = 0, least = 0;
  for (int64_t k = 0; k < 3; ++k) {
    const Eigen::VectorXd s = singular_values(t.flatten(0, k).reshape({t.flatten(0, k).size(0), -1}));
    const double tail = s.tail(s.size() - ranks[static_cast<size_t>(k)]).squaredNorm();
    most += tail;
    least = std::max(least, tail);
  }
  const double lost = (t - result.train.full()).square().sum().item<double>();
  CHECK(lost <= most * (1 + 1e-12));
  CHECK(lost >= least * (1 - 1e-12));
  CHECK(result.train.ranks() == Sizes{1, 2, 3, 2, 1});
  CHECK(result.train.parameters() == 4 * 2 + 2 * 5 * 3 + 3 * 6 * 2 + 2 * 3);
  CHECK(tt_svd(t, {.ranks = {2}}).train.ranks() == Sizes{1, 2, 2, 2, 1});
}

TEST_CASE("the ranks of a train are found again", "[lowrank][train]") {
  const Sizes ranks{1, 3, 4, 2, 1};
  const TensorTrain train = random_train({4, 5, 6, 3}, ranks);
  const TrainResult again = tt_svd(train.full(), {.eps = 1e-10});
  CHECK(again.train.ranks() == ranks);
  CHECK(relative_difference(again.train.full(), train.full()) < 1e-10);
}

TEST_CASE("rounding: T + T has the ranks of T, within eps, and again changes nothing", "[lowrank][train]") {
  const Sizes ranks{1, 3, 4, 2, 1};
  const TensorTrain train = random_train({4, 5, 6, 3}, ranks);
  const TensorTrain twice = tt_sum(train, train);
  CHECK(twice.ranks() == Sizes{1, 6, 8, 4, 1});
  CHECK(relative_difference(twice.full(), 2 * train.full()) < 1e-12);
  const TrainResult rounded = tt_round(twice, {.eps = 1e-10});
  CHECK(rounded.train.ranks() == ranks);
  CHECK(relative_difference(rounded.train.full(), 2 * train.full()) < 1e-10);
  CHECK(relative_difference(tt_round(train, {}).train.full(), train.full()) < 1e-12);

  for (const double eps : {0.05, 0.3}) {
    const TrainResult cut = tt_round(twice, {.eps = eps});
    const double error = error_of(twice.full(), cut.train.full());
    CHECK(error <= eps);
    CHECK(cut.relative_error == Approx(error).epsilon(1e-6).margin(1e-6));
    require_left_orthogonal(cut.train);
    const TrainResult again = tt_round(cut.train, {.eps = 1e-10});
    CHECK(again.train.ranks() == cut.train.ranks());
    CHECK(relative_difference(again.train.full(), cut.train.full()) < 1e-10);
  }
}

TEST_CASE("sums of trains of one core add up", "[lowrank][train]") {
  const TensorTrain one = random_train({7}, {1, 1});
  CHECK(tt_sum(one, one).full().equal(2 * one.full()));
  CHECK(tt_round(one, {.eps = 0.1}).train.full().equal(one.full()));
}

TEST_CASE("a zero tensor has ranks 1 and no error", "[lowrank][train]") {
  const TrainResult zero = tt_svd(at::zeros({3, 4, 5}), {.eps = 0.1});
  CHECK(zero.train.ranks() == Sizes{1, 1, 1, 1});
  CHECK(zero.relative_error == 0);
  CHECK(tt_round(zero.train, {.eps = 0.1}).relative_error == 0);
}

TEST_CASE("a TT-matrix stays within eps, pads, and transposes by its cores", "[lowrank][train]") {
  const at::Tensor w =
      normal_matrix(22, 3, "a").mm(normal_matrix(3, 33, "b")) + 0.05 * normal_matrix(22, 33, "c");
  for (const double eps : {0.0, 0.05, 0.3}) {
    const TrainMatrix matrix = tt_matrix(w, {2, 3, 4}, {4, 3, 3}, {.eps = eps});
    CHECK(matrix.full().sizes() == w.sizes());
    CHECK(error_of(w, matrix.full()) <= eps + 1e-12);
    CHECK(error_of(w, matrix.full()) <= matrix.relative_error + 1e-12);
    CHECK(matrix.transposed().full().equal(matrix.full().t()));
  }
  const TrainMatrix fine = tt_matrix(w, {2, 3, 4}, {4, 3, 3}, {});
  CHECK(error_of(w, tt_round(fine, {.eps = 0.3}).full()) <= 0.3);
  CHECK(tt_matrix(w, {22}, {33}, {}).full().equal(w));
}

TEST_CASE("two digits are the nearest sum of Kronecker products", "[lowrank][kronecker]") {
  const at::Tensor w = normal_matrix(12, 20, "w");
  const KroneckerShape shape{.m1 = 3, .n1 = 4, .m2 = 4, .n2 = 5};
  const Eigen::VectorXd s = singular_values(paired_digits(w, {3, 4}, {4, 5}));
  for (const int64_t rank : {1, 3, 12, 99}) {
    const KroneckerSum sum = kronecker_sum(w, shape, rank);
    const int64_t terms = std::min<int64_t>(rank, 12);
    REQUIRE(sum.left.sizes() == at::IntArrayRef({terms, 3, 4}));
    REQUIRE(sum.right.sizes() == at::IntArrayRef({terms, 4, 5}));
    at::Tensor direct = at::zeros_like(w);
    for (int64_t q = 0; q < terms; ++q) direct += at::kron(sum.left[q], sum.right[q]);
    CHECK(relative_difference(sum.full(), direct) < 1e-12);
    const double lost = (w - direct).square().sum().item<double>();
    CHECK(std::abs(lost - s.tail(12 - terms).squaredNorm()) < 1e-10);
    CHECK(sum.relative_error == Approx(error_of(w, direct)).margin(1e-12));
    CHECK(relative_difference(sum.left.flatten(1).norm(2, 1), sum.right.flatten(1).norm(2, 1)) < 1e-12);
    CHECK(relative_difference(sum.full(), tt_matrix(w, {3, 4}, {4, 5}, {.ranks = {rank}}).full()) < 1e-12);
    CHECK(relative_difference(sum.train().transposed().full(), w.t()) <=
          relative_difference(sum.full(), w) * (1 + 1e-9));
  }
  CHECK(kronecker_sum(at::zeros({12, 20}), shape, 2).full().abs().max().item<double>() == 0);
  CHECK(kronecker_sum(w.narrow(0, 0, 11), shape, 12).full().sizes() == at::IntArrayRef({11, 20}));
}

TEST_CASE("costs of a TT-matrix are those of the method sheet", "[lowrank][train]") {
  const TrainCost small = train_cost({16, 16, 16}, {16, 16, 16}, {1, 8, 8, 1});
  CHECK(small.parameters == 20480);
  CHECK(small.macs() == 5242880);
  const TrainCost large = train_cost({16, 16, 16}, {16, 16, 16}, {1, 64, 64, 1});
  CHECK(large.parameters == 1081344);
  CHECK(large.macs() == 276824064);
  const TrainCost pairs = train_cost({64, 64}, {64, 64}, {1, 32, 1});
  CHECK(pairs.parameters == 262144);
  CHECK(pairs.macs() == 16777216);
  CHECK(train_cost({64, 64}, {64, 64}, {1, 16, 1}).macs() == 8388608);
  const TrainCost skew = train_cost({2, 8}, {8, 2}, {1, 3, 1});
  CHECK(skew.macs_left == 2 * 8 * 3 * 2 + 2 * 3 * 8 * 2);
  CHECK(skew.macs_right == 8 * 3 * 8 * 2 + 3 * 2 * 8 * 8);
  CHECK(skew.row_macs == 8 * 3 + 8 * 3 * 2);
}

TEST_CASE("shapes are balanced, padded and paired", "[lowrank][train]") {
  CHECK(balanced_shape(4096, 3) == Sizes{16, 16, 16});
  CHECK(balanced_shape(576, 2) == Sizes{24, 24});
  CHECK(balanced_shape(49152, 3) == Sizes{32, 32, 48});
  CHECK(balanced_shape(13, 3) == Sizes{1, 1, 13});
  CHECK(balanced_shape(1, 2) == Sizes{1, 1});
  CHECK(balanced_shape(12, 1) == Sizes{12});
  CHECK(padded_shape(13, 2) == Sizes{4, 5});
  CHECK(padded_shape(4096, 3) == Sizes{16, 16, 16});
  for (const int64_t n : {17, 101, 30522, 50257}) {
    for (const int64_t d : {2, 3, 4}) CHECK(c10::multiply_integers(padded_shape(n, d)) >= n);
  }
  const MatrixShapes shapes = paired_shapes(1536, 576, 3);
  CHECK(shapes.rows == Sizes{8, 12, 16});
  CHECK(shapes.columns == Sizes{9, 8, 8});
}

TEST_CASE("trains: what does not fit is refused", "[lowrank][train]") {
  const at::Tensor t = normal_tensor({3, 4, 5}, "t");
  CHECK_THAT(error_text([&] { tt_svd(t, {.eps = -1}); }),
             Catch::Contains("eps must be at least 0; it is -1"));
  CHECK_THAT(error_text([&] {
               tt_svd(t, {.ranks = {1, 2, 3}});
             }),
             Catch::Contains("one for each of 2 cuts; there are 3"));
  CHECK_THAT(error_text([&] { tt_svd(t, {.ranks = {0}}); }),
             Catch::Contains("ranks must be at least 1; one is 0"));
  CHECK_THAT(
      error_text([&] { tt_svd(at::zeros({0}), {}); }),
      Catch::Contains("the tensor must be of floating-point numbers and not empty; it is float32 [0]"));
  CHECK_THAT(error_text([&] {
               tt_round(TensorTrain{{t, t}}, {});
             }),
             Catch::Contains("after rank 1 there is [3, 4, 5]"));
  CHECK_THAT(error_text([&] { tt_round(TensorTrain{{t.narrow(0, 0, 1)}}, {}); }),
             Catch::Contains("the last rank must be 1; it is 5"));
  CHECK_THAT(error_text([&] {
               tt_sum(random_train({3}, {1, 1}), random_train({4}, {1, 1}));
             }),
             Catch::Contains("both trains must have the same shape; they have not"));
  CHECK_THAT(error_text([&] {
               tt_matrix(normal_matrix(6, 6, "w"), {2, 2}, {2, 3}, {});
             }),
             Catch::Contains("products of at least [6, 6]; they are 2 x 2 and 2 x 3"));
  CHECK_THAT(error_text([&] {
               tt_matrix(t, {2, 2}, {2, 3}, {});
             }),
             Catch::Contains("a floating-point matrix"));
  CHECK_THAT(
      error_text([&] { train_cost({2}, {2}, {1}); }),
      Catch::Contains("for 1 rows there must be as many columns and one more rank; there are 1 and 1"));
  CHECK_THAT(error_text([&] { balanced_shape(0, 2); }),
             Catch::Contains("n and d must be at least 1; they are 0 and 2"));
}
