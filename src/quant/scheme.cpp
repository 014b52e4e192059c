#include "lcomp/quant/scheme.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"

namespace lcomp::quant {

void QuantScheme::visit(FieldVisitor& v) {
  v.field("bits", bits, {2, 8}, "bits of a code");
  v.field("symmetric", symmetric, "zero point fixed at 0 (else one integer zero point per group)");
  v.field("granularity", granularity,
          "what shares one scale: the tensor, an output channel, a group of columns");
  v.field("group_size", group_size, {1},
          "consecutive input columns that share one scale (granularity group)");
  v.field("symmetric_convention", symmetric_convention,
          "how a symmetric scale follows from the largest value");
  v.field("asymmetric_convention", asymmetric_convention,
          "range of an asymmetric grid: extended to contain 0, or the raw minimum and maximum");
  v.field("range", range, "range of a group: exact (min_max), or shrunk to the least error (mse)");
  v.field("mse_steps", mse_steps, {1, 100}, "shrink factors tried by range mse: 1, 0.99, 0.98, ...");
  v.field("mse_exponent", mse_exponent, {0.1, 10}, "exponent of the error that range mse minimises");
  v.field("scale_dtype", scale_dtype, "stored type of the scales; codes are computed with the rounded scale");
}

void QuantScheme::validate(c10::IntArrayRef shape, std::string_view where, std::string_view name) const {
  QuantScheme copy = *this;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, where);
  const std::string of = name.empty() ? "" : fmt::format(" of '{}'", name);
  if (shape.size() != 2) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("the weight{} must be a matrix [out, in]; received {} dimensions", of, shape.size()));
  }
  if (shape[0] < 1 || shape[1] < 1) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("the weight{} must not be empty; received shape [{}, {}]", of, shape[0], shape[1]));
  }
  if (format != NumberFormat::kInt && !symmetric) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("symmetric must be true with format {}{}; received false", name_of(format), of));
  }
  if (granularity == Granularity::kGroup && shape[1] % group_size != 0) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("group_size must divide the {} input columns{}; received {}", shape[1], of, group_size));
  }
}

int64_t QuantScheme::code_bits() const {
  switch (format) {
    case NumberFormat::kNf4:
      return 4;
    case NumberFormat::kFp8E4m3:
      return 8;
    case NumberFormat::kInt:
      break;
  }
  return bits;
}

c10::ScalarType QuantScheme::scale_type(c10::ScalarType weight) const {
  switch (scale_dtype) {
    case ScaleDtype::kFloat32:
      return c10::kFloat;
    case ScaleDtype::kFloat16:
      return c10::kHalf;
    case ScaleDtype::kBFloat16:
      return c10::kBFloat16;
    case ScaleDtype::kModel:
      break;
  }
  return weight;
}

std::string QuantScheme::describe() const {
  const std::string grid = format == NumberFormat::kInt
                               ? fmt::format("int{} {}", bits, symmetric ? "symmetric" : "asymmetric")
                               : std::string(name_of(format));
  if (granularity == Granularity::kGroup) return fmt::format("{}, groups of {}", grid, group_size);
  return grid + (granularity == Granularity::kChannel ? ", per channel" : ", per tensor");
}

}  // namespace lcomp::quant
