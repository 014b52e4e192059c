#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// How a candidate scale follows from a = mean |x_j| of each input channel and the ratio r.
enum class AwqFormula {
  kActivation,        ///< the authors': s = max(a^r, 1e-4)
  kActivationWeight,  ///< AutoAWQ's: s = max(a^r / (w^(1-r) + 1e-4), 1e-4), w = mean over the rows of all
                      ///< operators of |w_j| / (max |w| of its group + 1e-6)
};

struct AwqOptions {
  AwqFormula scale_formula = AwqFormula::kActivation;
  int64_t ratios = 20;
  double channel_floor = 1e-4;

  void visit(FieldVisitor& v);
};

/// The scale that a search chose for one group of operators.
struct AwqScale {
  at::Tensor scale;  ///< float64 [in], max s min s = 1
  double ratio = 0;
  int64_t index = -1;          ///< of the ratio; -1: s = 1, which no candidate beat
  double loss = 0;             ///< sum over the operators of tr(D H D^T), D = W - Q(W S) S^-1
  double rtn_loss = 0;         ///< the same with s = 1
  std::vector<double> losses;  ///< of every ratio
};

/// AWQ: finds a scale per input channel that makes rounding hurt the outputs least, by a search along one
/// curve:
///     min over r of  sum over operators of  tr(D H D^T),   D = W - Q(W diag(s)) diag(1/s),
///     s = a^r,  normalised so that max s min s = 1,  r = i / ratios for i = 0 ... ratios - 1.
/// Lin et al.: AWQ: Activation-aware Weight Quantization, MLSys 2024, section 3.2; the published code's
/// constants, order and tie-break (the first best). s = 1 is always a candidate, so the loss is never above
/// that of round-to-nearest.
///
/// tr(D H D^T) with H = sum x x^T over the tokens is the squared error of the operators' outputs on these
/// tokens. A candidate therefore costs out in^2 FLOP whatever the number of tokens, where running the tokens
/// through the operators costs 2 tokens out in. The authors measure the output of the module around the
/// operators (the attention, the MLP) instead, which no statistic of the inputs can give;
/// docs/quantization.md says what that changes.
///
/// weights: the operators that read one input, each [out_i, in], any floating-point type. schemes: one per
/// operator. abs_mean: [in]. second_moment: [in, in]; its type is that of the products: float32, or float64.
/// sources: int64 [in], undefined when all differ: channels with equal numbers must get one scale (grouped
/// query attention, `model::absorber_rows`); their means are averaged. Channels below `channel_floor` times
/// the mean of abs_mean count as having that (else a dead one would get a scale far from all others).
///
/// The same result at any number of threads. Errors: InvalidArgument for shapes, empty lists and options out
/// of range, as `rtn` for the weights; NumericalError when the loss of s = 1 is not finite.
AwqScale awq_scale(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
                   const at::Tensor& abs_mean, const at::Tensor& second_moment,
                   const AwqOptions& options = {}, const at::Tensor& sources = {},
                   ThreadPool* pool = nullptr);

/// A matrix whose extremes were cut where that makes rounding hurt less.
struct AwqClip {
  at::Tensor weight;  ///< float64 [out, in]: clamp(w, -limit, limit)
  at::Tensor limit;   ///< float64 [out, groups]
  at::Tensor error;   ///< float64 [out, groups]: d^T H_gg d of the rounded group at that limit
};

/// AWQ's search for clipping limits: per row and group g of the scheme, the first best of
///     min over i of  d^T H_gg d,   d = Q(clamp(w_g, -m, m)) - w_g,   m = (1 - i / 20) max |w_g|,  i = 0 ...
///     9,
/// H_gg being the block of the second moment that belongs to the group's columns: the squared error of the
/// group's part of the output (the published code, auto_clip.py). i = 0 clips nothing, so the error is never
/// above that of plain rounding. Cost 20 out in (columns of a group) FLOP.
///
/// weight: [out, in]; second_moment as above. A scheme with one scale per tensor has no groups and is
/// InvalidArgument.
AwqClip awq_clip(const at::Tensor& weight, const at::Tensor& second_moment, const QuantScheme& scheme,
                 ThreadPool* pool = nullptr);

}  // namespace lcomp::quant

namespace lcomp {
template <>
struct EnumNames<quant::AwqFormula> {
  static constexpr std::array<std::string_view, 2> names = {"activation", "activation_weight"};
};
}  // namespace lcomp
