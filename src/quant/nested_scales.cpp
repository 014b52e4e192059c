#include "lcomp/quant/nested_scales.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace lcomp::quant {
namespace {

/// Position of the entry of the ascending map that is nearest to `value`; of two as near the lower one.
uint8_t nearest_entry(const float* map, double value) {
  const float* above = std::lower_bound(map, map + 256, value);
  if (above == map) return 0;
  if (above == map + 256) return 255;
  const bool lower = value - above[-1] <= *above - value;
  return static_cast<uint8_t>(above - map - (lower ? 1 : 0));
}

}  // namespace

at::Tensor dynamic_map() {
  std::vector<at::Tensor> parts = {at::tensor({0.0F, 1.0F}, at::kFloat)};
  for (int i = 0; i < 7; ++i) {
    const at::Tensor points = at::linspace(0.1, 1.0, (int64_t{1} << i) + 1, at::kFloat);
    const at::Tensor middles = (points.slice(0, 0, -1) + points.slice(0, 1)) / 2.0;
    const at::Tensor values = middles * std::pow(10.0, i - 6);
    parts.push_back(values);
    parts.push_back(-values);
  }
  return std::get<0>(at::cat(parts).sort());
}

NestedScales nest_scales(const at::Tensor& scales) {
  const at::Tensor flat = scales.to(at::kFloat).contiguous().flatten();
  const int64_t count = flat.numel(), blocks = (count + NestedScales::kBlock - 1) / NestedScales::kBlock;
  NestedScales nested;
  nested.map = dynamic_map();
  nested.offset = flat.mean(at::kDouble).to(at::kFloat).item<float>();
  nested.codes = at::empty(scales.sizes(), at::kByte);
  nested.absmax = at::zeros({blocks}, at::kFloat);
  const float* from = flat.data_ptr<float>();
  float* absmax = nested.absmax.data_ptr<float>();
  for (int64_t i = 0; i < count; ++i) {
    float& largest = absmax[i / NestedScales::kBlock];
    largest = std::max(largest, std::abs(from[i] - nested.offset));
  }
  for (int64_t i = 0; i < count; ++i) {
    const float largest = absmax[i / NestedScales::kBlock];
    const double relative = largest > 0 ? static_cast<double>(from[i] - nested.offset) / largest : 0;
    nested.codes.data_ptr<uint8_t>()[i] = nearest_entry(nested.map.data_ptr<float>(), relative);
  }
  return nested;
}

at::Tensor unnest_scales(const NestedScales& nested) {
  at::Tensor scales = at::empty(nested.codes.sizes(), at::kFloat);
  const at::Tensor codes = nested.codes.contiguous();
  const float* map = nested.map.data_ptr<float>();
  const float* absmax = nested.absmax.data_ptr<float>();
  for (int64_t i = 0; i < codes.numel(); ++i) {
    const float product = map[codes.data_ptr<uint8_t>()[i]] * absmax[i / NestedScales::kBlock];
    scales.data_ptr<float>()[i] = product + nested.offset;
  }
  return scales;
}

}  // namespace lcomp::quant
