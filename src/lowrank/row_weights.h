#pragma once

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstdint>

#include "lcomp/core/error.h"

namespace lcomp::lowrank {

/// Weights of the rows of a table, float64 [rows]: all 1 when undefined. Throws InvalidArgument unless they
/// are [rows], not negative, and not all 0.
inline at::Tensor checked_row_weights(const at::Tensor& weights, int64_t rows, const char* where) {
  if (!weights.defined()) return at::ones({rows}, at::kDouble);
  if (weights.dim() != 1 || weights.size(0) != rows)
    throw InvalidArgument(where,
                          fmt::format("there must be {} row weights; there are {}", rows, weights.numel()));
  at::Tensor w = weights.to(at::kDouble);
  if (!(w >= 0).all().item<bool>() || !std::isfinite(w.sum().item<double>()) || w.sum().item<double>() == 0)
    throw InvalidArgument(where, "row weights must be finite, not negative and not all 0");
  return w;
}

}  // namespace lcomp::lowrank
