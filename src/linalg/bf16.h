#pragma once

#include <cstdint>

namespace lcomp::linalg {

/// Rounds `count` floats to bfloat16, half to even; NaN stays NaN. Vectorised, instructions chosen at run
/// time.
void floats_to_bf16(const float* from, uint16_t* to, int64_t count);

}  // namespace lcomp::linalg
