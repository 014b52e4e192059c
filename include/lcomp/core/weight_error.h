#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lcomp/core/threads.h"

namespace lcomp {

/// How far a compressed matrix is from the original; the same numbers in reports and tests.
struct WeightError {
  double relative = 0;               ///< ||W - W^|| / ||W|| (Frobenius); 0 for two zero matrices
  double largest = 0;                ///< max |W - W^|
  double sign_flips = 0;             ///< share of elements whose sign became the opposite one
  double zeroed = 0;                 ///< share of elements that were not 0 and became 0
  std::optional<double> activation;  ///< tr(D H D^T) / tr(W H W^T), D = W - W^: the relative squared error of
                                     ///< the outputs on the inputs that H = sum x x^T was collected from
};

/// original, compressed: [out, in], any floating-point types. second_moment: undefined, or [in, in] float32
/// or float64. Computed in float64; a second moment costs 4 out in^2 FLOP. Throws InvalidArgument on other
/// shapes.
WeightError weight_error(const at::Tensor& original, const at::Tensor& compressed,
                         const at::Tensor& second_moment = {}, ThreadPool* pool = nullptr);

/// tr(D H D^T): D [out, in], H [in, in] symmetric; float64, in pieces of rows.
double activation_energy(const at::Tensor& difference, const at::Tensor& second_moment,
                         ThreadPool* pool = nullptr);

}  // namespace lcomp
