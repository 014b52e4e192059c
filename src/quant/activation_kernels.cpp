#include "quant/activation_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/activation_kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, as Highway asks.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::quant::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<D>;
using V = hn::Vec<D>;

/// Codes are small, so adding 1.5 x 2^23 rounds them to whole numbers, halves to even, and leaves those in
/// the lowest bits. (NearestInt does the same, but in Highway 1.0 it does not compile without optimisation.)
HWY_INLINE hn::Vec<DI> Encode(V x, V scale, V zero, V lowest, V highest) {
  const V q = hn::Add(hn::Div(x, scale), zero);
  const V magic = hn::Set(D(), 0x1.8p23F);
  const V rounded = hn::Add(hn::Min(hn::Max(q, lowest), highest), magic);
  return hn::Sub(hn::BitCast(DI(), rounded), hn::BitCast(DI(), magic));
}

void EncodeValues(const float* x, int64_t count, float scale, float zero, float lowest_code,
                  float highest_code, int8_t* codes) {
  const D d;
  const hn::Rebind<int8_t, D> d8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const V s = hn::Set(d, scale), z = hn::Set(d, zero);
  const V lo = hn::Set(d, lowest_code), hi = hn::Set(d, highest_code);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    hn::StoreU(hn::DemoteTo(d8, Encode(hn::LoadU(d, x + i), s, z, lo, hi)), d8, codes + i);
  }
  for (; i < count; ++i) {
    codes[i] = static_cast<int8_t>(hn::GetLane(Encode(hn::Set(d, x[i]), s, z, lo, hi)));
  }
}

void DecodeValues(const int8_t* codes, int64_t count, float scale, int32_t zero, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<float>(codes[i] - zero) * scale;
}

void ScaleSums(const int32_t* sums, int64_t out, const TokenScale& token, const int32_t* row_sums,
               const float* weight_scales, const int32_t* weight_zeros, float* y) {
  const D d;
  const DI di;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t o = 0;
  for (; o + lanes <= out; o += lanes) {
    auto acc = hn::LoadU(di, sums + o);
    if (token.zero != 0) {
      acc = hn::Sub(acc, hn::Mul(hn::Set(di, token.zero), hn::LoadU(di, row_sums + o)));
    }
    if (weight_zeros != nullptr) {
      acc = hn::Sub(acc, hn::Mul(hn::Set(di, token.sum), hn::LoadU(di, weight_zeros + o)));
    }
    const V scale = hn::Mul(hn::Set(d, token.scale), hn::LoadU(d, weight_scales + o));
    hn::StoreU(hn::Mul(hn::ConvertTo(d, acc), scale), d, y + o);
  }
  for (; o < out; ++o) {
    int32_t acc = sums[o] - token.zero * row_sums[o];
    if (weight_zeros != nullptr) acc -= token.sum * weight_zeros[o];
    y[o] = static_cast<float>(acc) * (token.scale * weight_scales[o]);
  }
}

int32_t SumCodes(const int8_t* codes, int64_t count) {
  int32_t sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += codes[i];
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::quant::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::quant::kernels {

HWY_EXPORT(EncodeValues);
HWY_EXPORT(DecodeValues);
HWY_EXPORT(ScaleSums);
HWY_EXPORT(SumCodes);

void encode_values(const float* x, int64_t count, float scale, float zero, float lowest_code,
                   float highest_code, int8_t* codes) {
  HWY_DYNAMIC_DISPATCH(EncodeValues)(x, count, scale, zero, lowest_code, highest_code, codes);
}

void decode_values(const int8_t* codes, int64_t count, float scale, int32_t zero, float* x) {
  HWY_DYNAMIC_DISPATCH(DecodeValues)(codes, count, scale, zero, x);
}

void scale_sums(const int32_t* sums, int64_t out, const TokenScale& token, const int32_t* row_sums,
                const float* weight_scales, const int32_t* weight_zeros, float* y) {
  HWY_DYNAMIC_DISPATCH(ScaleSums)(sums, out, token, row_sums, weight_scales, weight_zeros, y);
}

int32_t sum_codes(const int8_t* codes, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SumCodes)(codes, count);
}

}  // namespace lcomp::quant::kernels
#endif
