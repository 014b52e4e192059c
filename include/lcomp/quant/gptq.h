#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/cholesky.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// The order in which the columns are quantized. The first ones are compensated best.
enum class ActOrder {
  kNone,          ///< as they stand
  kActivation,    ///< diag(H) descending. Groups then follow this order and need a stored group index, which
                  ///< current readers refuse: only per tensor or channel, or with `store_group_index`
  kStaticGroups,  ///< diag(H) descending, with the groups of the plain order fitted beforehand
  kGroupAware,    ///< groups by their largest diag(H), columns by diag(H) inside their group (GPTQModel):
                  ///< groups are fitted when reached, and nothing needs to be stored
};

struct GptqOptions {
  int64_t block_size = 128;
  double damping = 0.01;
  ActOrder act_order = ActOrder::kNone;
  bool static_groups = false;
  bool stale_groups = false;
  bool store_group_index = false;
  bool fallback_to_rtn = true;
  int64_t sweeps = 0;
  bool refit = false;
  bool strict = false;

  void visit(FieldVisitor& v);
};

struct GptqResult {
  QuantizedWeight weight;
  double damped_loss = 0;  ///< tr(D (H + diag(d)) D^T), D = W - W^ with dead columns at 0
  double walk_loss = 0;    ///< the same before sweeps and refit: sum e^2 of the walk
  double loss = 0;         ///< tr(D H D^T): the squared error of the outputs, summed over what H summed over
  double rtn_loss = 0;     ///< the same of round-to-nearest; NaN when not computed (no fallback asked for)
  linalg::Rung rung = linalg::Rung::kFailed;
  double damping = 0;                 ///< the one that worked
  std::vector<std::string> attempts;  ///< factorisations that failed before it
  /// Inputs that never fire (H_jj = 0). Their weights become 0; in a result that fell back they are rounded
  /// as the others.
  int64_t dead_columns = 0;
  bool fell_back = false;      ///< `weight` is the round-to-nearest one; `loss` is then `rtn_loss`
  std::vector<int64_t> order;  ///< column order[i] was quantized i-th
};

/// Throws InvalidArgument for an option out of its range, and Unsupported for those that exclude each other
/// or the scheme: before any matrix is there.
void check_gptq_options(const QuantScheme& scheme, const GptqOptions& options);

/// What GPTQ needs of the inputs: shared by all operators that read the same activation.
struct GptqFactor {
  linalg::DampedInverse inverse;  ///< of H in `order`
  std::vector<int64_t> order;     ///< empty for the plain order
  std::vector<int64_t> dead;      ///< columns with H_jj = 0
  std::vector<double> diagonal;   ///< diag(H) in `order`; dead columns count as 1
  at::Tensor second_moment;
};

/// Prepares a second moment [in, in] for `gptq`. Of the scheme only bits of the group layout matter
/// (kGroupAware). Cost 4/3 in^3 FLOP, memory in^2 float64.
GptqFactor gptq_factor(const at::Tensor& second_moment, const QuantScheme& scheme,
                       const GptqOptions& options = {}, ThreadPool* pool = nullptr);

/// GPTQ: quantizes a matrix column by column and moves what each rounding loses into the columns not yet
/// rounded, so that the outputs change least:
///     min over codes of tr((W - W^) H (W - W^)^T),   H = sum x x^T.
/// Frantar, Ashkboos, Hoefler, Alistarh: GPTQ, ICLR 2023, algorithm 1. Differences by default: everything in
/// float64; groups are fitted on up-to-date weights (`stale_groups` restores the published code's reading of
/// columns that lack the running block's updates); the result is compared with round-to-nearest.
///
/// weight: [out, in], any floating-point type; not changed. second_moment: [in, in], float32 or float64,
/// symmetric; sum or mean, the factor is irrelevant. Needs about as many tokens as columns to be worth it.
/// Cost 2 out in^2 FLOP (twice that with fallback_to_rtn, for the loss of round-to-nearest), and the
/// factor's.
///
/// Rows are independent: the codes of a row depend on nothing but that row, H and the options, so the result
/// is the same at any number of threads.
///
/// kept: bool [out, in], undefined for all true: weights where it is false become 0 and stay so (a matrix
/// that was pruned before); the others make up for them.
///
/// Errors: InvalidArgument for shapes, types, non-finite weights, options out of range; Unsupported when the
/// order would need a group index, or a mask meets a grid without 0. Data that break the mathematics (no
/// factor on any rung, non-finite or larger loss than round-to-nearest) fall back to round-to-nearest, or
/// throw NumericalError when `strict` is set.
GptqResult gptq(const at::Tensor& weight, const at::Tensor& second_moment, const QuantScheme& scheme,
                const GptqOptions& options = {}, ThreadPool* pool = nullptr, const at::Tensor& kept = {});

/// The same with a factor made by `gptq_factor` with the same scheme and options.
GptqResult gptq(const at::Tensor& weight, const GptqFactor& factor, const QuantScheme& scheme,
                const GptqOptions& options = {}, ThreadPool* pool = nullptr, const at::Tensor& kept = {});

}  // namespace lcomp::quant

namespace lcomp {
template <>
struct EnumNames<quant::ActOrder> {
  static constexpr std::array<std::string_view, 4> names = {"none", "activation", "static_groups",
                                                            "group_aware"};
};
}  // namespace lcomp
