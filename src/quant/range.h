#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// The range that a convention makes of the minimum and maximum of a group.
struct GroupRange {
  double low = 0;
  double high = 0;
  double levels = 1;       ///< steps between low and high
  double least_width = 0;  ///< floor of high - low
  bool empty = false;  ///< nothing but zeros, under a convention that then takes the smallest step there is
};

GroupRange convention_range(const QuantScheme& scheme, double lowest, double highest);

/// s and z of the range shrunk by `factor`; the scale is rounded to `scale_type` before z is computed.
void grid_point(const QuantScheme& scheme, c10::ScalarType scale_type, const GroupRange& range, double factor,
                double& scale, double& zero);

/// `value` as it is after a round trip through `type`; infinite when it overflows.
double rounded_scale(c10::ScalarType type, double value);

/// 1, 0.99, 0.98, ...
inline double shrink_factor(int64_t step) {
  return 1.0 - static_cast<double>(step) / 100.0;
}

}  // namespace lcomp::quant
