#include "lcomp/lowrank/alternation.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparsity.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::DenseWeight;
using lcomp::WeightPtr;
using lcomp::test::correlated_moment;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

WeightPtr rounded(const at::Tensor& matrix) {
  const lcomp::quant::QuantScheme scheme{.bits = 3, .granularity = lcomp::quant::Granularity::kChannel};
  return std::make_shared<lcomp::quant::QuantizedWeight>(lcomp::quant::rtn(matrix.to(at::kFloat), scheme));
}

PartOf pruned(const at::Tensor& diagonal, double sparsity) {
  return [=](const at::Tensor& matrix) {
    const at::Tensor scores = lcomp::sparse::wanda(matrix, diagonal);
    return std::make_shared<DenseWeight>(matrix * lcomp::sparse::select_kept(scores, {.sparsity = sparsity}));
  };
}

}  // namespace

TEST_CASE("alternation: one fit of what rounding leaves is its best low-rank part",
          "[lowrank][alternation]") {
  const at::Tensor w = normal_matrix(30, 24, "w"), h = correlated_moment(24, 100);
  for (const InputMetric& metric : {InputMetric::plain(24), InputMetric::moment(h)}) {
    const Alternation found = alternate(w, metric, 5, rounded);
    const at::Tensor left_over = w - rounded(w)->dense();
    REQUIRE(found.part->dense().equal(rounded(w)->dense()));
    REQUIRE(relative_difference(found.low_rank.product(), low_rank(left_over, metric, 5).product()) < 1e-12);
    REQUIRE(found.loss == Approx(metric.loss(left_over - found.low_rank.product())));
    REQUIRE(found.loss < metric.loss(left_over));
  }
}

TEST_CASE("alternation: the best iterate is kept, and more of them help", "[lowrank][alternation]") {
  const at::Tensor w = normal_matrix(40, 32, "w");
  const InputMetric metric = InputMetric::moment(correlated_moment(32, 100));
  const double once = alternate(w, metric, 4, rounded).loss;
  for (const bool first : {false, true}) {
    const Alternation found = alternate(w, metric, 4, rounded, {.iterations = 12, .low_rank_first = first});
    REQUIRE(found.losses.size() == 12);
    REQUIRE(found.loss == *std::min_element(found.losses.begin(), found.losses.end()));
    REQUIRE(found.loss ==
            Approx(metric.loss(w - found.part->dense() - found.low_rank.product())).epsilon(1e-6));
    REQUIRE(found.loss < once);
  }
}

TEST_CASE("alternation: pruning by the scores of its metric never raises the loss",
          "[lowrank][alternation]") {
  for (const auto& [m, n] : {std::pair{40, 28}, {28, 40}}) {
    const at::Tensor w = normal_matrix(m, n, "w");
    const at::Tensor diagonal = correlated_moment(n, 100).diagonal().contiguous();
    const InputMetric metric = InputMetric::diagonal(diagonal.sqrt());
    const Alternation found =
        alternate(w, metric, 6, pruned(diagonal, 0.6), {.iterations = 40, .low_rank_first = true});
    for (size_t i = 1; i < found.losses.size(); ++i)
      REQUIRE(found.losses[i] <= found.losses[i - 1] * (1 + 1e-9));
    REQUIRE(found.losses.back() < 0.9 * found.losses.front());
    REQUIRE(found.part->dense().count_nonzero().item<int64_t>() == m * (n - static_cast<int64_t>(0.6 * n)));
  }
}

TEST_CASE("a step from nearby factors is no worse than their own directions", "[lowrank][alternation]") {
  const at::Tensor w = normal_matrix(30, 40, "w"), moved = w + 0.1 * normal_matrix(30, 40, "moved");
  const InputMetric metric = InputMetric::moment(correlated_moment(40, 150));
  const Factors start = low_rank(w, metric, 6);
  const Factors step = low_rank_from(moved, metric, start);
  const at::Tensor projected = start.left.mm(start.left.t()).mm(moved);
  REQUIRE(step.tail == Approx(metric.loss(moved - step.product())));
  REQUIRE(step.tail <= metric.loss(moved - projected));
  REQUIRE(step.tail >= low_rank(moved, metric, 6).tail * (1 - 1e-9));
}
