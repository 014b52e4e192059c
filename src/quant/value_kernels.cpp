#include "quant/value_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/value_kernels.cpp"
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

/// The values of NF4: compared with all midpoints, which is as fast as a search and has no branches.
struct Nf4 {
  /// The value nearest to t; its code as a number.
  static HWY_INLINE V Round(D d, V t, V& code) {
    V value = hn::Set(d, kNf4Values[0]);
    code = hn::Zero(d);
    const V one = hn::Set(d, 1.0);
    for (size_t k = 0; k + 1 < kNf4Values.size(); ++k) {
      const auto above = hn::Gt(t, hn::Set(d, (kNf4Values[k] + kNf4Values[k + 1]) / 2));
      value = hn::IfThenElse(above, hn::Set(d, kNf4Values[k + 1]), value);
      code = hn::Add(code, hn::IfThenElseZero(above, one));
    }
    return value;
  }
};

/// E4M3 numbers: steps of an eighth of the power of two below, and of 2^-9 from 2^-6 down.
struct Fp8 {
  static HWY_INLINE V Round(D d, V t, V& code) {
    const hn::Rebind<int64_t, D> d64;
    const V magnitude = hn::Min(hn::Abs(t), hn::Set(d, kFp8Largest));
    // Without its mantissa a double is the power of two below.
    const auto exponent_bits = hn::Set(d64, int64_t{0x7FF} << 52);
    const V below = hn::BitCast(d, hn::And(hn::BitCast(d64, magnitude), exponent_bits));
    const V power = hn::Max(below, hn::Set(d, 0x1p-6));
    const V steps = hn::Round(hn::Div(magnitude, hn::Mul(power, hn::Set(d, 0.125))));
    const V value = hn::Mul(steps, hn::Mul(power, hn::Set(d, 0.125)));
    // The byte is (exponent + 6) 8 + steps: 16 steps are 8 of the next exponent.
    const V exponent = hn::ConvertTo(d, hn::ShiftRight<52>(hn::BitCast(d64, power)));
    const V byte = hn::MulAdd(hn::Sub(exponent, hn::Set(d, 1023.0 - 6.0)), hn::Set(d, 8.0), steps);
    code = hn::IfNegativeThenElse(t, hn::Sub(byte, hn::Set(d, 128.0)), byte);
    // The value is not negative. (CopySign does not compile without optimisation in Highway 1.0.)
    return hn::Or(value, hn::And(t, hn::SignBit(d)));
  }
};

template <class Format>
void EncodeAll(const double* values, const double* scale, int8_t* codes, double* decoded) {
  const D d;
  const hn::Rebind<int32_t, D> d32;
  const hn::Rebind<int8_t, D> d8;
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V s = hn::LoadU(d, scale + r);
    V code = hn::Zero(d);
    const V value = Format::Round(d, hn::Div(hn::LoadU(d, values + r), s), code);
    hn::StoreU(hn::Mul(value, s), d, decoded + r);
    hn::StoreU(hn::DemoteTo(d8, hn::DemoteTo(d32, code)), d8, codes + r);
  }
}

template <class Format>
void ErrorOfAll(const double* columns, const double* importance, int64_t count, const double* scale,
                double exponent, double* error) {
  const D d;
  const V p = hn::Set(d, exponent);
  for (int64_t r = 0; r < kPanelRows; r += static_cast<int64_t>(hn::Lanes(d))) {
    const V s = hn::LoadU(d, scale + r);
    V sum = hn::Zero(d);
    for (int64_t j = 0; j < count; ++j) {
      const V w = hn::LoadU(d, columns + j * kPanelRows + r);
      V code = hn::Zero(d);
      const V off = hn::Abs(hn::Sub(hn::Mul(Format::Round(d, hn::Div(w, s), code), s), w));
      if (importance != nullptr) {
        sum = hn::MulAdd(hn::Set(d, importance[j]), hn::Mul(off, off), sum);
      } else {
        // As in panel_kernels.cpp: |off|^p = exp(p log |off|), which is 0 at 0.
        sum = hn::Add(sum, exponent == 2 ? hn::Mul(off, off) : hn::Exp(d, hn::Mul(p, hn::Log(d, off))));
      }
    }
    hn::StoreU(sum, d, error + r);
  }
}

void EncodeValues(NumberFormat format, const double* values, const double* scale, int8_t* codes,
                  double* decoded) {
  if (format == NumberFormat::kNf4) return EncodeAll<Nf4>(values, scale, codes, decoded);
  EncodeAll<Fp8>(values, scale, codes, decoded);
}

void RowValueError(NumberFormat format, const double* columns, const double* importance, int64_t count,
                   const double* scale, double exponent, double* error) {
  if (format == NumberFormat::kNf4)
    return ErrorOfAll<Nf4>(columns, importance, count, scale, exponent, error);
  ErrorOfAll<Fp8>(columns, importance, count, scale, exponent, error);
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::quant::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::quant::kernels {

HWY_EXPORT(EncodeValues);
HWY_EXPORT(RowValueError);

void encode_values(NumberFormat format, const double* values, const double* scale, int8_t* codes,
                   double* decoded) {
  HWY_DYNAMIC_DISPATCH(EncodeValues)(format, values, scale, codes, decoded);
}

void row_value_error(NumberFormat format, const double* columns, const double* importance, int64_t count,
                     const double* scale, double exponent, double* error) {
  HWY_DYNAMIC_DISPATCH(RowValueError)(format, columns, importance, count, scale, exponent, error);
}

}  // namespace lcomp::quant::kernels
#endif
