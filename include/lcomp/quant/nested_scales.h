#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lcomp::quant {

/// Scales that are quantized themselves ("double quantization", Dettmers et al., QLoRA, 2023, section 3):
///     scale_i = map[codes_i] absmax_b + offset,       b = i / 256, i in row-major order.
struct NestedScales {
  static constexpr int64_t kBlock = 256;

  at::Tensor codes;   ///< uint8, the shape of the scales
  at::Tensor absmax;  ///< float32 [ceil(scales / 256)]
  at::Tensor map;     ///< float32 [256], ascending
  float offset = 0;   ///< the mean of all scales

  bool defined() const { return codes.defined(); }
};

/// bitsandbytes' signed 8-bit "dynamic" map, float32 [256], ascending in [-1, 1]: for i = 0 ... 6 the 2^i
/// midpoints between 2^i + 1 equidistant points of [0.1, 1], times 10^(i - 6), with both signs; 0 and 1.
at::Tensor dynamic_map();

/// Quantizes scales, float32 of any shape. Every scale goes to the nearest of the 256 values of its block.
/// Costs 8 + 32 / 256 bits per scale, the map and the offset.
NestedScales nest_scales(const at::Tensor& scales);

/// The scales, float32 of the shape of the codes, by float32 arithmetic as bitsandbytes does it.
at::Tensor unnest_scales(const NestedScales& nested);

}  // namespace lcomp::quant
