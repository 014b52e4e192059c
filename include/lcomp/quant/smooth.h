#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/quant/activation_scheme.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

struct SmoothOptions {
  double alpha = 0.5;
  bool search_alpha = false;

  void visit(FieldVisitor& v);
};

/// SmoothQuant's scale of the inputs that a group of operators reads: it moves the range of outlier channels
/// from the activations, which are hard to round, into the weights:
///     s_j = max(a_j^alpha / w_j^(1 - alpha), 1e-5),   a_j = max |x_j|,  w_j = max(max |W_oj|, 1e-5)
/// over all operators and rows. Xiao et al.: SmoothQuant, ICML 2023, equation 4, and the published code's
/// constants. After folding, channel j spans a_j / s_j and w_j s_j: with alpha = 0.5 the same for both. A
/// channel that never fires (a_j = 0) gets 1, where the published code's 1e-5 would multiply what makes the
/// input by 1e5.
///
/// weights: the operators, each [out_i, in]. abs_max: [in]. sources: as in `awq_scale`; channels that share a
/// scale share the largest a and w. Returns float64 [in]. Cost O(out in). Errors: InvalidArgument for shapes
/// and an alpha outside [0, 1].
at::Tensor smooth_scale(const std::vector<at::Tensor>& weights, const at::Tensor& abs_max, double alpha,
                        const at::Tensor& sources = {});

/// What a search over alpha chose.
struct SmoothSearch {
  at::Tensor scale;  ///< float64 [in]
  double alpha = 0;
  int64_t index = -1;          ///< of alpha in the grid; -1: s = 1, which no alpha beat
  double loss = 0;             ///< sum over operators of |X W^T - A(X S^-1) Q(W S)^T|^2
  double plain_loss = 0;       ///< the same with s = 1
  std::vector<double> losses;  ///< of every alpha: 0.3, 0.35, ... 0.95
};

/// The alpha (0.3 to 0.95 in steps of 0.05, or s = 1) whose outputs are nearest to the exact ones when both
/// sides are rounded: A rounds activations as `activations` says, Q weights as `schemes` say. `samples`
/// [tokens, in] are inputs that stand for all; a symmetric range per tensor is that of `abs_max`, which has
/// seen all of them, an asymmetric one or a static percentile that of the samples. No function of second
/// moments gives this objective, because the rounding of activations depends on each token; but a few hundred
/// tokens do, and the block is not run again.
///
/// Cost 2 tokens out in FLOP per candidate. The same result at any number of threads. Errors as
/// `smooth_scale`, `rtn`; NumericalError when the loss of s = 1 is not finite.
SmoothSearch smooth_search(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
                           const ActivationScheme& activations, const at::Tensor& abs_max,
                           const at::Tensor& samples, const at::Tensor& sources = {},
                           ThreadPool* pool = nullptr);

}  // namespace lcomp::quant
