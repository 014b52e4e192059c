#include "quant/panel_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/panel_kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, as Highway asks.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::quant::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<double>;
using V = hn::Vec<D>;

/// round(w / s) + z within the codes.
HWY_INLINE V Encode(V w, V s, V z, V lowest, V highest) {
  const V q = hn::Add(hn::Round(hn::Div(w, s)), z);
  return hn::Min(hn::Max(q, lowest), highest);
}

void RowRange(const double* columns, int64_t count, double* lowest, double* highest) {
  const D d;
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    V lo = hn::LoadU(d, columns + r), hi = lo;
    for (int64_t j = 1; j < count; ++j) {
      const V w = hn::LoadU(d, columns + j * kPanelRows + r);
      lo = hn::Min(lo, w);
      hi = hn::Max(hi, w);
    }
    hn::StoreU(lo, d, lowest + r);
    hn::StoreU(hi, d, highest + r);
  }
}

void RowError(const double* columns, int64_t count, const double* scale, const double* zero,
              double lowest_code, double highest_code, double exponent, double* error) {
  const D d;
  const V lo = hn::Set(d, lowest_code), hi = hn::Set(d, highest_code), p = hn::Set(d, exponent);
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V s = hn::LoadU(d, scale + r), z = hn::LoadU(d, zero + r);
    V sum = hn::Zero(d);
    for (int64_t j = 0; j < count; ++j) {
      const V w = hn::LoadU(d, columns + j * kPanelRows + r);
      const V off = hn::Abs(hn::Sub(hn::Mul(hn::Sub(Encode(w, s, z, lo, hi), z), s), w));
      // |off|^p = exp(p log |off|), which is 0 at 0: Exp takes everything below its range to 0.
      sum = hn::Add(sum, exponent == 2 ? hn::Mul(off, off) : hn::Exp(d, hn::Mul(p, hn::Log(d, off))));
    }
    hn::StoreU(sum, d, error + r);
  }
}

void RowWeightedError(const double* columns, const double* weight, int64_t count, const double* scale,
                      const double* zero, double lowest_code, double highest_code, double* error) {
  const D d;
  const V lo = hn::Set(d, lowest_code), hi = hn::Set(d, highest_code);
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V s = hn::LoadU(d, scale + r), z = hn::LoadU(d, zero + r);
    V sum = hn::Zero(d);
    for (int64_t j = 0; j < count; ++j) {
      const V w = hn::LoadU(d, columns + j * kPanelRows + r);
      const V off = hn::Sub(hn::Mul(hn::Sub(Encode(w, s, z, lo, hi), z), s), w);
      sum = hn::MulAdd(hn::Mul(off, off), hn::Set(d, weight[j]), sum);
    }
    hn::StoreU(sum, d, error + r);
  }
}

void EncodeColumn(const double* values, const double* scale, const double* zero, double lowest_code,
                  double highest_code, int8_t* codes, double* decoded) {
  const D d;
  const hn::Rebind<int32_t, D> d32;
  const hn::Rebind<int8_t, D> d8;
  const V lo = hn::Set(d, lowest_code), hi = hn::Set(d, highest_code);
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V s = hn::LoadU(d, scale + r), z = hn::LoadU(d, zero + r);
    const V q = Encode(hn::LoadU(d, values + r), s, z, lo, hi);
    hn::StoreU(hn::Mul(hn::Sub(q, z), s), d, decoded + r);
    hn::StoreU(hn::DemoteTo(d8, hn::DemoteTo(d32, q)), d8, codes + r);
  }
}

void SubtractProducts(const double* columns, int64_t count, const double* u, int64_t stride, double* values) {
  const D d;
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    V w = hn::LoadU(d, values + r);
    for (int64_t k = 0; k < count; ++k) {
      w = hn::NegMulAdd(hn::LoadU(d, columns + k * kPanelRows + r), hn::Set(d, u[k * stride]), w);
    }
    hn::StoreU(w, d, values + r);
  }
}

void ScaledError(const double* decoded, double divisor, double* values, double* row_loss) {
  const D d;
  const V u = hn::Set(d, divisor);
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V e = hn::Div(hn::Sub(hn::LoadU(d, values + r), hn::LoadU(d, decoded + r)), u);
    hn::StoreU(e, d, values + r);
    hn::StoreU(hn::MulAdd(e, e, hn::LoadU(d, row_loss + r)), d, row_loss + r);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::quant::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::quant::kernels {

HWY_EXPORT(RowRange);
HWY_EXPORT(RowError);
HWY_EXPORT(RowWeightedError);
HWY_EXPORT(EncodeColumn);
HWY_EXPORT(SubtractProducts);
HWY_EXPORT(ScaledError);

void row_range(const double* columns, int64_t count, double* lowest, double* highest) {
  HWY_DYNAMIC_DISPATCH(RowRange)(columns, count, lowest, highest);
}

void row_error(const double* columns, int64_t count, const double* scale, const double* zero,
               double lowest_code, double highest_code, double exponent, double* error) {
  HWY_DYNAMIC_DISPATCH(RowError)(columns, count, scale, zero, lowest_code, highest_code, exponent, error);
}

void row_weighted_error(const double* columns, const double* weight, int64_t count, const double* scale,
                        const double* zero, double lowest_code, double highest_code, double* error) {
  HWY_DYNAMIC_DISPATCH(RowWeightedError)
  (columns, weight, count, scale, zero, lowest_code, highest_code, error);
}

void encode_column(const double* values, const double* scale, const double* zero, double lowest_code,
                   double highest_code, int8_t* codes, double* decoded) {
  HWY_DYNAMIC_DISPATCH(EncodeColumn)(values, scale, zero, lowest_code, highest_code, codes, decoded);
}

void subtract_products(const double* columns, int64_t count, const double* u, int64_t stride,
                       double* values) {
  HWY_DYNAMIC_DISPATCH(SubtractProducts)(columns, count, u, stride, values);
}

void scaled_error(const double* decoded, double divisor, double* values, double* row_loss) {
  HWY_DYNAMIC_DISPATCH(ScaledError)(decoded, divisor, values, row_loss);
}

}  // namespace lcomp::quant::kernels
#endif
