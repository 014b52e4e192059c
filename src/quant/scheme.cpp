#include "lcomp/quant/scheme.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"

namespace lcomp::quant {

namespace {

/// The largest power of two that divides `number` and is at most `limit`.
int64_t power_of_two_divisor(int64_t number, int64_t limit) {
  int64_t divisor = 1;
  while (2 * divisor <= limit && number % (2 * divisor) == 0) divisor *= 2;
  return divisor;
}

}  // namespace

void QuantScheme::visit(FieldVisitor& v) {
  v.field("format", format,
          "what codes stand for: integers, the 16 values of NF4, or 8-bit floating-point numbers (E4M3)");
  v.field("bits", bits, {2, 8}, "bits of a code (format int; nf4 has 4, fp8_e4m3 has 8)");
  v.field("symmetric", symmetric, "zero point fixed at 0 (else one integer zero point per group)");
  v.field("granularity", granularity,
          "what shares one scale: the tensor, an output channel, a group of columns");
  v.field("group_size", group_size, {1},
          "consecutive input columns that share one scale (granularity group)");
  v.field("symmetric_convention", symmetric_convention,
          "how a symmetric scale follows from the largest value");
  v.field("asymmetric_convention", asymmetric_convention,
          "range of an asymmetric grid: extended to contain 0, or the raw minimum and maximum");
  v.field("range", range,
          "range of a group: exact (min_max), or shrunk to the least error of the weights (mse) or of the "
          "outputs (hessian)");
  v.field("mse_steps", mse_steps, {1, 100}, "shrink factors tried by mse and hessian: 1, 0.99, 0.98, ...");
  v.field("mse_exponent", mse_exponent, {0.1, 10}, "exponent of the error that range mse minimises");
  v.field("scale_dtype", scale_dtype, "stored type of the scales; codes are computed with the rounded scale");
  v.field("double_quant", double_quant, "quantize the scales of format nf4 to 8 bits in blocks of 256");
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
  if (double_quant && format != NumberFormat::kNf4) {
    throw InvalidArgument(std::string(where),
                          fmt::format("double_quant must be false but for format nf4{}; the format is {}", of,
                                      name_of(format)));
  }
  if (format == NumberFormat::kNf4 && scale_type(c10::kFloat) != c10::kFloat) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("scale_dtype must be float32 with format nf4{}; received {}", of, name_of(scale_dtype)));
  }
  if (granularity == Granularity::kGroup && shape[1] % group_size != 0) {
    throw InvalidArgument(
        std::string(where),
        fmt::format("group_size must divide the {} input columns{}, as {} does; received {}", shape[1], of,
                    power_of_two_divisor(shape[1], group_size), group_size));
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
  return format == NumberFormat::kNf4 ? c10::kFloat : weight;
}

std::string QuantScheme::describe() const {
  const std::string grid = format == NumberFormat::kInt
                               ? fmt::format("int{} {}", bits, symmetric ? "symmetric" : "asymmetric")
                               : std::string(name_of(format));
  const std::string sharing = granularity == Granularity::kGroup     ? fmt::format("groups of {}", group_size)
                              : granularity == Granularity::kChannel ? "per channel"
                                                                     : "per tensor";
  return fmt::format("{}, {}{}", grid, sharing, double_quant ? ", scales of 8 bits" : "");
}

}  // namespace lcomp::quant
