#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/cholesky.h"

/// Structured pruning: which units of a block (attention heads with what belongs to them, feed-forward
/// channels) are worth keeping, how many of each block, and what the others do about those that go. The units
/// themselves, and how they are deleted, are the model's (model/architecture.h, `model::Block::keep_units`).
namespace lcomp::sparse {

/// What deleting units saves, and how little must be left of a block.
struct UnitCosts {
  double attention = 1;  ///< of one attention unit (a key-value head with its query heads)
  double channel = 1;    ///< of one feed-forward channel
  int64_t channel_step =
      1;  ///< channels are kept in multiples of this many (and all, if they are no multiple)
  int64_t least_attention = 1;  ///< units that every block keeps
  int64_t least_channels = 1;
};

/// Importance of the units of every block; larger is worth more. Blocks may differ in their number of units.
struct UnitScores {
  std::vector<std::vector<double>> attention;
  std::vector<std::vector<double>> channels;
};

/// How many units each block keeps.
struct UnitCounts {
  std::vector<int64_t> attention;
  std::vector<int64_t> channels;

  bool operator==(const UnitCounts&) const = default;
};

/// The numbers of units with the largest sum of scores under a budget (Kwon et al., NeurIPS 2022,
/// section 4.1, algorithm 1). All attention units of all blocks compete with each other, and so do all
/// channels: for every number k of the former the budget left is spent on the latter, and the best k wins
/// (the smallest of equal ones). Exact for two kinds of costs but for the channels'
/// step. Of equal scores the lower block keeps its units.
///
/// budget: in the unit of the costs, of what is kept. Throws InvalidArgument when what every block must keep
/// exceeds it, or the blocks of the scores are not the same.
UnitCounts search_units(const UnitScores& scores, const UnitCosts& costs, double budget);

/// What k units of a block cost, k from 0 on, where that is no multiple of one unit's cost: measured times.
struct MeasuredCosts {
  std::vector<double> attention;  ///< never falls
  std::vector<double> channels;   ///< never falls
};

/// The costs of `most` units of each kind, as multiples.
MeasuredCosts as_measured(const UnitCosts& costs, int64_t most_attention, int64_t most_channels);

/// The numbers of units with the largest sum of scores under a budget of measured costs, exactly but for
/// their rounding to a billionth of the budget (core/allocation.h). Kwon et al. (section 4.1) fit two
/// straight lines to such a table first, which this needs not. channel_step: as in UnitCosts; every block
/// keeps at least one unit of each kind. Throws InvalidArgument as `search_units`, and when the costs are not
/// those of as many units as the largest block has.
UnitCounts search_measured_units(const UnitScores& scores, const MeasuredCosts& costs, int64_t channel_step,
                                 double budget);

/// The same with equal numbers in all blocks, which must have equal numbers of units. `legal`: numbers of
/// attention units that may be kept, ascending.
UnitCounts search_uniform_units(const UnitScores& scores, const MeasuredCosts& costs, int64_t channel_step,
                                double budget, const std::vector<int64_t>& legal);

/// Numbers of units when those of the lowest scores go, attention units and channels alike, until a budget is
/// kept (LLM-Pruner's global selection). Channels go in steps, by their mean score.
UnitCounts threshold_units(const UnitScores& scores, const UnitCosts& costs, double budget);

/// What a weight w counts for, with the gradient g of the mean loss and the mean a of squared gradients per
/// sample (LLM-Pruner, Ma et al., NeurIPS 2023, section 3.2; the names are those of its code).
enum class UnitImportance {
  kParamFirst,   ///< |w g|
  kParamSecond,  ///< w^2 a
  kParamMix,     ///< |w g - w^2 a / 2|
  kVector,       ///< w g, summed over the slice with its sign, then its size
  kL1,           ///< |w|: no gradients
  kL2,           ///< w^2
};

/// How the importances of a unit's slices become that of the unit.
enum class UnitGrouping { kSum, kMean, kMax, kProd, kFirst, kLast };

/// Gradients of one operator, float32 `[out, in]`; undefined where the importance does not need them.
struct SliceGradients {
  at::Tensor products;  ///< w times the sum over samples of their gradients
  at::Tensor squares;   ///< sum over samples of their squared gradients
  int64_t samples = 1;
};

/// Importance of each unit's slice of an operator: `per_unit` rows (or columns) of `weight` belong to a unit.
/// Sums in float64. Throws InvalidArgument when the importance needs gradients that are not there.
std::vector<double> slice_importance(const at::Tensor& weight, const SliceGradients& gradients, bool rows,
                                     int64_t per_unit, UnitImportance importance);

/// slices: importances of the same units in each of their operators, in order.
std::vector<double> grouped_importance(const std::vector<std::vector<double>>& slices, UnitGrouping grouping);

/// Units of the lowest scores, `count` of them, ascending by position; of equal scores the one further left.
std::vector<int64_t> lowest_units(const std::vector<double>& scores, int64_t count);

/// J(Z) = sum over the rows b of gradients of (sum over u in Z of g_bu)^2: what masking the units Z costs by
/// the empirical Fisher information, with the products of units (Kwon et al. 2022, equation 7). gradients:
/// float64 `[batches, units]`.
double fisher_cost(const at::Tensor& gradients, const std::vector<int64_t>& removed);

/// Lowers J by exchanging removed units for kept ones, their number fixed (Kwon et al. 2022, section 4.2):
/// every unit that was kept enters once, the lowest diagonal first, and the unit whose leaving lowers J most
/// leaves. Never raises J. Returns the removed units, ascending.
std::vector<int64_t> rearrange_units(const at::Tensor& gradients, const std::vector<int64_t>& removed);

/// M_uv = tr(W_u H_uv W_v^T): products of what units u and v contribute to the outputs of the operator that
/// closes their dependency group, summed over the tokens. Unit u makes inputs u * per_unit to (u+1) *
/// per_unit of it. weight: `[out, units * per_unit]`; second_moment: of its inputs. Returns float64 `[units,
/// units]`.
at::Tensor unit_products(const at::Tensor& weight, const at::Tensor& second_moment, int64_t per_unit,
                         ThreadPool* pool = nullptr);

/// Factors r of units that approximate a target by sum_u r_u a_u (Kwon et al. 2022, section 4.3): r = 1 + x
/// with
///     min over x of |K x - (v - K 1)|^2 + damping^2 |x|^2,   K = A^T A, v = A^T b,
/// solved exactly by the eigenvalues of K. Never raises |A r - b|^2 above that of r = 1.
/// products: K, float64 `[units, units]`; targets: v, `[units]`.
at::Tensor tune_scales(const at::Tensor& products, const at::Tensor& targets, double damping = 1.0);

/// The least squares of an operator on the input columns that are left: W' = W H_:K (H_KK + damping)^-1, with
/// what the deleted columns did moved into the others (the step that OSSCAR, SlimGPT and ZipLM share).
struct RefittedColumns {
  at::Tensor weight;       ///< float64 `[out, kept]`
  double loss = 0;         ///< sum over tokens of |W x - W' x_K|^2
  double loss_before = 0;  ///< the same of the columns as they were
  linalg::Rung rung = linalg::Rung::kFailed;
  double damping = 0;   ///< relative to the mean of the diagonal, as it was needed
  bool failed = false;  ///< no factor, or no gain: the weight is that of the columns as they were
};

/// weight: `[out, in]`; second_moment: `[in, in]`; columns: those that are left, ascending.
RefittedColumns refit_columns(const at::Tensor& weight, const at::Tensor& second_moment,
                              const std::vector<int64_t>& columns, double damping,
                              ThreadPool* pool = nullptr);

/// sum over tokens of |W x - W' x_K|^2 for a weight `[out, kept]` of the columns that are left.
double narrowed_loss(const at::Tensor& weight, const at::Tensor& narrowed, const at::Tensor& second_moment,
                     const std::vector<int64_t>& columns, ThreadPool* pool = nullptr);

}  // namespace lcomp::sparse

namespace lcomp {
template <>
struct EnumNames<sparse::UnitImportance> {
  static constexpr std::array<std::string_view, 6> names = {"param_first", "param_second", "param_mix",
                                                            "vector",      "l1",           "l2"};
};
template <>
struct EnumNames<sparse::UnitGrouping> {
  static constexpr std::array<std::string_view, 6> names = {"sum", "mean", "max", "prod", "first", "last"};
};
}  // namespace lcomp
