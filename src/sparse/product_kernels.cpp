#include "sparse/product_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/product_kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, as Highway asks.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::sparse::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

float SparseDot(const float* a, const float* x, int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto s0 = hn::Zero(d), s1 = hn::Zero(d), s2 = hn::Zero(d), s3 = hn::Zero(d);
  int64_t j = 0;
  for (; j + 4 * lanes <= count; j += 4 * lanes) {
    s0 = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, x + j), s0);
    s1 = hn::MulAdd(hn::LoadU(d, a + j + lanes), hn::LoadU(d, x + j + lanes), s1);
    s2 = hn::MulAdd(hn::LoadU(d, a + j + 2 * lanes), hn::LoadU(d, x + j + 2 * lanes), s2);
    s3 = hn::MulAdd(hn::LoadU(d, a + j + 3 * lanes), hn::LoadU(d, x + j + 3 * lanes), s3);
  }
  for (; j + lanes <= count; j += lanes) s0 = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, x + j), s0);
  float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3))));
  for (; j < count; ++j) sum += a[j] * x[j];
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::sparse::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::sparse::kernels {

HWY_EXPORT(SparseDot);

float dot(const float* a, const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SparseDot)(a, x, count);
}

void expand_bits(const void* values, c10::ScalarType type, int64_t first, const uint8_t* mask, int64_t count,
                 float* row) {
  const auto spread = [&](auto value_at) {
    for (int64_t b = 0; 8 * b < count; ++b) {
      for (auto bits = static_cast<uint32_t>(mask[b]); bits != 0; bits &= bits - 1)
        row[8 * b + std::countr_zero(bits)] = value_at(first++);
    }
  };
  if (type == c10::ScalarType::Float) {
    spread([&](int64_t i) { return static_cast<const float*>(values)[i]; });
  } else {
    const bool bfloat16 = type == c10::ScalarType::BFloat16;
    spread([&](int64_t i) { return widen(static_cast<const uint16_t*>(values)[i], bfloat16); });
  }
}

}  // namespace lcomp::sparse::kernels
#endif
