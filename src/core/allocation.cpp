#include "lcomp/core/allocation.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lcomp/core/error.h"

namespace lcomp {
namespace {

using Items = std::vector<std::vector<AllocationOption>>;

constexpr size_t kNone = std::numeric_limits<size_t>::max();

int64_t cheapest_cost(const std::vector<AllocationOption>& options) {
  return std::min_element(options.begin(), options.end(),
                          [](const auto& a, const auto& b) { return a.cost < b.cost; })
      ->cost;
}

void check(const Items& items, int64_t budget) {
  int64_t least = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (items[i].empty()) {
      throw InvalidArgument("allocate", fmt::format("every item must have an option; item {} has none", i));
    }
    for (const AllocationOption& option : items[i]) {
      if (option.cost >= 0 && std::isfinite(option.loss)) continue;
      throw InvalidArgument(
          "allocate",
          fmt::format("costs must not be negative and losses must be finite; item {} has cost {} and loss {}",
                      i, option.cost, option.loss));
    }
    least += cheapest_cost(items[i]);
  }
  if (least > budget) {
    throw InvalidArgument(
        "allocate",
        fmt::format("the budget must cover the cheapest options, which cost {}; it is {}", least, budget));
  }
}

/// min over the options of loss + multiplier x cost; the cheaper of equal ones.
size_t best_for(const std::vector<AllocationOption>& options, double multiplier) {
  const auto value = [&](size_t o) {
    return options[o].loss + multiplier * static_cast<double>(options[o].cost);
  };
  size_t best = 0;
  for (size_t o = 1; o < options.size(); ++o) {
    const bool better = value(o) < value(best);
    if (better || (value(o) == value(best) && options[o].cost < options[best].cost)) best = o;
  }
  return best;
}

struct Totals {
  int64_t cost = 0;
  double loss = 0;
};

Totals totals_at(const Items& items, double multiplier) {
  Totals totals;
  for (const auto& options : items) {
    const AllocationOption& option = options[best_for(options, multiplier)];
    totals.cost += option.cost;
    totals.loss += option.loss;
  }
  return totals;
}

/// The smallest price of a unit of cost (to rounding) at which every item for itself keeps the budget. Its
/// choice is feasible, so no result loses more than that.
double feasible_multiplier(const Items& items, int64_t budget) {
  if (totals_at(items, 0).cost <= budget) return 0;
  double low = 0, high = 1;
  // A price above every ratio of losses to costs makes all items take their cheapest option.
  while (totals_at(items, high).cost > budget && high < 1e300) high *= 4;
  for (int step = 0; step < 200 && high - low > 1e-15 * high; ++step) {
    const double middle = 0.5 * (low + high);
    (totals_at(items, middle).cost <= budget ? high : low) = middle;
  }
  return high;
}

/// A choice for the first items.
struct Partial {
  int64_t cost = 0;
  double loss = 0;
  size_t parent = kNone;  ///< position in the level before
  size_t option = 0;
};

/// Leaves those that no cheaper one beats, by rising cost and falling loss. The sort is stable, so the first
/// of equals stays.
void keep_undominated(std::vector<Partial>& level) {
  std::stable_sort(level.begin(), level.end(), [](const Partial& a, const Partial& b) {
    return a.cost != b.cost ? a.cost < b.cost : a.loss < b.loss;
  });
  size_t kept = 0;
  for (const Partial& partial : level) {
    if (kept == 0 || partial.loss < level[kept - 1].loss) level[kept++] = partial;
  }
  level.resize(kept);
}

}  // namespace

std::vector<size_t> allocate(const Items& items, int64_t budget) {
  check(items, budget);
  if (items.empty()) return {};
  const double multiplier = feasible_multiplier(items, budget);
  const double known = totals_at(items, multiplier).loss;
  // The bound of the known solution itself equals its loss but for rounding.
  const double slack = 1e-9 * (std::abs(known) + multiplier * static_cast<double>(budget));

  // What the items after position i cost at least, and the Lagrangian part of their bound.
  std::vector<int64_t> least_cost(items.size() + 1, 0);
  std::vector<double> least_value(items.size() + 1, 0);
  for (size_t i = items.size(); i-- > 0;) {
    const AllocationOption& best = items[i][best_for(items[i], multiplier)];
    least_cost[i] = least_cost[i + 1] + cheapest_cost(items[i]);
    least_value[i] = least_value[i + 1] + best.loss + multiplier * static_cast<double>(best.cost);
  }

  std::vector<std::vector<Partial>> levels(items.size() + 1);
  levels[0].push_back({});
  for (size_t i = 0; i < items.size(); ++i) {
    for (size_t p = 0; p < levels[i].size(); ++p) {
      for (size_t o = 0; o < items[i].size(); ++o) {
        const int64_t cost = levels[i][p].cost + items[i][o].cost;
        const double loss = levels[i][p].loss + items[i][o].loss;
        if (cost + least_cost[i + 1] > budget) continue;
        const double bound = loss + least_value[i + 1] - multiplier * static_cast<double>(budget - cost);
        if (bound > known + slack) continue;
        levels[i + 1].push_back({cost, loss, p, o});
      }
    }
    keep_undominated(levels[i + 1]);
  }

  // Costs rise and losses fall along a level, so the last is the best.
  std::vector<size_t> chosen(items.size());
  size_t at = levels.back().size() - 1;
  for (size_t i = items.size(); i-- > 0;) {
    chosen[i] = levels[i + 1][at].option;
    at = levels[i + 1][at].parent;
  }
  return chosen;
}

}  // namespace lcomp
