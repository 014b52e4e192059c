#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "lcomp/core/options.h"
#include "lcomp/quant/number_format.h"

namespace lcomp::quant {

/// How a symmetric scale follows from m = max |w| of a group. All store signed codes with zero point 0, in
/// [-2^(b-1), 2^(b-1) - 1].
enum class SymmetricConvention {
  kSigned,     ///< s = -w_m / 2^(b-1), w_m the weight of magnitude m: the lowest code, which has no positive
               ///< counterpart, goes to whichever side needs it, and s has a sign (llama.cpp's Q4_0). Ranges
               ///< kMse and kHessian try both signs
  kMidRange,   ///< compressed-tensors: s = m / ((2^b - 1) / 2); an all-zero group gets the type's epsilon
  kFullRange,  ///< GPTQ's formula, (m - -m) / (2^b - 1), for every group; an all-zero group gets m = 1
  kFullRangeGptq,  ///< as the GPTQ authors' code: a group without negatives gets s = m / (2^b - 1), which
                   ///< clips everything above about m / 2. For parity with that code only
  kRestricted,  ///< SmoothQuant, AWQ, QuaRot: s = max(m, 1e-5) / (2^(b-1) - 1); the lowest code is not needed
};

/// Which range an asymmetric grid covers.
enum class AsymmetricConvention {
  kExtended,  ///< [min(min w, 0), max(max w, 0)]: zero is exact (GPTQ, QuaRot, compressed-tensors)
  kRaw,       ///< [min w, max w] with a zero point clamped to the codes (AWQ)
};

/// What shares one scale.
enum class Granularity {
  kTensor,   ///< the whole matrix
  kChannel,  ///< a row (output channel)
  kGroup,    ///< `group_size` consecutive columns of a row
};

/// How the range of a group is chosen.
enum class RangeRule {
  kMinMax,   ///< the exact range
  kMse,      ///< the shrunk range with the least sum |w - w^|^mse_exponent over a grid of shrink factors
  kHessian,  ///< the same with the least error of the outputs: squares weighted by the inputs' importance
};

/// The floating-point type that scales are stored in. Codes are computed with the scale after this rounding.
enum class ScaleDtype {
  kModel,  ///< that of the weight
  kFloat32,
  kFloat16,
  kBFloat16,
};

/// A grid for a weight matrix `[out, in]`: w^ = (q - z) s with integer codes q of `bits` bits, or w^ = v(q) s
/// with the values v of another number format (which has neither zero points nor a choice of bits).
/// A value, shared by every method that rounds to such a grid.
struct QuantScheme {
  NumberFormat format = NumberFormat::kInt;
  int64_t bits = 4;
  bool symmetric = true;
  Granularity granularity = Granularity::kGroup;
  int64_t group_size = 128;
  SymmetricConvention symmetric_convention = SymmetricConvention::kSigned;
  AsymmetricConvention asymmetric_convention = AsymmetricConvention::kExtended;
  RangeRule range = RangeRule::kMinMax;
  int64_t mse_steps = 80;
  double mse_exponent = 2.4;
  ScaleDtype scale_dtype = ScaleDtype::kModel;
  bool double_quant = false;

  void visit(FieldVisitor& v);

  /// Throws InvalidArgument("[where] ...") unless every field lies in its range and the scheme fits a matrix
  /// of `shape` [out, in]. `where` is the calling method ("gptq"), `name` the operator ("" when it has none).
  void validate(c10::IntArrayRef shape, std::string_view where, std::string_view name = {}) const;

  /// Columns that share a scale: group_size, or all `in` of them.
  int64_t columns_per_group(int64_t in) const { return granularity == Granularity::kGroup ? group_size : in; }
  /// Columns of the matrix of scales: in / group_size, or 1.
  int64_t groups(int64_t in) const { return in / columns_per_group(in); }
  /// Rows of the matrix of scales: out, or 1 when one scale serves the whole matrix.
  int64_t scale_rows(int64_t out) const { return granularity == Granularity::kTensor ? 1 : out; }

  /// Bits of a code: `bits` for integers, 4 for NF4, 8 for E4M3.
  int64_t code_bits() const;
  /// Smallest and largest code: -2^(b-1) and 2^(b-1) - 1 for integers, 0 and 15 for NF4. E4M3 codes are all
  /// bytes but the two that are NaN.
  int lowest_code() const { return format == NumberFormat::kNf4 ? 0 : -(1 << (code_bits() - 1)); }
  int highest_code() const { return format == NumberFormat::kNf4 ? 15 : (1 << (code_bits() - 1)) - 1; }

  /// Whether 0 is a point of every grid of the scheme.
  bool has_zero() const { return symmetric || asymmetric_convention == AsymmetricConvention::kExtended; }

  /// Whether scales may be negative, and both signs are worth trying.
  bool has_signed_scales() const {
    return format == NumberFormat::kInt && symmetric && symmetric_convention == SymmetricConvention::kSigned;
  }

  /// The type of the scales of a weight of type `weight`; those of NF4 are float32.
  c10::ScalarType scale_type(c10::ScalarType weight) const;

  /// "int4 symmetric, groups of 64".
  std::string describe() const;
};

}  // namespace lcomp::quant

namespace lcomp {

template <>
struct EnumNames<quant::SymmetricConvention> {
  static constexpr std::array<std::string_view, 5> names = {"signed", "mid_range", "full_range",
                                                            "full_range_gptq", "restricted"};
};
template <>
struct EnumNames<quant::AsymmetricConvention> {
  static constexpr std::array<std::string_view, 2> names = {"extended", "raw"};
};
template <>
struct EnumNames<quant::Granularity> {
  static constexpr std::array<std::string_view, 3> names = {"tensor", "channel", "group"};
};
template <>
struct EnumNames<quant::RangeRule> {
  static constexpr std::array<std::string_view, 3> names = {"min_max", "mse", "hessian"};
};
template <>
struct EnumNames<quant::ScaleDtype> {
  static constexpr std::array<std::string_view, 4> names = {"model", "float32", "float16", "bfloat16"};
};

}  // namespace lcomp
