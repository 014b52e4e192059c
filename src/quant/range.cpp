#include "quant/range.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp::quant {
namespace {

/// Floor that SmoothQuant, AWQ and QuaRot put under a range.
constexpr double kLeastRange = 1e-5;

/// Values of a storage type for scales.
struct ScaleTypeFacts {
  double epsilon;
  double smallest;  ///< smallest positive value
};

ScaleTypeFacts facts(c10::ScalarType type) {
  switch (type) {
    case c10::kHalf:
      return {0x1p-10, 0x1p-24};
    case c10::kBFloat16:
      return {0x1p-7, std::numeric_limits<float>::min()};
    case c10::kFloat:
      return {0x1p-23, std::numeric_limits<float>::min()};
    default:
      return {0x1p-52, std::numeric_limits<double>::min()};
  }
}

}  // namespace

double rounded_scale(c10::ScalarType type, double value) {
  switch (type) {
    case c10::kHalf:
      return static_cast<float>(c10::Half(static_cast<float>(value)));
    case c10::kBFloat16:
      return static_cast<float>(c10::BFloat16(static_cast<float>(value)));
    case c10::kFloat:
      return static_cast<float>(value);
    default:
      return value;
  }
}

namespace {

/// The scale as it will be stored: never zero, so that codes can be computed, and never infinite. Its sign
/// stays.
double stored_scale(c10::ScalarType type, double scale) {
  const double rounded = rounded_scale(type, scale);
  if (!std::isfinite(rounded)) {
    throw NumericalError(
        "fit_grid", fmt::format("scales must be finite in {}; a range asks for {}", dtype_name(type), scale));
  }
  return std::copysign(std::max(std::abs(rounded), facts(type).smallest), scale);
}

/// The largest weight becomes the largest value of the format.
GroupRange value_range(NumberFormat format, double largest) {
  const double top = format == NumberFormat::kFp8E4m3 ? kFp8Largest : 1.0;
  return {-largest, largest, 2 * top, 0, largest == 0};
}

GroupRange symmetric_range(const QuantScheme& scheme, double lowest, double highest) {
  const double largest = std::max(std::max(-lowest, highest), 0.0);
  if (scheme.format != NumberFormat::kInt) return value_range(scheme.format, largest);
  const double all_levels = std::ldexp(1.0, static_cast<int>(scheme.bits)) - 1;
  switch (scheme.symmetric_convention) {
    case SymmetricConvention::kSigned: {
      const double low = -lowest >= highest ? -largest : largest;
      return {low, -low, all_levels + 1, 0, largest == 0};
    }
    case SymmetricConvention::kMidRange:
      return {-largest, largest, all_levels, 0, largest == 0};
    case SymmetricConvention::kFullRange: {
      const double m = largest == 0 ? 1 : largest;
      return {-m, m, all_levels};
    }
    case SymmetricConvention::kFullRangeGptq:
      if (largest == 0) return {-1, 1, all_levels};
      return {lowest < 0 ? -largest : 0, largest, all_levels};
    case SymmetricConvention::kRestricted:
      break;
  }
  const double m = std::max(largest, kLeastRange);
  return {-m, m, all_levels - 1};
}

GroupRange asymmetric_range(const QuantScheme& scheme, double lowest, double highest) {
  const double levels = std::ldexp(1.0, static_cast<int>(scheme.bits)) - 1;
  if (scheme.asymmetric_convention == AsymmetricConvention::kRaw)
    return {lowest, highest, levels, kLeastRange};
  const double low = std::min(lowest, 0.0), high = std::max(highest, 0.0);
  if (low == 0 && high == 0) return {-1, 1, levels};
  return {low, high, levels};
}

}  // namespace

GroupRange convention_range(const QuantScheme& scheme, double lowest, double highest) {
  return scheme.symmetric ? symmetric_range(scheme, lowest, highest)
                          : asymmetric_range(scheme, lowest, highest);
}

void grid_point(const QuantScheme& scheme, c10::ScalarType scale_type, const GroupRange& range, double factor,
                double& scale, double& zero) {
  const double low = factor * range.low, high = factor * range.high;
  const double width = range.least_width > 0 ? std::max(high - low, range.least_width) : high - low;
  const double exact = width / range.levels;
  scale = range.empty ? facts(scale_type).epsilon : stored_scale(scale_type, exact);
  zero = 0;
  if (scheme.symmetric) return;
  // The unsigned zero point must be a code; then one bit less for signed codes.
  const double half = std::ldexp(1.0, static_cast<int>(scheme.bits) - 1);
  zero = std::clamp(std::nearbyint(-low / scale), 0.0, 2 * half - 1) - half;
}

}  // namespace lcomp::quant
