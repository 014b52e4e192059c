#include "lcomp/sparse/structured.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <numeric>
#include <set>

#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::sparse;

namespace {

std::vector<std::vector<double>> rows_of(const at::Tensor& matrix) {
  const at::Tensor m = matrix.to(at::kDouble).contiguous();
  std::vector<std::vector<double>> rows;
  for (int64_t i = 0; i < m.size(0); ++i) {
    const double* row = m.data_ptr<double>() + i * m.size(1);
    rows.emplace_back(row, row + m.size(1));
  }
  return rows;
}

at::Tensor random(Rng& rng, std::vector<int64_t> shape) {
  at::Tensor out = at::empty(shape, at::kDouble);
  for (int64_t i = 0; i < out.numel(); ++i) out.data_ptr<double>()[i] = rng.normal();
  return out;
}

std::vector<int64_t> zeros_of(const at::Tensor& mask) {
  std::vector<int64_t> out;
  for (int64_t u = 0; u < mask.numel(); ++u) {
    if (mask[u].item<double>() == 0) out.push_back(u);
  }
  return out;
}

double cost_of(const UnitCounts& counts, const UnitCosts& costs) {
  const auto sum = [](const std::vector<int64_t>& values) {
    return static_cast<double>(std::accumulate(values.begin(), values.end(), int64_t{0}));
  };
  return sum(counts.attention) * costs.attention + sum(counts.channels) * costs.channel;
}

}  // namespace

TEST_CASE("search, rearrangement and tuning of Kwon et al. are the recorded ones", "[sparse][golden]") {
  const auto path = test::shared_data("golden/methods/kwon.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/kwon.safetensors");
    return;
  }
  const io::SafetensorsFile file(*path);
  const auto number = [&](const char* key) { return std::stod(file.metadata().at(key)); };
  const UnitScores scores{rows_of(file.read("fisher_heads")), rows_of(file.read("fisher_filters"))};
  const UnitCosts costs{.attention = number("mac_head"),
                        .channel = number("mac_filter"),
                        .least_attention = 0,
                        .least_channels = 0};
  const UnitCounts counts = search_units(scores, costs, number("constraint") * number("mac_total"));
  for (const auto& [mask_name, kept, of_block, grad_name] :
       {std::tuple{"heads", counts.attention, scores.attention, "grad_heads"},
        std::tuple{"filters", counts.channels, scores.channels, "grad_filters"}}) {
    CAPTURE(mask_name);
    const at::Tensor searched = file.read(std::string("search.mask_") + mask_name);
    const at::Tensor rearranged = file.read(std::string("rearranged.mask_") + mask_name);
    const at::Tensor costs_of = file.read(std::string("rearranged.J_") + mask_name);
    const at::Tensor gradients = file.read(grad_name);
    for (size_t block = 0; block < kept.size(); ++block) {
      const auto at = static_cast<int64_t>(block);
      CHECK(kept[block] == static_cast<int64_t>(searched[at].sum().item<double>()));
      const auto units = static_cast<int64_t>(of_block[block].size());
      const auto removed = lowest_units(of_block[block], units - kept[block]);
      CHECK(removed == zeros_of(searched[at]));
      const auto moved = rearrange_units(gradients.select(1, at), removed);
      CHECK(moved == zeros_of(rearranged[at]));
      if (removed.empty() || kept[block] == 0) continue;
      CHECK(fisher_cost(gradients.select(1, at), removed) == Approx(costs_of[at][0].item<double>()));
      CHECK(fisher_cost(gradients.select(1, at), moved) == Approx(costs_of[at][1].item<double>()));
    }
  }
  const at::Tensor a = file.read("tune.A"), b = file.read("tune.B");
  const at::Tensor r = tune_scales(at::matmul(a.t(), a), at::matmul(a.t(), b));
  CHECK((r - file.read("tune.r")).abs().max().item<double>() < 1e-12);
}

TEST_CASE("a search keeps its budget, its least and its step", "[sparse][structured]") {
  Rng rng(3, "search");
  for (int round = 0; round < 30; ++round) {
    const int64_t blocks = 2 + static_cast<int64_t>(rng.below(4));
    const UnitScores scores{rows_of(random(rng, {blocks, 4}).square()),
                            rows_of(random(rng, {blocks, 30}).square())};
    const UnitCosts costs{.attention = 40, .channel = 5, .channel_step = 8};
    const double whole = static_cast<double>(blocks) * (4 * 40 + 30 * 5);
    for (const double share : {0.35, 0.5, 0.8, 1.0}) {
      const UnitCounts counts = search_units(scores, costs, share * whole);
      CHECK(cost_of(counts, costs) <= share * whole);
      for (const int64_t kept : counts.attention) CHECK((kept >= 1 && kept <= 4));
      for (const int64_t kept : counts.channels)
        CHECK((kept >= 8 && kept <= 30 && (kept % 8 == 0 || kept == 30)));
      const UnitCounts uniform =
          search_uniform_units(scores, as_measured(costs, 4, 30), 8, share * whole, {1, 2, 4});
      CHECK(cost_of(uniform, costs) <= share * whole);
      CHECK(std::set(uniform.attention.begin(), uniform.attention.end()).size() == 1);
      CHECK(std::set(uniform.channels.begin(), uniform.channels.end()).size() == 1);
      CHECK(uniform.attention[0] != 3);
    }
  }
  const UnitScores two{{{1}, {1}}, {{1, 1}, {1, 1}}};
  CHECK(test::error_text([&] { search_units(two, {}, 3.5); }) ==
        "[search_units] the budget must cover what every block keeps, 4; it is 3.5");
  CHECK(test::error_text([&] { search_uniform_units(two, as_measured({}, 1, 2), 1, 3.5, {1}); }) ==
        "[search_units] the budget must cover what every block keeps, 4; it is 3.5");
  CHECK(test::error_text([&] {
          search_uniform_units({{{1}, {1, 1}}, {{1, 1}, {1, 1}}}, as_measured({}, 2, 2), 1, 9, {1});
        }) == "[search_units] for equal numbers all blocks must have equal numbers of units");
  CHECK(test::error_text([&] {
          search_units({{{1}}, {}}, {}, 3);
        }) ==
        "[search_units] scores must be of the same blocks, at least one, and costs above 0; there are scores "
        "of 1 and 0 blocks, and costs of 1 and 1, in steps of 1");
}

TEST_CASE("rearrangement never raises what the removed units cost", "[sparse][structured]") {
  Rng rng(4, "rearrange");
  double before = 0, after = 0;
  for (int round = 0; round < 200; ++round) {
    const int64_t units = 2 + static_cast<int64_t>(rng.below(12)),
                  batches = 1 + static_cast<int64_t>(rng.below(8));
    const at::Tensor gradients = random(rng, {batches, units});
    const auto removed = lowest_units(rows_of(gradients.square().sum(0, true))[0],
                                      static_cast<int64_t>(rng.below(static_cast<uint64_t>(units) + 1)));
    const auto moved = rearrange_units(gradients, removed);
    REQUIRE(moved.size() == removed.size());
    REQUIRE(std::is_sorted(moved.begin(), moved.end()));
    const double j0 = fisher_cost(gradients, removed), j1 = fisher_cost(gradients, moved);
    REQUIRE(j1 <= j0 * (1 + 1e-12) + 1e-12);
    before += j0;
    after += j1;
  }
  CHECK(after < 0.8 * before);
}

TEST_CASE("tuning never raises the residual", "[sparse][structured]") {
  Rng rng(5, "tune");
  for (int round = 0; round < 200; ++round) {
    const int64_t units = 1 + static_cast<int64_t>(rng.below(8));
    const at::Tensor a =
        random(rng, {1 + static_cast<int64_t>(rng.below(20)), units}) * std::pow(10.0, rng.normal());
    const at::Tensor b = random(rng, {a.size(0)});
    const at::Tensor r = tune_scales(at::matmul(a.t(), a), at::matmul(a.t(), b));
    const double one = (at::matmul(a, at::ones({units}, at::kDouble)) - b).square().sum().item<double>();
    REQUIRE((at::matmul(a, r) - b).square().sum().item<double>() <= one * (1 + 1e-10));
  }
}

TEST_CASE("products of units are those of their outputs", "[sparse][structured]") {
  Rng rng(6, "products");
  const at::Tensor w = random(rng, {5, 12}), x = random(rng, {20, 12});
  const at::Tensor found = unit_products(w, at::matmul(x.t(), x), 3);
  for (int64_t u = 0; u < 4; ++u) {
    for (int64_t v = 0; v < 4; ++v) {
      const auto part = [&](int64_t unit) {
        return at::matmul(x.narrow(1, 3 * unit, 3), w.narrow(1, 3 * unit, 3).t());
      };
      CHECK(found[u][v].item<double>() == Approx((part(u) * part(v)).sum().item<double>()));
    }
  }
}

TEST_CASE("refitted columns are the least squares of those that are left", "[sparse][structured]") {
  Rng rng(7, "refit columns");
  const at::Tensor w = random(rng, {6, 10});
  const at::Tensor x = at::matmul(random(rng, {40, 10}), random(rng, {10, 10}));
  const at::Tensor h = at::matmul(x.t(), x);
  const std::vector<int64_t> columns = {0, 2, 3, 7, 8};
  const auto fitted = refit_columns(w, h, columns, 1e-9);
  const at::Tensor kept = x.index_select(1, at::tensor(columns, at::kLong));
  const at::Tensor y = at::matmul(x, w.t());
  const at::Tensor left = y - at::matmul(kept, fitted.weight.t());
  CHECK(fitted.loss == Approx(left.square().sum().item<double>()));
  CHECK(fitted.loss < 0.9 * fitted.loss_before);
  // The residual is orthogonal to what it was fitted with.
  CHECK(at::matmul(kept.t(), left).abs().max().item<double>() < 1e-5 * y.abs().max().item<double>());
  CHECK_FALSE(fitted.failed);

  ThreadPool pool(2);
  CHECK(refit_columns(w, h, columns, 1e-9, &pool).weight.equal(fitted.weight));
  const auto nothing = refit_columns(w, at::full({10, 10}, NAN, at::kDouble), columns, 0.01);
  CHECK(nothing.failed);
  CHECK(nothing.weight.equal(w.index_select(1, at::tensor(columns, at::kLong))));
}

TEST_CASE("importances of slices are what LLM-Pruner computes", "[sparse][structured]") {
  Rng rng(8, "taylor");
  const at::Tensor w = random(rng, {6, 4}), g = random(rng, {6, 4}), a = random(rng, {6, 4}).square();
  // Sums over three samples, as the sweep makes them.
  const SliceGradients gradients{w * g * 3, a * 3, 3};
  const auto expected = [&](const at::Tensor& elements, bool rows, bool sign) {
    const at::Tensor e = sign ? elements : elements.abs();
    at::Tensor sums = rows ? e.sum(1).view({3, 2}).sum(1) : e.sum(0).view({2, 2}).sum(1);
    return sums.abs();
  };
  for (const bool rows : {true, false}) {
    for (const auto& [importance, elements] : {std::pair{UnitImportance::kParamFirst, w * g},
                                               {UnitImportance::kParamSecond, w * w * a},
                                               {UnitImportance::kParamMix, w * g - w * w * a / 2},
                                               {UnitImportance::kVector, w * g},
                                               {UnitImportance::kL1, w},
                                               {UnitImportance::kL2, w * w}}) {
      CAPTURE(name_of(importance), rows);
      const auto found = slice_importance(w, gradients, rows, 2, importance);
      const at::Tensor wanted = expected(elements, rows, importance == UnitImportance::kVector);
      REQUIRE(found.size() == static_cast<size_t>(wanted.numel()));
      for (size_t u = 0; u < found.size(); ++u)
        CHECK(found[u] == Approx(wanted[static_cast<int64_t>(u)].item<double>()));
    }
    // The triangle inequality.
    const auto vector = slice_importance(w, gradients, rows, 2, UnitImportance::kVector);
    const auto elements = slice_importance(w, gradients, rows, 2, UnitImportance::kParamFirst);
    for (size_t u = 0; u < vector.size(); ++u) CHECK(vector[u] <= elements[u] * (1 + 1e-12));
  }
  CHECK(test::error_text([&] { slice_importance(w, {}, true, 2, UnitImportance::kVector); }) ==
        "[slice_importance] the importance vector must have gradients; there are none");
}

TEST_CASE("importances of a unit's operators become one", "[sparse][structured]") {
  const std::vector<std::vector<double>> slices = {{1, 5}, {2, 4}, {6, 3}};
  const auto grouped = [&](UnitGrouping grouping) { return grouped_importance(slices, grouping); };
  CHECK(grouped(UnitGrouping::kSum) == std::vector<double>{9, 12});
  CHECK(grouped(UnitGrouping::kMean) == std::vector<double>{3, 4});
  CHECK(grouped(UnitGrouping::kMax) == std::vector<double>{6, 5});
  CHECK(grouped(UnitGrouping::kProd) == std::vector<double>{12, 60});
  CHECK(grouped(UnitGrouping::kFirst) == std::vector<double>{1, 5});
  CHECK(grouped(UnitGrouping::kLast) == std::vector<double>{6, 3});
}

TEST_CASE("a threshold removes the least important units of all blocks", "[sparse][structured]") {
  const UnitScores scores{{{5, 1}, {9, 8}}, {{4, 3, 2, 1}, {7, 6, 0.5, 0.25}}};
  const UnitCosts costs{.attention = 4, .channel = 1, .channel_step = 2};
  // In all 24; without the chunk of mean 0.375 (2 units) 22, without the unit of 1 (4) 18.
  CHECK(threshold_units(scores, costs, 24) == UnitCounts{{2, 2}, {4, 4}});
  CHECK(threshold_units(scores, costs, 23) == UnitCounts{{2, 2}, {4, 2}});
  CHECK(threshold_units(scores, costs, 21) == UnitCounts{{1, 2}, {4, 2}});
  CHECK(threshold_units(scores, costs, 17) == UnitCounts{{1, 2}, {2, 2}});
}

TEST_CASE("a search under measured costs is as good as one under multiples, and keeps its budget",
          "[sparse][structured]") {
  Rng rng(9, "measured");
  const auto value = [](const UnitScores& scores, const UnitCounts& counts) {
    double sum = 0;
    for (size_t b = 0; b < scores.attention.size(); ++b) {
      for (const auto& [of_block, kept] : {std::pair{scores.attention[b], counts.attention[b]},
                                           std::pair{scores.channels[b], counts.channels[b]}}) {
        std::vector<double> sorted = of_block;
        std::sort(sorted.begin(), sorted.end(), std::greater<>());
        sum += std::accumulate(sorted.begin(), sorted.begin() + kept, 0.0);
      }
    }
    return sum;
  };
  for (int round = 0; round < 20; ++round) {
    const UnitScores scores{rows_of(random(rng, {3, 4}).square()), rows_of(random(rng, {3, 24}).square())};
    const UnitCosts costs{.attention = 40, .channel = 5, .channel_step = 8, .least_channels = 8};
    const double budget = 0.6 * 3 * (4 * 40 + 24 * 5);
    const UnitCounts measured = search_measured_units(scores, as_measured(costs, 4, 24), 8, budget);
    CHECK(cost_of(measured, costs) <= budget);
    // The budget is cut into a million parts; the search over multiples is exact for it.
    CHECK(value(scores, measured) >= value(scores, search_units(scores, costs, 0.9999 * budget)) - 1e-9);
  }
  // A step in the costs: the third unit costs nothing more than the second.
  const UnitScores one{{{3, 2, 1}}, {{1}}};
  CHECK(search_measured_units(one, {{0, 1, 5, 5}, {0, 1}}, 1, 6) == UnitCounts{{3}, {1}});
  CHECK(search_measured_units(one, {{0, 1, 5, 5}, {0, 1}}, 1, 5.9) == UnitCounts{{1}, {1}});
  CHECK(test::error_text([&] {
          search_measured_units(one, {{0, 1, 5}, {0, 1}}, 1, 6);
        }) ==
        "[search_units] scores must be of the same blocks, at least one, and costs must not fall and "
        "reach as far as the largest block; there are scores of 1 and 1 blocks of up to 3 and 1 units, "
        "and costs of up to 2 and 1");
  CHECK_THROWS_AS(search_measured_units(one, {{0, 5, 1, 5}, {0, 1}}, 1, 6), InvalidArgument);
}
