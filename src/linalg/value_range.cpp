#include "linalg/value_range.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "linalg/value_range.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h must come before highway.h.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::linalg::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

bool ValueRange(const float* x, int64_t count, float* lowest, float* highest) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  float lo = x[0], hi = x[0], check = 0;
  int64_t i = 0;
  if (count >= lanes) {
    V low = hn::LoadU(d, x), high = low, zero = hn::Zero(d);
    for (; i + lanes <= count; i += lanes) {
      const V v = hn::LoadU(d, x + i);
      low = hn::Min(low, v);
      high = hn::Max(high, v);
      // 0 unless a value is NaN or infinite; then NaN.
      zero = hn::Add(zero, hn::Mul(v, hn::Zero(d)));
    }
    lo = hn::GetLane(hn::MinOfLanes(d, low));
    hi = hn::GetLane(hn::MaxOfLanes(d, high));
    check = hn::GetLane(hn::SumOfLanes(d, zero));
  }
  for (; i < count; ++i) {
    lo = lo < x[i] ? lo : x[i];
    hi = hi > x[i] ? hi : x[i];
    check += x[i] * 0.0F;
  }
  *lowest = lo;
  *highest = hi;
  return check == 0;
}

}  // namespace lcomp::linalg::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::linalg {

HWY_EXPORT(ValueRange);

bool value_range(const float* x, int64_t count, float* lowest, float* highest) {
  return HWY_DYNAMIC_DISPATCH(ValueRange)(x, count, lowest, highest);
}

}  // namespace lcomp::linalg
#endif
