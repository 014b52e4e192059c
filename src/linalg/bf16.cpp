#include "linalg/bf16.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/bf16.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h must come before highway.h.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::linalg::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

uint16_t round_one(uint32_t bits) {
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

void floats_to_bf16(const float* from, uint16_t* to, int64_t count) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Rebind<uint16_t, decltype(d32)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  const auto* bits = reinterpret_cast<const uint32_t*>(from);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto v = hn::LoadU(d32, bits + i);
    const auto odd = hn::And(hn::ShiftRight<16>(v), hn::Set(d32, 1));
    const auto rounded = hn::ShiftRight<16>(hn::Add(v, hn::Add(odd, hn::Set(d32, 0x7fff))));
    const auto quiet = hn::Or(hn::ShiftRight<16>(v), hn::Set(d32, 0x40));
    const auto is_nan = hn::Gt(hn::And(v, hn::Set(d32, 0x7fffffff)), hn::Set(d32, 0x7f800000));
    hn::StoreU(hn::TruncateTo(d16, hn::IfThenElse(is_nan, quiet, rounded)), d16, to + i);
  }
  for (; i < count; ++i) to[i] = round_one(bits[i]);
}

}  // namespace lcomp::linalg::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::linalg {

HWY_EXPORT(floats_to_bf16);

void floats_to_bf16(const float* from, uint16_t* to, int64_t count) {
  HWY_DYNAMIC_DISPATCH(floats_to_bf16)(from, to, count);
}

}  // namespace lcomp::linalg
#endif
