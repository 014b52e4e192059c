#include "lcomp/quant/activation_scheme.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"

namespace lcomp::quant {

void ActivationScheme::visit(FieldVisitor& v) {
  v.field("activation_format", format, "what an activation's code stands for: int or fp8_e4m3");
  v.field("activation_bits", bits, {2, 8}, "bits of an activation's code");
  v.field("activation_symmetric", symmetric, "zero point of activations fixed at 0 (else one per scale)");
  v.field("activation_granularity", granularity, "what shares one scale: a token, or all tokens (tensor)");
  v.field("activation_dynamic", dynamic,
          "take the range of the activations at hand (else that of the calibration, stored with the weight)");
  v.field("activation_percentile", percentile, {0.5, 1},
          "share that a static range covers; 1: the least and the largest value seen");
  v.field("activation_percentile_of", percentile_of,
          "of what activation_percentile is a share: tokens that are covered whole, or values at each end");
  v.field("activation_convention", symmetric_convention,
          "how a symmetric scale follows from the largest activation: mid_range or restricted");
}

void ActivationScheme::validate(std::string_view where) const {
  ActivationScheme copy = *this;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, where);
  if (format == NumberFormat::kNf4 || (format == NumberFormat::kFp8E4m3 && (!symmetric || bits != 8))) {
    throw InvalidArgument(std::string(where),
                          fmt::format("activation_format must be int, or fp8_e4m3 with 8 bits and symmetric; "
                                      "received {} with {} bits, {}",
                                      name_of(format), bits, symmetric ? "symmetric" : "asymmetric"));
  }
  if (granularity == ActivationGranularity::kToken && !dynamic) {
    throw InvalidArgument(std::string(where),
                          "activations per token must be dynamic: a token has no range before it comes; "
                          "received activation_dynamic false");
  }
  if (dynamic && percentile != 1) {
    throw InvalidArgument(std::string(where),
                          fmt::format("activation_percentile must be 1 for dynamic activations, whose range "
                                      "is exact; received {}",
                                      percentile));
  }
  if (symmetric_convention != SymmetricConvention::kMidRange &&
      symmetric_convention != SymmetricConvention::kRestricted) {
    throw InvalidArgument(std::string(where),
                          fmt::format("activation_convention must be mid_range or restricted; received {}",
                                      name_of(symmetric_convention)));
  }
}

std::string ActivationScheme::describe() const {
  const std::string numbers = format == NumberFormat::kInt
                                  ? fmt::format("int{} {}", bits, symmetric ? "symmetric" : "asymmetric")
                                  : std::string(name_of(format));
  return fmt::format("{} activations, per {}{}", numbers, name_of(granularity), dynamic ? "" : ", static");
}

}  // namespace lcomp::quant
