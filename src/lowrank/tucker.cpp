#include "lcomp/lowrank/tucker.h"
#include "core/one_thread.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lcomp/core/error.h"
#include "lcomp/linalg/svd.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

void check_mode(const at::Tensor& tensor, int64_t mode, const char* where) {
  if (mode >= 0 && mode < tensor.dim()) return;
  throw InvalidArgument(where, fmt::format("the mode must lie in [0, {}]; it is {}", tensor.dim() - 1, mode));
}

/// The modes to decompose, checked together with their ranks.
std::vector<int64_t> checked_modes(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
                                   std::vector<int64_t> modes, const char* where) {
  if (modes.empty()) {
    modes.resize(static_cast<size_t>(tensor.dim()));
    std::iota(modes.begin(), modes.end(), 0);
  }
  for (size_t i = 0; i < modes.size(); ++i) {
    check_mode(tensor, modes[i], where);
    if (i > 0 && modes[i] <= modes[i - 1])
      throw InvalidArgument(where, fmt::format("modes must ascend; they are {}", fmt::join(modes, ", ")));
  }
  if (ranks.size() != modes.size()) {
    throw InvalidArgument(where, fmt::format("there must be one rank for each of {} modes; there are {}",
                                             modes.size(), ranks.size()));
  }
  for (size_t i = 0; i < modes.size(); ++i) {
    if (ranks[i] >= 1 && ranks[i] <= tensor.size(modes[i])) continue;
    throw InvalidArgument(where, fmt::format("the rank of mode {} must lie in [1, {}]; it is {}", modes[i],
                                             tensor.size(modes[i]), ranks[i]));
  }
  return modes;
}

at::Tensor checked_tensor(const at::Tensor& tensor, const char* where) {
  if (tensor.dim() >= 1 && tensor.numel() > 0 && tensor.is_floating_point()) return tensor.to(at::kDouble);
  throw InvalidArgument(
      where,
      fmt::format("the tensor must be of floating-point numbers and not empty; it is {}", part_text(tensor)));
}

/// The first left singular vectors of the unfolding, [I_mode, rank].
at::Tensor leading_basis(const at::Tensor& tensor, int64_t mode, int64_t rank) {
  const at::Tensor matrix = unfold(tensor, mode);
  return linalg::largest_eigen(one_thread_product(matrix, matrix.t()), rank).vectors.t().contiguous();
}

double tucker_error(double norm, const at::Tensor& core) {
  if (norm == 0) return 0;
  const double kept = core.norm().item<double>();
  return std::sqrt(std::abs(norm * norm - kept * kept)) / norm;
}

/// T x_m U_m^T over all decomposed modes but `left_out` (an index into `modes`; none for -1).
at::Tensor projected(const at::Tensor& tensor, const Tucker& tucker, int64_t left_out) {
  at::Tensor result = tensor;
  for (size_t i = 0; i < tucker.modes.size(); ++i) {
    if (static_cast<int64_t>(i) != left_out)
      result = mode_product(result, tucker.factors[i].t(), tucker.modes[i]);
  }
  return result;
}

/// Indices into `modes` in the order in which they are to be cut.
std::vector<size_t> cutting_order(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
                                  const std::vector<int64_t>& modes, TuckerOrder order) {
  std::vector<size_t> indices(modes.size());
  std::iota(indices.begin(), indices.end(), 0);
  const auto reduction = [&](size_t i) {
    return static_cast<double>(tensor.size(modes[i])) / static_cast<double>(ranks[i]);
  };
  if (order == TuckerOrder::kLargestReduction) {
    std::stable_sort(indices.begin(), indices.end(),
                     [&](size_t a, size_t b) { return reduction(a) > reduction(b); });
  }
  return indices;
}

}  // namespace

at::Tensor unfold(const at::Tensor& tensor, int64_t mode) {
  check_mode(tensor, mode, "unfold");
  return tensor.movedim(mode, 0).reshape({tensor.size(mode), -1});
}

at::Tensor fold(const at::Tensor& matrix, int64_t mode, at::IntArrayRef shape) {
  std::vector<int64_t> moved = shape.vec();
  if (mode < 0 || mode >= static_cast<int64_t>(moved.size())) {
    throw InvalidArgument("fold",
                          fmt::format("the mode must lie in [0, {}]; it is {}", moved.size() - 1, mode));
  }
  std::rotate(moved.begin(), moved.begin() + mode, moved.begin() + mode + 1);
  if (matrix.numel() != c10::multiply_integers(shape) || matrix.size(0) != moved.front()) {
    throw InvalidArgument("fold", fmt::format("the matrix must be an unfolding of [{}] at {}; it is [{}]",
                                              fmt::join(shape, ", "), mode, fmt::join(matrix.sizes(), ", ")));
  }
  return matrix.reshape(moved).movedim(0, mode).contiguous();
}

at::Tensor mode_product(const at::Tensor& tensor, const at::Tensor& matrix, int64_t mode) {
  check_mode(tensor, mode, "mode_product");
  if (matrix.dim() != 2 || matrix.size(1) != tensor.size(mode)) {
    throw InvalidArgument("mode_product", fmt::format("the matrix must have {} columns; it is [{}]",
                                                      tensor.size(mode), fmt::join(matrix.sizes(), ", ")));
  }
  std::vector<int64_t> shape = tensor.sizes().vec();
  shape[static_cast<size_t>(mode)] = matrix.size(0);
  return fold(one_thread_product(matrix, unfold(tensor, mode)), mode, shape);
}

at::Tensor Tucker::full() const {
  at::Tensor result = core;
  for (size_t i = 0; i < modes.size(); ++i) result = mode_product(result, factors[i], modes[i]);
  return result;
}

int64_t Tucker::parameters() const {
  int64_t sum = core.numel();
  for (const at::Tensor& factor : factors) sum += factor.numel();
  return sum;
}

Tucker hosvd(const at::Tensor& tensor, const std::vector<int64_t>& ranks, const std::vector<int64_t>& modes) {
  Tucker result;
  const at::Tensor t = checked_tensor(tensor, "hosvd");
  result.modes = checked_modes(t, ranks, modes, "hosvd");
  for (size_t i = 0; i < ranks.size(); ++i)
    result.factors.push_back(leading_basis(t, result.modes[i], ranks[i]));
  result.core = projected(t, result, -1);
  result.relative_error = tucker_error(t.norm().item<double>(), result.core);
  return result;
}

Tucker st_hosvd(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
                const std::vector<int64_t>& modes, TuckerOrder order) {
  Tucker result;
  const at::Tensor t = checked_tensor(tensor, "st_hosvd");
  result.modes = checked_modes(t, ranks, modes, "st_hosvd");
  result.factors.resize(ranks.size());
  result.core = t;
  for (const size_t i : cutting_order(t, ranks, result.modes, order)) {
    result.factors[i] = leading_basis(result.core, result.modes[i], ranks[i]);
    result.core = mode_product(result.core, result.factors[i].t(), result.modes[i]);
  }
  result.relative_error = tucker_error(t.norm().item<double>(), result.core);
  return result;
}

Tucker hooi(const at::Tensor& tensor, const std::vector<int64_t>& ranks, const std::vector<int64_t>& modes,
            const HooiOptions& options) {
  if (options.max_sweeps < 1)
    throw InvalidArgument("hooi", fmt::format("sweeps must be at least 1; they are {}", options.max_sweeps));
  Tucker result = hosvd(tensor, ranks, modes);
  const at::Tensor t = tensor.to(at::kDouble);
  const double norm = t.norm().item<double>();
  for (int64_t sweep = 0; sweep < options.max_sweeps; ++sweep) {
    for (size_t i = 0; i < ranks.size(); ++i) {
      const at::Tensor others = projected(t, result, static_cast<int64_t>(i));
      result.factors[i] = leading_basis(others, result.modes[i], ranks[i]);
      if (i + 1 == ranks.size()) result.core = mode_product(others, result.factors[i].t(), result.modes[i]);
    }
    const double before = result.relative_error;
    result.relative_error = tucker_error(norm, result.core);
    result.sweep_errors.push_back(result.relative_error);
    if (std::abs(before - result.relative_error) < options.tolerance) break;
  }
  return result;
}

}  // namespace lcomp::lowrank
