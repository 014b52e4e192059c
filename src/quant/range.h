#pragma once

#include <c10/core/ScalarType.h>

#include <cstdint>

#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// The range that a convention makes of the minimum and maximum of a group.
struct GroupRange {
  double low = 0;          ///< of the lowest code: above `high` where the scale is negative
  double high = 0;         ///< of the highest, or where it would be with one code more
  double levels = 1;       ///< steps between low and high
  double least_width = 0;  ///< floor of high - low
  bool empty = false;  ///< nothing but zeros, under a convention that then takes the smallest step there is
};

GroupRange convention_range(const QuantScheme& scheme, double lowest, double highest);

/// s and z of the range shrunk by `factor`, mirrored by a negative one; the scale is rounded to `scale_type`
/// before z is computed.
void grid_point(const QuantScheme& scheme, c10::ScalarType scale_type, const GroupRange& range, double factor,
                double& scale, double& zero);

/// `value` as it is after a round trip through `type`; infinite when it overflows.
double rounded_scale(c10::ScalarType type, double value);

/// Calls visit(factor) for all that the search of a range tries, in order: 1, 0.99, 0.98, ..., and with
/// signed scales each of them with either sign.
template <class Visit>
void for_each_tried_range(const QuantScheme& scheme, Visit visit) {
  for (int64_t step = 0; step < scheme.mse_steps; ++step) {
    const double factor = 1.0 - static_cast<double>(step) / 100.0;
    visit(factor);
    if (scheme.has_signed_scales()) visit(-factor);
  }
}

}  // namespace lcomp::quant
