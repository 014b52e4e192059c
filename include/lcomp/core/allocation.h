#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lcomp {

/// One way to treat an item: what it costs (bytes, operations) and what it loses.
struct AllocationOption {
  int64_t cost = 0;
  double loss = 0;
};

/// Chooses one option per item so that the losses add up to the least and the costs to at most `budget`:
///     min sum_i loss_i(o_i)   s.t.   sum_i cost_i(o_i) <= budget.
/// (The multiple-choice knapsack problem; for bit widths under a size budget: HAWQ-V3, ICML 2021, eq. 10.)
///
/// Returns the position of the chosen option for each item. The result is exact: partial choices are
/// extended item by item, and one is dropped only when another costs no more and loses no more, or when the
/// Lagrangian bound of what can still follow says that it cannot beat the solution of the best multiplier.
/// Of equally good results the one found first, in the order of items and options, is returned, so the
/// result depends on nothing but the arguments. Cost: items x options x (partial choices that survive), in
/// practice milliseconds for a thousand operators.
///
/// Throws InvalidArgument when an item has no option, a cost is negative, a loss is not finite, or even the
/// cheapest options exceed the budget (the message says what they cost).
std::vector<size_t> allocate(const std::vector<std::vector<AllocationOption>>& items, int64_t budget);

/// A point of a curve: how much of something (weights removed) costs how much loss.
struct CurvePoint {
  double amount = 0;
  double loss = 0;
};

/// Chooses one amount per curve so that the losses add up to the least and the amounts to `total`:
///     min sum_i loss_i(a_i)   s.t.   sum_i a_i = total,
/// where loss_i is the lower convex hull of the points of curve i, linear between them. Exact for the hulls:
/// their segments are taken in the order of their slopes, of equal ones those of earlier curves first, and
/// the last one in part. All amounts but one are points of their curves.
///
/// The amounts of each curve ascend. Throws InvalidArgument when they do not, a curve is empty, a loss is not
/// finite, or `total` is less than all first or more than all last amounts.
std::vector<double> allocate_amounts(const std::vector<std::vector<CurvePoint>>& curves, double total);

/// Factors that draw the losses per cost of items towards their geometric mean (weighted by the costs): with
/// r_i = loss_i / cost_i the ratio r_i / mean becomes its power `trust`. What an estimate has too much of is
/// then not paid for in full. Items without a loss get 1.
std::vector<double> shrinkage(const std::vector<AllocationOption>& items, double trust);

}  // namespace lcomp
