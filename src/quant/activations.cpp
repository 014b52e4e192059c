#include "lcomp/quant/activations.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "linalg/value_range.h"
#include "quant/activation_kernels.h"

namespace lcomp::quant {
namespace {

constexpr const char* kQuantizeActivations = "quantize_activations";

float symmetric_scale(float largest, const ActivationScheme& scheme) {
  if (scheme.format == NumberFormat::kFp8E4m3)
    return largest == 0 ? std::numeric_limits<float>::epsilon() : largest / static_cast<float>(kFp8Largest);
  if (scheme.symmetric_convention == SymmetricConvention::kRestricted)
    return std::max(largest, 1e-5F) / static_cast<float>(scheme.highest_code());
  if (largest == 0) return std::numeric_limits<float>::epsilon();
  return largest / (static_cast<float>(scheme.highest_code() - scheme.lowest_code()) / 2);
}

float rounded_to(float scale, at::ScalarType type) {
  if (type == at::kFloat) return scale;
  const float rounded = at::tensor(scale).to(type).to(at::kFloat).item<float>();
  if (!std::isfinite(rounded)) {
    throw NumericalError("activation_grid",
                         fmt::format("the scale must be finite in {}; it is {}", dtype_name(type), scale));
  }
  // Below the type's range: its smallest step, as nothing may be divided by 0.
  return rounded > 0 ? rounded : type == at::kHalf ? 0x1p-24F : std::numeric_limits<float>::min();
}

/// Element ceil(share n), counted from 1, of ascending values.
float share_of(std::vector<float> values, double share) {
  const auto n = static_cast<double>(values.size());
  const auto rank = static_cast<std::ptrdiff_t>(std::clamp(std::ceil(share * n), 1.0, n)) - 1;
  std::nth_element(values.begin(), values.begin() + rank, values.end());
  return values[static_cast<size_t>(rank)];
}

std::vector<float> to_vector(const at::Tensor& tensor, float sign) {
  const at::Tensor plain = tensor.to(at::kFloat).contiguous();
  std::vector<float> out(plain.data_ptr<float>(), plain.data_ptr<float>() + plain.numel());
  for (float& value : out) value *= sign;
  return out;
}

/// The largest magnitude whose upper 16 bits are `bucket`.
float outer_end(uint32_t bucket) {
  const uint32_t bits = (bucket << 16U) | 0xffffU;
  float value = 0;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// Buckets of finite floats from the most negative to the largest.
std::vector<uint32_t> ascending_buckets() {
  constexpr uint32_t kFirstInfinite = 0x7f80;
  std::vector<uint32_t> order;
  for (uint32_t b = kFirstInfinite; b-- > 0;) order.push_back(b | 0x8000U);
  for (uint32_t b = 0; b < kFirstInfinite; ++b) order.push_back(b);
  return order;
}

float share_of_values(const int64_t* counts, int64_t total, double share, bool from_top) {
  std::vector<uint32_t> order = ascending_buckets();
  if (from_top) std::reverse(order.begin(), order.end());
  const auto wanted = static_cast<int64_t>(std::ceil(share * static_cast<double>(total)));
  int64_t seen = 0;
  for (const uint32_t bucket : order) {
    seen += counts[bucket];
    if (seen >= std::max<int64_t>(wanted, 1)) return outer_end(bucket);
  }
  return 0;
}

void require_seen(const at::Tensor& tensor, const char* what) {
  if (tensor.defined() && tensor.numel() > 0) return;
  throw InvalidArgument(
      "covered_range", fmt::format("static activations need {} of calibration tokens; there are none", what));
}

void check_input(const at::Tensor& x) {
  if (x.dim() == 2 && x.scalar_type() == at::kFloat && x.size(0) > 0 && x.size(1) > 0) return;
  throw InvalidArgument(kQuantizeActivations,
                        fmt::format("x must be a float32 matrix [tokens, in]; received {} dimensions "
                                    "of {}, {} elements",
                                    x.dim(), dtype_name(x.scalar_type()), x.numel()));
}

void encode(const float* x, int64_t count, const ActivationScheme& scheme, const ActivationGrid& grid,
            int8_t* codes) {
  if (scheme.format == NumberFormat::kFp8E4m3) {
    for (int64_t i = 0; i < count; ++i)
      codes[i] = static_cast<int8_t>(fp8_e4m3_code(static_cast<double>(x[i] / grid.scale)));
    return;
  }
  kernels::encode_values(x, count, grid.scale, static_cast<float>(grid.zero),
                         static_cast<float>(scheme.lowest_code()), static_cast<float>(scheme.highest_code()),
                         codes);
}

}  // namespace

ActivationGrid activation_grid(float lowest, float highest, const ActivationScheme& scheme,
                               at::ScalarType type) {
  const float lo = std::min(lowest, 0.0F), hi = std::max(highest, 0.0F);
  if (scheme.symmetric) return {rounded_to(symmetric_scale(std::max(-lo, hi), scheme), type), 0};
  const auto least = static_cast<float>(scheme.lowest_code()),
             most = static_cast<float>(scheme.highest_code());
  // Divided before subtracted: hi - lo may overflow.
  float scale = hi / (most - least) - lo / (most - least);
  if (scale == 0) scale = std::numeric_limits<float>::epsilon();
  scale = rounded_to(scale, type);
  const float zero = std::clamp(std::nearbyint(least - lo / scale), least, most);
  return {scale, static_cast<int32_t>(zero)};
}

QuantizedActivations quantize_activations(const at::Tensor& x, const ActivationScheme& scheme,
                                          const std::optional<ActivationGrid>& calibrated) {
  scheme.validate(kQuantizeActivations);
  check_input(x);
  if (!scheme.dynamic && !calibrated) {
    throw InvalidArgument(kQuantizeActivations, "static activations need a calibrated grid; received none");
  }
  const at::Tensor plain = x.contiguous();
  const int64_t tokens = plain.size(0), in = plain.size(1);
  const float* values = plain.data_ptr<float>();
  std::vector<float> lowest(static_cast<size_t>(tokens)), highest(static_cast<size_t>(tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    const auto i = static_cast<size_t>(t);
    if (linalg::value_range(values + t * in, in, &lowest[i], &highest[i])) continue;
    throw NumericalError(kQuantizeActivations,
                         fmt::format("activations must be finite; those of token {} are not", t));
  }
  const bool per_token = scheme.granularity == ActivationGranularity::kToken;
  if (!per_token) {
    lowest = {*std::min_element(lowest.begin(), lowest.end())};
    highest = {*std::max_element(highest.begin(), highest.end())};
  }
  const auto grids = static_cast<int64_t>(lowest.size());
  QuantizedActivations out;
  out.format = scheme.format;
  out.codes = at::empty({tokens, in}, at::kChar);
  out.scale = at::empty({grids, 1}, at::kFloat);
  if (!scheme.symmetric) out.zero = at::empty({grids, 1}, at::kInt);
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t g = per_token ? t : 0;
    const auto i = static_cast<size_t>(g);
    const ActivationGrid grid = scheme.dynamic ? activation_grid(lowest[i], highest[i], scheme) : *calibrated;
    encode(values + t * in, in, scheme, grid, out.codes.data_ptr<int8_t>() + t * in);
    out.scale.data_ptr<float>()[g] = grid.scale;
    if (out.zero.defined()) out.zero.data_ptr<int32_t>()[g] = grid.zero;
  }
  return out;
}

at::Tensor dequantize_activations(const QuantizedActivations& activations) {
  at::Tensor q = code_values(activations.codes, activations.format, at::kFloat);
  if (activations.zero.defined()) q.sub_(activations.zero.to(at::kFloat));
  return q.mul_(activations.scale);
}

std::pair<float, float> covered_range(const SeenRange& seen, const ActivationScheme& scheme) {
  require_seen(seen.token_lowest, "the range");
  const bool of_values = scheme.percentile_of == PercentileOf::kValues && scheme.percentile < 1;
  const double of_tokens = of_values ? 1.0 : scheme.percentile;
  const float highest = share_of(to_vector(seen.token_highest, 1), of_tokens);
  const float lowest = -share_of(to_vector(seen.token_lowest, -1), of_tokens);
  if (!of_values) return {lowest, highest};
  require_seen(seen.value_counts, "the distribution");
  const auto* counts = seen.value_counts.data_ptr<int64_t>();
  const int64_t total = seen.value_counts.sum().item<int64_t>();
  // A bucket reaches beyond the values in it: never wider than all that was seen.
  return {std::max(lowest, share_of_values(counts, total, scheme.percentile, true)),
          std::min(highest, share_of_values(counts, total, scheme.percentile, false))};
}

}  // namespace lcomp::quant
