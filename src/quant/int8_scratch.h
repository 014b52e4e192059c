// How products of int8 inputs use the scratch memory of a thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lcomp/linalg/int8_product.h"

namespace lcomp::quant {

/// Tokens that are rounded and multiplied together.
inline constexpr int64_t kTokenChunk = linalg::PackedMatrix::kRowChunk;

/// Slots of the scratch memory: codes of the input, sums of products, and the input without its outliers.
enum Int8Slot : size_t { kCodes = linalg::kFirstFreeSlot, kSums, kInliers };

}  // namespace lcomp::quant
