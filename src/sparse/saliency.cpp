#include "lcomp/sparse/saliency.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <string>

#include "lcomp/core/error.h"

namespace lcomp::sparse {
namespace {

void check_matrix(const at::Tensor& weight, const char* where) {
  if (weight.dim() == 2 && weight.is_floating_point()) return;
  throw InvalidArgument(
      where, fmt::format("the weight must be a matrix of a floating-point type; it has {} dimensions",
                         weight.dim()));
}

at::Tensor checked_diagonal(const at::Tensor& weight, const at::Tensor& diagonal, const char* where) {
  check_matrix(weight, where);
  if (diagonal.dim() == 1 && diagonal.size(0) == weight.size(1)) return diagonal.to(at::kDouble);
  throw InvalidArgument(where, fmt::format("the diagonal must be [{}]; received [{}]", weight.size(1),
                                           fmt::join(diagonal.sizes(), ", ")));
}

/// 0 / 0 counts as 0.
at::Tensor share(const at::Tensor& part, const at::Tensor& whole) {
  return part / at::where(whole > 0, whole, at::ones_like(whole));
}

}  // namespace

at::Tensor magnitude(const at::Tensor& weight) {
  check_matrix(weight, "magnitude");
  return weight.to(at::kDouble).abs();
}

at::Tensor wanda(const at::Tensor& weight, const at::Tensor& diagonal) {
  return weight.to(at::kDouble).abs() * checked_diagonal(weight, diagonal, "wanda").sqrt();
}

at::Tensor relative_importance(const at::Tensor& weight, const at::Tensor& diagonal, double power) {
  const at::Tensor h = checked_diagonal(weight, diagonal, "relative_importance");
  const at::Tensor size = weight.to(at::kDouble).abs();
  const at::Tensor relative = share(size, size.sum(0, true)) + share(size, size.sum(1, true));
  return relative * h.pow(power / 2);
}

at::Tensor optimal_brain_damage(const at::Tensor& weight, const at::Tensor& curvature) {
  check_matrix(weight, "optimal_brain_damage");
  const bool fits =
      curvature.sizes() == weight.sizes() || curvature.sizes() == at::IntArrayRef{weight.size(1)};
  if (!fits) {
    throw InvalidArgument(
        "optimal_brain_damage",
        fmt::format("the curvature must be [{}] or [{}]; received [{}]", fmt::join(weight.sizes(), ", "),
                    weight.size(1), fmt::join(curvature.sizes(), ", ")));
  }
  return curvature.to(at::kDouble) * weight.to(at::kDouble).square() / 2;
}

}  // namespace lcomp::sparse
