#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lcomp/core/threads.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// Q(W diag(s)) diag(1/s) for rows of a float64 matrix: what rounding scaled columns makes of the matrix.
/// `scale` float64 [in], undefined for 1. `importance` [in] of the unscaled columns, for range kHessian (see
/// `fit_grid`).
class ScaledRounding {
 public:
  /// Schemes with one scale per tensor need the whole matrix to fit it; rows are then rounded one by one.
  ScaledRounding(const at::Tensor& weight, const at::Tensor& scale, const QuantScheme& scheme,
                 const at::Tensor& importance = {});

  /// Rows [first, last), float64.
  at::Tensor rows(int64_t first, int64_t last) const;

 private:
  at::Tensor scaled_rows(int64_t first, int64_t last) const;

  at::Tensor weight_;
  at::Tensor scale_;
  QuantScheme scheme_;
  at::Tensor importance_;
  std::optional<Grid> tensor_grid_;
};

/// The scheme that stores scales in the type it would for a weight of type `weight`, whatever the type of the
/// weights it is given (float64, and scales of NF4: kept as they are).
QuantScheme with_scales_of(QuantScheme scheme, at::ScalarType weight);

/// Rows that one piece of parallel work takes.
constexpr int64_t kSearchRows = 64;

/// tr(D H D^T), D = W - Q(W diag(s)) diag(1/s). The products run in the type of `second_moment`, sums in
/// float64 over the rows in order. Cost out in^2 FLOP: only the upper half of H is multiplied.
double rounding_loss(const at::Tensor& weight, const at::Tensor& scale, const QuantScheme& scheme,
                     const at::Tensor& second_moment, ThreadPool* pool);

}  // namespace lcomp::quant
