#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "lcomp/core/threads.h"
#include "lcomp/quant/nested_scales.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// The grid of a matrix [out, in]: what w^ = (q - z) s, or w^ = v(q) s, needs besides the codes.
struct Grid {
  at::Tensor scale;  ///< [out, groups] ([1, 1] per tensor) in the type that scales are stored in
  at::Tensor zero;   ///< int8, same shape: signed zero points; undefined when symmetric
  NumberFormat format = NumberFormat::kInt;
  NestedScales nested = {};  ///< what `scale` is stored as under double quantization
};

/// Chooses scales and zero points for `weight` [out, in] of any floating-point type.
///
/// Everything is computed in float64. For each group with range [lo, hi] (see the conventions in scheme.h):
/// s = (hi - lo) / levels, rounded to its storage type; z = clamp(round(-lo / s)) - 2^(b-1), or 0 when
/// symmetric. Range kMse tries p = 1, 0.99, ... (`mse_steps` of them) on p lo, p hi and keeps the first with
/// the least sum |w^ - w|^mse_exponent (kSigned: each with either sign); kHessian keeps the one with the
/// least error of the outputs, as far as `importance` knows it. Zero points are signed, one less bit than the
/// unsigned ones of the papers. NF4: s = max |w|, and the values end at +-1. E4M3: s = max |w| / 448. Double
/// quantization rounds the scales of the whole matrix last, so that codes are computed with the scales that a
/// reader will have.
///
/// importance (kHessian only, any floating-point type, its factor is irrelevant):
///   [in]      h_j >= 0, such as diag(H) of H = sum x x^T: the error is sum_j h_j (w^_j - w_j)^2;
///   [in, in]  H itself: the error is d H_gg d^T, d = w^ - w of the group g, what the group's part of the
///             output loses (AWQ's clip search). Not per tensor.
///
/// Cost O(out in), times mse_steps for kMse and kHessian, times the group's width with a full H. Rows are
/// independent, except per tensor.
/// Throws InvalidArgument("[where] ...") when the scheme does not fit, the weight has NaN or infinity, or
/// kHessian lacks an importance of the right shape, and NumericalError when a scale overflows its storage
/// type.
Grid fit_grid(const at::Tensor& weight, const QuantScheme& scheme, std::string_view where = "fit_grid",
              ThreadPool* pool = nullptr, const at::Tensor& importance = {});

/// The codes of `weight` on a grid: q = clamp(round(w / s) + z), halves to even, or the code of the value
/// nearest to w / s; int8 [out, in].
at::Tensor quantize(const at::Tensor& weight, const Grid& grid, const QuantScheme& scheme,
                    ThreadPool* pool = nullptr);

/// (q - z) s, or v(q) s, as float64 [out, in], for a grid in plain column order.
at::Tensor dequantize(const at::Tensor& codes, const Grid& grid);

/// Throws InvalidArgument("[where] ...") naming the first element of `weight` that is NaN or infinite.
void check_finite(const at::Tensor& weight, std::string_view where);

}  // namespace lcomp::quant
