#include "lcomp/sparse/allocation.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <numeric>

#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp::sparse;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;

namespace {

at::Tensor magnitudes(int64_t rows, double size, const char* name) {
  return (size * normal_matrix(rows, 50, name)).abs().to(at::kBFloat16).to(at::kFloat);
}

int64_t sum_of(const std::vector<int64_t>& counts) {
  return std::accumulate(counts.begin(), counts.end(), int64_t{0});
}

double mean_of(const std::vector<double>& values, const std::vector<double>& weights) {
  return std::inner_product(values.begin(), values.end(), weights.begin(), 0.0) /
         std::accumulate(weights.begin(), weights.end(), 0.0);
}

}  // namespace

TEST_CASE("a histogram knows count, mean and shares, and is the same from its numbers and from parts",
          "[sparse][allocation]") {
  const at::Tensor a = normal_matrix(40, 50, "a").abs(), b = 7 * normal_matrix(30, 50, "b").abs(),
                   both = at::cat({a, b});
  ScoreHistogram merged(a);
  merged.merge(ScoreHistogram(b));
  const ScoreHistogram whole(both);
  REQUIRE(merged.count() == 70 * 50);
  REQUIRE(merged.mean() == Approx(both.mean().item<double>()).epsilon(1e-6));
  REQUIRE(ScoreHistogram::from_numbers(whole.numbers()).numbers() == whole.numbers());
  for (const double threshold : {0.0, 0.1, 1.0, 3.3, 20.0, 1e9}) {
    CAPTURE(threshold);
    const double exact = both.gt(threshold).to(at::kDouble).mean().item<double>();
    REQUIRE(merged.share_above(threshold) == Approx(exact).margin(2e-3));
    REQUIRE(merged.share_above(threshold) == whole.share_above(threshold));
  }
  REQUIRE(ScoreHistogram().mean() == 0);
  REQUIRE(ScoreHistogram(at::zeros({2, 3})).count() == 6);
}

TEST_CASE("one threshold takes the lowest scores of all, as many as asked for", "[sparse][allocation]") {
  const std::vector<at::Tensor> scores = {magnitudes(40, 1, "a"), magnitudes(10, 0.3, "b"),
                                          magnitudes(30, 4, "c")};
  std::vector<ScoreHistogram> histograms;
  std::vector<RemovalBounds> bounds;
  for (const at::Tensor& s : scores) {
    histograms.emplace_back(s);
    bounds.push_back({0, s.numel()});
  }
  const at::Tensor all =
      std::get<0>(at::cat({scores[0].flatten(), scores[1].flatten(), scores[2].flatten()}).sort());
  for (const int64_t count :
       {int64_t{0}, int64_t{1}, int64_t{777}, int64_t{2000}, int64_t{3999}, all.numel()}) {
    CAPTURE(count);
    const auto removed = removed_below_threshold(histograms, bounds, count);
    REQUIRE(sum_of(removed) == count);
    if (count == 0) continue;
    const double threshold = all[count - 1].item<double>();
    for (size_t i = 0; i < scores.size(); ++i) {
      REQUIRE(removed[i] >= scores[i].lt(threshold).sum().item<int64_t>());
      REQUIRE(removed[i] <= scores[i].le(threshold).sum().item<int64_t>());
    }
  }
}

TEST_CASE("of equal scores every matrix loses the same share, and bounds hold back what they must",
          "[sparse][allocation]") {
  const ScoreHistogram ten(at::ones({10})), thirty(at::ones({30}));
  REQUIRE(removed_below_threshold({ten, thirty}, {{0, 10}, {0, 30}}, 20) == std::vector<int64_t>{5, 15});
  REQUIRE(sum_of(removed_below_threshold({ten, thirty, ten}, {{0, 10}, {0, 30}, {0, 10}}, 33)) == 33);
  const ScoreHistogram low(at::full({10}, 0.01));
  REQUIRE(removed_below_threshold({low, thirty}, {{0, 10}, {0, 30}}, 10) == std::vector<int64_t>{10, 0});
  REQUIRE(removed_below_threshold({low, thirty}, {{0, 7}, {2, 30}}, 12) == std::vector<int64_t>{7, 5});
  REQUIRE(error_text([&] {
            removed_below_threshold({low, thirty}, {{0, 7}, {2, 30}}, 1);
          }) == "[removed_below_threshold] the count must lie within the bounds, 2 to 37; it is 1");
  REQUIRE(error_text([&] { ScoreHistogram(at::full({3}, -1.0)); }) ==
          "[ScoreHistogram] scores must be finite and not negative");
  REQUIRE(error_text([&] { ScoreHistogram::from_numbers({1}); }) ==
          "[ScoreHistogram] the numbers must be a sum, the first bin and counts");
}

TEST_CASE("outlier-weighed sparsities keep the mean, and lie twice the spread apart",
          "[sparse][allocation]") {
  const std::vector<double> ratios = {1.2, 0.3, 0.9, 4.0}, weights = {1, 1, 1, 1}, uneven = {1, 5, 2, 3};
  for (const auto& w : {weights, uneven}) {
    const auto shifts = owl_shifts(ratios, w, 0.08);
    REQUIRE(mean_of(shifts, w) == Approx(0).margin(1e-15));
    REQUIRE(shifts[1] - shifts[3] == Approx(0.16));
    // More outliers, fewer zeros.
    REQUIRE(shifts[1] > shifts[2]);
    REQUIRE(shifts[2] > shifts[0]);
  }
  REQUIRE(owl_shifts({2, 2, 2}, {1, 2, 3}) == std::vector<double>{0, 0, 0});
  REQUIRE(owl_shifts({}, {}).empty());
}

TEST_CASE("outlier ratios and sparsities are the recorded ones", "[sparse][golden]") {
  const auto path = lcomp::test::shared_data("golden/methods/masks.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/masks.safetensors");
    return;
  }
  const lcomp::io::SafetensorsFile masks(*path);
  const at::Tensor scores = masks.read("owl.scores"), recorded = masks.read("owl.outlier_ratio"),
                   sparsity = masks.read("owl.sparsity_s70_lambda008");
  std::vector<double> ratios;
  for (int64_t l = 0; l < scores.size(0); ++l) {
    ratios.push_back(outlier_ratio(scores[l]));
    CHECK(ratios.back() == Approx(recorded[l].item<double>()).epsilon(1e-12));
    const ScoreHistogram binned(scores[l]);
    CHECK(100 * binned.share_above(5 * binned.mean()) == Approx(ratios.back()).margin(0.25));
  }
  const auto shifts = owl_shifts(ratios, std::vector<double>(ratios.size(), 1));
  for (size_t l = 0; l < shifts.size(); ++l)
    CHECK(0.7 + shifts[l] == Approx(sparsity[static_cast<int64_t>(l)].item<double>()).epsilon(1e-12));
}
