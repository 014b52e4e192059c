#include "quant/scaled_rounding.h"

#include <ATen/ATen.h>

#include <numeric>

#include "lcomp/quant/grid.h"

namespace lcomp::quant {
namespace {

/// tr(D H D^T) of a few rows. Blocks of columns: H is symmetric, so those left of the diagonal count twice
/// instead of being multiplied.
double energy(const at::Tensor& difference, const at::Tensor& second_moment) {
  const int64_t in = second_moment.size(0), step = std::max<int64_t>(64, (in + 7) / 8);
  double sum = 0;
  for (int64_t begin = 0; begin < in; begin += step) {
    const int64_t end = std::min(in, begin + step);
    const at::Tensor left = difference.slice(1, begin, end), right = difference.slice(1, begin);
    const at::Tensor product =
        at::matmul(left, second_moment.slice(0, begin, end).slice(1, begin)).mul_(right);
    sum += 2 * product.sum(at::kDouble).item<double>() -
           product.slice(1, 0, end - begin).sum(at::kDouble).item<double>();
  }
  return sum;
}

}  // namespace

QuantScheme with_scales_of(QuantScheme scheme, at::ScalarType weight) {
  if (scheme.scale_dtype != ScaleDtype::kModel || scheme.format == NumberFormat::kNf4) return scheme;
  if (weight == at::kFloat) scheme.scale_dtype = ScaleDtype::kFloat32;
  if (weight == at::kHalf) scheme.scale_dtype = ScaleDtype::kFloat16;
  if (weight == at::kBFloat16) scheme.scale_dtype = ScaleDtype::kBFloat16;
  return scheme;
}

ScaledRounding::ScaledRounding(const at::Tensor& weight, const at::Tensor& scale, const QuantScheme& scheme,
                               const at::Tensor& importance)
    : weight_(weight), scale_(scale), scheme_(scheme) {
  if (scheme.range == RangeRule::kHessian) {
    importance_ = importance.to(at::kDouble).contiguous();
    if (scale.defined()) importance_ = importance_ / (scale * scale);
  }
  if (scheme.granularity != Granularity::kTensor) return;
  tensor_grid_ = fit_grid(scaled_rows(0, weight.size(0)), scheme, "fit_grid", nullptr, importance_);
}

at::Tensor ScaledRounding::scaled_rows(int64_t first, int64_t last) const {
  const at::Tensor rows = weight_.slice(0, first, last);
  return scale_.defined() ? rows * scale_ : rows.contiguous();
}

at::Tensor ScaledRounding::rows(int64_t first, int64_t last) const {
  const at::Tensor scaled = scaled_rows(first, last);
  const Grid grid =
      tensor_grid_ ? *tensor_grid_ : fit_grid(scaled, scheme_, "fit_grid", nullptr, importance_);
  at::Tensor decoded = dequantize(quantize(scaled, grid, scheme_), grid);
  if (scale_.defined()) decoded.div_(scale_);
  return decoded;
}

double rounding_loss(const at::Tensor& weight, const at::Tensor& scale, const QuantScheme& scheme,
                     const at::Tensor& second_moment, ThreadPool* pool) {
  const ScaledRounding rounding(weight, scale, scheme, second_moment.diagonal());
  const int64_t out = weight.size(0), pieces = (out + kSearchRows - 1) / kSearchRows;
  std::vector<double> energies(static_cast<size_t>(pieces));
  parallel_for(pool, pieces, [&](int64_t piece, int) {
    const int64_t first = piece * kSearchRows, last = std::min(out, first + kSearchRows);
    const at::Tensor difference = weight.slice(0, first, last) - rounding.rows(first, last);
    energies[static_cast<size_t>(piece)] = energy(difference.to(second_moment.scalar_type()), second_moment);
  });
  return std::accumulate(energies.begin(), energies.end(), 0.0);
}

}  // namespace lcomp::quant
