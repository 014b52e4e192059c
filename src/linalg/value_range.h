#pragma once

#include <cstdint>

namespace lcomp::linalg {

/// Smallest and largest of `count` >= 1 values. Returns false when one of them is NaN or infinite.
/// Vectorised, instructions chosen at run time.
bool value_range(const float* x, int64_t count, float* lowest, float* highest);

}  // namespace lcomp::linalg
