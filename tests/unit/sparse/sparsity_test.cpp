#include "lcomp/sparse/sparsity.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/sparse/recover.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::sparse;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;

TEST_CASE("counts are exact, whatever the ties", "[sparse][sparsity]") {
  const at::Tensor ties = at::ones({4, 10}, at::kDouble);
  for (const double share : {0.0, 0.1, 0.3, 0.55, 1.0}) {
    CAPTURE(share);
    const at::Tensor kept = select_kept(ties, {.sparsity = share});
    const int64_t count = share_of(share, 10);
    // Of equal ones those further left go.
    REQUIRE(kept.narrow(1, 0, count).logical_not().all().item<bool>());
    REQUIRE(kept.narrow(1, count, 10 - count).all().item<bool>());
    const Sparsity whole{.sparsity = share, .scope = Scope::kTensor};
    REQUIRE(select_kept(ties, whole).logical_not().sum().item<int64_t>() == whole.removed(4, 10));
  }
  REQUIRE(share_of(0.3, 10) == 3);
  REQUIRE(share_of(0.35, 10) == 3);
  REQUIRE(share_of(0.7, 100) == 70);
}

TEST_CASE("N of each M are kept, those with the largest scores", "[sparse][sparsity]") {
  const at::Tensor scores = normal_matrix(8, 40, "scores").abs();
  for (const auto& [kept, of] : {std::pair<int64_t, int64_t>{2, 4}, {1, 4}, {4, 8}, {7, 10}, {1, 2}}) {
    CAPTURE(kept, of);
    const Sparsity sparsity{.pattern = std::to_string(kept) + ":" + std::to_string(of)};
    const at::Tensor mask = select_kept(scores, sparsity);
    const at::Tensor units = mask.reshape({-1, of}), values = scores.reshape({-1, of});
    REQUIRE(units.sum(1).eq(kept).all().item<bool>());
    const at::Tensor least_kept = values.masked_fill(units.logical_not(), 1e9).amin(1);
    const at::Tensor most_removed = values.masked_fill(units, -1).amax(1);
    REQUIRE((most_removed <= least_kept).all().item<bool>());
    REQUIRE(sparsity.removed(8, 40) == mask.logical_not().sum().item<int64_t>());
    lcomp::ThreadPool pool(3);
    REQUIRE(select_kept(scores, sparsity, &pool).equal(mask));
  }
}

TEST_CASE("magnitude keeps the mask with the least weight error of all", "[sparse][sparsity]") {
  const at::Tensor w = normal_matrix(1, 8, "w");
  const at::Tensor kept = select_kept(magnitude(w), {.sparsity = 0.5});
  const double least = (w * kept.logical_not()).square().sum().item<double>();
  for (int mask = 0; mask < 256; ++mask) {
    if (__builtin_popcount(static_cast<unsigned>(mask)) != 4) continue;
    double lost = 0;
    for (int j = 0; j < 8; ++j) lost += (mask >> j & 1) != 0 ? std::pow(w[0][j].item<double>(), 2) : 0;
    REQUIRE(lost >= least * (1 - 1e-12));
  }
}

TEST_CASE("Wanda's score squared is what a removal adds, and is OBD's with H", "[sparse][saliency]") {
  const at::Tensor w = normal_matrix(3, 12, "w"), h = lcomp::test::correlated_moment(12, 50);
  const at::Tensor score = wanda(w, h.diagonal());
  at::Tensor d = at::zeros({3, 12}, at::kDouble);
  d[1][4] = w[1][4];
  const double lost = (at::matmul(d, h) * d).sum().item<double>();
  REQUIRE(score[1][4].item<double>() * score[1][4].item<double>() == Approx(lost).epsilon(1e-12));
  REQUIRE(at::allclose(score.square(), optimal_brain_damage(w, 2 * h.diagonal())));
  REQUIRE(select_kept(score, {.sparsity = 0.5})
              .equal(select_kept(wanda(w, 7 * h.diagonal()), {.sparsity = 0.5})));
}

TEST_CASE("rows of zeros and inputs that never fire have a relative importance of 0", "[sparse][saliency]") {
  at::Tensor w = normal_matrix(3, 6, "w"), h = at::ones({6}, at::kDouble);
  w[1].zero_();
  h[2] = 0;
  const at::Tensor score = relative_importance(w, h);
  REQUIRE(score.isfinite().all().item<bool>());
  REQUIRE(score[1].eq(0).all().item<bool>());
  REQUIRE(score.select(1, 2).eq(0).all().item<bool>());
}

TEST_CASE("a refit is at least as good as any other values of the mask", "[sparse][refit]") {
  const at::Tensor w = normal_matrix(6, 20, "w"), h = lcomp::test::correlated_moment(20, 60);
  const at::Tensor kept = select_kept(wanda(w, h.diagonal()), {.sparsity = 0.6});
  const auto loss = [&](const at::Tensor& v) {
    return (at::matmul(w - v, h) * (w - v)).sum().item<double>();
  };
  const RefitResult fitted = refit(w, h, {}, kept);
  REQUIRE(fitted.rows_as_they_were == 0);
  REQUIRE((fitted.weight * kept.logical_not()).eq(0).all().item<bool>());
  for (int k = 0; k < 5; ++k) {
    const at::Tensor other = fitted.weight + 0.1 * normal_matrix(6, 20, "other " + std::to_string(k)) * kept;
    REQUIRE(loss(other) > loss(fitted.weight));
  }
  REQUIRE(lcomp::test::relative_difference(refit(w, h, {}, at::ones({6, 20}, at::kBool)).weight, w) < 1e-9);
  REQUIRE(refit(w, h, {}, at::zeros({6, 20}, at::kBool)).weight.eq(0).all().item<bool>());
  const RefitResult singular = refit(w, at::zeros({20, 20}, at::kDouble), {}, kept);
  REQUIRE(singular.rows_as_they_were == 6);
  REQUIRE(singular.weight.equal(w * kept));
}

TEST_CASE("scores and masks that do not fit are refused", "[sparse][sparsity]") {
  at::Tensor scores = at::ones({2, 4}, at::kDouble);
  scores[1][2] = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(error_text([&] { select_kept(scores, {}); }) == "[select_kept] scores must not be NaN");
  REQUIRE(error_text([&] {
            wanda(at::ones({2, 4}), at::ones({3}));
          }) == "[wanda] the diagonal must be [4]; received [3]");
  REQUIRE(error_text([&] { magnitude(at::ones({4})); }) ==
          "[magnitude] the weight must be a matrix of a floating-point type; it has 1 dimensions");
  REQUIRE(error_text([&] {
            optimal_brain_damage(at::ones({2, 4}), at::ones({2}));
          }) == "[optimal_brain_damage] the curvature must be [2, 4] or [4]; received [2]");
  REQUIRE(error_text([&] {
            refit(at::ones({2, 4}), at::ones({4, 4}), {}, at::ones({2, 4}));
          }) ==
          "[refit] the weight must be [out, in], the second moment [in, in], the mask bool [out, in], and "
          "what is "
          "added [in]");
}

TEST_CASE("what comes back was removed before: nothing, a part, or all", "[sparse][recover]") {
  const at::Tensor scores = normal_matrix(128, 400, "scores").abs();
  const Sparsity pattern{.pattern = "2:4"};
  const at::Tensor kept = select_kept(scores, pattern);
  REQUIRE_FALSE(recovered(scores, kept, {.recover = 0}).any().item<bool>());
  REQUIRE(recovered(scores, kept, {.recover = 1}).equal(kept.logical_not()));
  for (const double share : {0.1, 0.25, 0.5}) {
    CAPTURE(share);
    const at::Tensor back = recovered(scores, kept, {.recover = share});
    REQUIRE_FALSE(back.logical_and(kept).any().item<bool>());
    const double mean = back.sum(1).to(at::kDouble).mean().item<double>();
    REQUIRE(mean ==
            Approx(static_cast<double>(expected_recovered(400, {2, 4}, {.recover = share}))).margin(1));
  }
  // 24 x 32 in blocks of 8: the block with the largest sum of removed scores of each row of blocks.
  at::Tensor some = at::ones({24, 32}, at::kDouble);
  some.narrow(0, 8, 8).narrow(1, 16, 8).fill_(2);
  const at::Tensor none = at::zeros({24, 32}, at::kBool);
  const at::Tensor block =
      recovered(some, none, {.recover_as = RecoveredAs::kBlocks, .block_edge = 8, .blocks_per_row = 1});
  REQUIRE(block.sum().item<int64_t>() == 3 * 64);
  REQUIRE(block.narrow(0, 8, 8).narrow(1, 16, 8).all().item<bool>());
  REQUIRE(error_text([&] { recovered(some, some, {}); }) ==
          "[recovered] the mask must be bool and of the shape of the scores");
}
