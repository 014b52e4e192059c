#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/cholesky.h"

namespace lcomp::quant {

/// How far the target of a solver is moved to make up for inputs that compression has changed already.
enum class MismatchRule {
  kNone,   ///< the weights themselves
  kSplit,  ///< as far as the correction from one half of the samples explains the other half
  kFixed,  ///< by a share that is given
};

/// Moments of the inputs x~ that an operator gets in the compressed model and x that it gets in the dense
/// one, over the same tokens, all [in, in] of float32 or float64.
struct MismatchMoments {
  at::Tensor delta;                      ///< sum (x - x~) x~^T
  std::array<at::Tensor, 2> half;        ///< sum x~ x~^T over each half of the samples; for the split rule
  std::array<at::Tensor, 2> half_delta;  ///< delta over each half
};

/// W + a W Delta (H + diag(added))^-1: what a layer solver should aim at instead of W.
///
/// What counts is |W' X~ - W X|^2: the compressed operator on the inputs that it will get, against the dense
/// one on its own. With H = X~ X~^T and Delta = (X - X~) X~^T this is
///     tr((W' - W*) H (W' - W*)^T) + const,    W* = W + W Delta H^-1,
/// so any solver that is given W* and H minimises it (GPTAQ: Li et al. 2025; Qronos: Zhang et al. 2025 and
/// QEP: Arai and Ichikawa 2025 are settings of it). a < 1 shrinks the correction, which is itself estimated
/// from few tokens and can do harm in full.
///
/// weight: [out, in]. inverse: the factor of H in `order`, as `gptq_factor` makes it. Returns `weight` itself
/// for a = 0, else float64 [out, in] (so say `scale_dtype` in the scheme). Cost 4 out in^2 FLOP. Rows are
/// independent; the result is the same at any number of threads.
/// Throws InvalidArgument when shapes or types disagree or the factor failed.
at::Tensor mismatch_target(const at::Tensor& weight, const at::Tensor& delta,
                           const linalg::DampedInverse& inverse, const std::vector<int64_t>& order, double a,
                           ThreadPool* pool = nullptr);

/// The a in [0, 1] of the split rule, one for all operators that read one input: with D_i = Delta_i (H_i +
/// lambda_i)^-1 from the samples of half i,
///     a = clip( sum_{i != j} <W Delta_j, W D_i> / sum_{i != j} <W D_i H_j, W D_i> ),
/// the least squares weight of each half's correction on the other half. On at most 192 rows, evenly spaced
/// over all of `weights` [out_k, in] below each other. 0 where a half has no factor or no mismatch.
/// damping: relative to the mean diagonal of each half, as in `damped_inverse`.
double mismatch_weight(const std::vector<at::Tensor>& weights, const MismatchMoments& moments, double damping,
                       ThreadPool* pool = nullptr);

}  // namespace lcomp::quant

namespace lcomp {
template <>
struct EnumNames<quant::MismatchRule> {
  static constexpr std::array<std::string_view, 3> names = {"none", "split", "fixed"};
};
}  // namespace lcomp
