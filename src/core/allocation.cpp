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

/// The points of a curve that no line between two others passes below.
std::vector<CurvePoint> lower_hull(const std::vector<CurvePoint>& curve, size_t index) {
  if (curve.empty())
    throw InvalidArgument("allocate_amounts",
                          fmt::format("every curve must have a point; curve {} has none", index));
  std::vector<CurvePoint> hull;
  for (const CurvePoint& point : curve) {
    if (!std::isfinite(point.loss) || (!hull.empty() && point.amount <= hull.back().amount)) {
      throw InvalidArgument("allocate_amounts",
                            fmt::format("amounts must ascend and losses be finite; curve {} has {} at {}",
                                        index, point.loss, point.amount));
    }
    while (hull.size() > 1) {
      const CurvePoint &a = hull[hull.size() - 2], &b = hull.back();
      if ((b.loss - a.loss) * (point.amount - b.amount) < (point.loss - b.loss) * (b.amount - a.amount))
        break;
      hull.pop_back();
    }
    hull.push_back(point);
  }
  return hull;
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

std::vector<double> allocate_amounts(const std::vector<std::vector<CurvePoint>>& curves, double total) {
  struct Segment {
    size_t curve;
    double slope;
    double length;
  };
  std::vector<double> amounts;
  std::vector<Segment> segments;
  double rest = total;
  for (size_t i = 0; i < curves.size(); ++i) {
    const std::vector<CurvePoint> hull = lower_hull(curves[i], i);
    amounts.push_back(hull.front().amount);
    rest -= hull.front().amount;
    for (size_t k = 1; k < hull.size(); ++k) {
      const double length = hull[k].amount - hull[k - 1].amount;
      segments.push_back({i, (hull[k].loss - hull[k - 1].loss) / length, length});
    }
  }
  const double rounding = 1e-9 * std::abs(total);
  if (rest < -rounding) {
    throw InvalidArgument(
        "allocate_amounts",
        fmt::format("the total must cover the first amounts, {}; it is {}", total - rest, total));
  }
  std::stable_sort(segments.begin(), segments.end(),
                   [](const Segment& a, const Segment& b) { return a.slope < b.slope; });
  for (const Segment& segment : segments) {
    const double taken = std::clamp(rest, 0.0, segment.length);
    amounts[segment.curve] += taken;
    rest -= taken;
  }
  if (rest > rounding) {
    throw InvalidArgument(
        "allocate_amounts",
        fmt::format("the total must not exceed the last amounts, {}; it is {}", total - rest, total));
  }
  return amounts;
}

std::vector<double> shrinkage(const std::vector<AllocationOption>& items, double trust) {
  double logarithms = 0, costs = 0;
  for (const AllocationOption& item : items) {
    if (!(item.loss > 0)) continue;
    const auto cost = static_cast<double>(item.cost);
    logarithms += std::log(item.loss / cost) * cost;
    costs += cost;
  }
  std::vector<double> factors(items.size(), 1.0);
  for (size_t i = 0; i < items.size(); ++i) {
    if (!(items[i].loss > 0)) continue;
    const double log_ratio =
        std::log(items[i].loss / static_cast<double>(items[i].cost)) - logarithms / costs;
    factors[i] = std::exp(log_ratio * (trust - 1));
  }
  return factors;
}

}  // namespace lcomp
