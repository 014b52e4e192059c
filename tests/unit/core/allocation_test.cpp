#include "lcomp/core/allocation.h"

#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "support/error_text.h"

using lcomp::allocate;
using lcomp::allocate_amounts;
using lcomp::AllocationOption;
using lcomp::CurvePoint;
using lcomp::shrinkage;
using lcomp::test::error_text;

namespace {

using Items = std::vector<std::vector<AllocationOption>>;

struct Totals {
  int64_t cost = 0;
  double loss = 0;
};

Totals totals_of(const Items& items, const std::vector<size_t>& chosen) {
  Totals totals;
  for (size_t i = 0; i < items.size(); ++i) {
    totals.cost += items[i].at(chosen[i]).cost;
    totals.loss += items[i].at(chosen[i]).loss;
  }
  return totals;
}

/// The least loss within the budget, by trying everything.
double least_loss(const Items& items, int64_t budget, size_t first = 0) {
  if (budget < 0) return std::numeric_limits<double>::infinity();
  if (first == items.size()) return 0;
  double least = std::numeric_limits<double>::infinity();
  for (const AllocationOption& option : items[first]) {
    least = std::min(least, option.loss + least_loss(items, budget - option.cost, first + 1));
  }
  return least;
}

Items random_items(std::mt19937& random, size_t count, size_t options, int64_t largest_cost) {
  Items items(count);
  for (auto& item : items) {
    for (size_t o = 0; o < options; ++o) {
      item.push_back({static_cast<int64_t>(random() % static_cast<unsigned>(largest_cost + 1)),
                      static_cast<double>(random() % 1000) / 16});
    }
  }
  return items;
}

int64_t least_cost(const Items& items) {
  int64_t sum = 0;
  for (const auto& item : items) {
    int64_t least = item.front().cost;
    for (const AllocationOption& option : item) least = std::min(least, option.cost);
    sum += least;
  }
  return sum;
}

/// Items as bit widths give them: the loss falls by about 4 with each bit, the size rises.
Items bit_widths(std::mt19937& random, size_t count) {
  Items items(count);
  for (size_t i = 0; i < count; ++i) {
    const int64_t size = i % 4 == 0 ? 552960 : i % 4 == 1 ? 331776 : i % 4 == 2 ? 1769472 : 884736;
    double loss = 1 + static_cast<double>(random() % 100000);
    for (int64_t bits = 2; bits <= 8; ++bits, loss /= 3.5 + static_cast<double>(random() % 100) / 100) {
      items[i].push_back({size * bits / 8 + size / 32, loss});
    }
  }
  return items;
}

}  // namespace

TEST_CASE("an allocation loses no more than any other within the budget", "[core][allocation]") {
  for (unsigned seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    std::mt19937 random(seed);
    const Items items = random_items(random, 1 + seed % 6, 1 + seed % 5, 20);
    const int64_t least = least_cost(items);
    for (int64_t budget = least; budget <= least + 40; budget += 3) {
      CAPTURE(budget);
      const Totals totals = totals_of(items, allocate(items, budget));
      REQUIRE(totals.cost <= budget);
      REQUIRE(totals.loss == Approx(least_loss(items, budget)).margin(1e-12));
    }
  }
}

TEST_CASE("a budget for everything buys the least loss of every item", "[core][allocation]") {
  const Items items = {{{1, 5}, {2, 3}, {3, 4}}, {{7, 1}, {9, 0}}};
  REQUIRE(allocate(items, 100) == std::vector<size_t>{1, 1});
  REQUIRE(allocate(items, 8) == std::vector<size_t>{0, 0});
  REQUIRE(allocate({}, 0).empty());
}

TEST_CASE("of equal options the cheaper, then the first is taken", "[core][allocation]") {
  REQUIRE(allocate({{{5, 1}, {3, 1}, {3, 1}}}, 10) == std::vector<size_t>{1});
}

TEST_CASE("a larger budget never loses more", "[core][allocation]") {
  std::mt19937 random(3);
  const Items items = bit_widths(random, 60);
  double before = std::numeric_limits<double>::infinity();
  for (int64_t budget = least_cost(items); budget < 4 * least_cost(items); budget += 1'000'003) {
    const double loss = totals_of(items, allocate(items, budget)).loss;
    REQUIRE(loss <= before * (1 + 1e-12));
    before = loss;
  }
}

TEST_CASE("a thousand operators are allocated", "[core][allocation]") {
  std::mt19937 random(5);
  const Items items = bit_widths(random, 1000);
  const int64_t budget = least_cost(items) * 2 + 12345;
  const Totals totals = totals_of(items, allocate(items, budget));
  REQUIRE(totals.cost <= budget);
  // Nothing useful is left over: the smallest step up of any item costs more than what remains.
  REQUIRE(budget - totals.cost < 331776 / 8);
}

TEST_CASE("what cannot be allocated is refused", "[core][allocation]") {
  REQUIRE(error_text([] {
            allocate({{{4, 1}}, {{3, 0}, {5, 0}}}, 6);
          }) == "[allocate] the budget must cover the cheapest options, which cost 7; it is 6");
  REQUIRE(error_text([] {
            allocate({{{1, 0}}, {}}, 6);
          }) == "[allocate] every item must have an option; item 1 has none");
  REQUIRE(error_text([] {
            allocate({{{-1, 0}}}, 6);
          }) ==
          "[allocate] costs must not be negative and losses must be finite; item 0 has cost -1 and loss 0");
  REQUIRE(error_text([] {
            allocate({{{1, std::nan("")}}}, 6);
          }) ==
          "[allocate] costs must not be negative and losses must be finite; item 0 has cost 1 and loss nan");
}

TEST_CASE("amounts add up to the total, at no more loss than any others on the curves",
          "[core][allocation]") {
  // Convex: a_i = x^2 and 3 (x - 1)^2 and |x - 2| between integers, amounts 0 to 4.
  std::vector<std::vector<CurvePoint>> curves(3);
  for (int x = 0; x <= 4; ++x) {
    curves[0].push_back({1.0 * x, 1.0 * x * x});
    curves[1].push_back({1.0 * x, 3.0 * (x - 1) * (x - 1)});
    curves[2].push_back({1.0 * x, std::abs(x - 2.0)});
  }
  const auto loss_at = [&](size_t i, double x) {
    const auto k = std::min<size_t>(3, static_cast<size_t>(x));
    return curves[i][k].loss + (x - static_cast<double>(k)) * (curves[i][k + 1].loss - curves[i][k].loss);
  };
  for (double total = 0; total <= 12; total += 0.5) {
    CAPTURE(total);
    const auto amounts = allocate_amounts(curves, total);
    REQUIRE(amounts[0] + amounts[1] + amounts[2] == Approx(total).margin(1e-12));
    double loss = 0;
    for (size_t i = 0; i < 3; ++i) loss += loss_at(i, amounts[i]);
    for (double a = 0; a <= 4; a += 0.25) {
      for (double b = 0; b <= 4; b += 0.25) {
        const double c = total - a - b;
        if (c >= 0 && c <= 4) REQUIRE(loss <= loss_at(0, a) + loss_at(1, b) + loss_at(2, c) + 1e-12);
      }
    }
  }
}

TEST_CASE("points above a line between others are passed over", "[core][allocation]") {
  // The hull of the first goes straight from 0 to 4.
  const std::vector<std::vector<CurvePoint>> curves = {{{0, 0}, {2, 9}, {4, 4}}, {{0, 0}, {4, 6}}};
  REQUIRE(allocate_amounts(curves, 4) == std::vector<double>{4, 0});
  REQUIRE(allocate_amounts(curves, 3) == std::vector<double>{3, 0});
  REQUIRE(allocate_amounts({}, 0).empty());
}

TEST_CASE("trust 1 leaves losses, trust 0 makes all alike, and the mean stays", "[core][allocation]") {
  const std::vector<AllocationOption> items = {{10, 1}, {20, 400}, {5, 0}, {30, 7}};
  REQUIRE(shrinkage(items, 1) == std::vector<double>{1, 1, 1, 1});
  const auto alike = shrinkage(items, 0), half = shrinkage(items, 0.5);
  const auto ratio = [&](const std::vector<double>& factors, size_t i) {
    return factors[i] * items[i].loss / static_cast<double>(items[i].cost);
  };
  REQUIRE(ratio(alike, 0) == Approx(ratio(alike, 1)));
  REQUIRE(ratio(alike, 0) == Approx(ratio(alike, 3)));
  REQUIRE(alike[2] == 1);
  REQUIRE(ratio(half, 1) / ratio(half, 0) == Approx(std::sqrt(200.0)));
  double logarithms = 0;
  for (const size_t i : {0, 1, 3}) logarithms += std::log(alike[i]) * static_cast<double>(items[i].cost);
  REQUIRE(logarithms == Approx(0).margin(1e-12));
}

TEST_CASE("curves and totals that do not fit are refused", "[core][allocation]") {
  REQUIRE(error_text([] {
            allocate_amounts({{{1, 0}, {2, 1}}}, 0.5);
          }) == "[allocate_amounts] the total must cover the first amounts, 1; it is 0.5");
  REQUIRE(error_text([] {
            allocate_amounts({{{1, 0}, {2, 1}}}, 3);
          }) == "[allocate_amounts] the total must not exceed the last amounts, 2; it is 3");
  REQUIRE(error_text([] { allocate_amounts({{}}, 0); }) ==
          "[allocate_amounts] every curve must have a point; curve 0 has none");
  REQUIRE(error_text([] {
            allocate_amounts({{{1, 0}, {1, 1}}}, 1);
          }) == "[allocate_amounts] amounts must ascend and losses be finite; curve 0 has 1 at 1");
}
