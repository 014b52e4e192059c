#include "lcomp/core/allocation.h"

#include <catch2/catch.hpp>
#include <limits>
#include <random>

#include "support/error_text.h"

using lcomp::allocate;
using lcomp::AllocationOption;
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
