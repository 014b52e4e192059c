#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/Half.h>

#include <bit>
#include <cstdint>

/// Inner loops of sparse products, vectorised with instructions chosen at run time.
namespace lcomp::sparse::kernels {

/// 16 bits of bfloat16 or float16 as float32.
inline float widen(uint16_t bits, bool bfloat16) {
  if (bfloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

/// sum_j a[j] x[j].
float dot(const float* a, const float* x, int64_t count);

/// row[j] = the next of `values` (of `type`, from element `first` on) where bit j of `mask` is set; other
/// elements of `row` stay.
void expand_bits(const void* values, c10::ScalarType type, int64_t first, const uint8_t* mask, int64_t count,
                 float* row);

}  // namespace lcomp::sparse::kernels
