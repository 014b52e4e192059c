#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "lcomp/core/options.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// What shares one scale among the activations `[tokens, in]` that an operator reads.
enum class ActivationGranularity {
  kToken,   ///< a row; its range is known only when the model runs, so it is always dynamic
  kTensor,  ///< all tokens of the sequence at hand (dynamic), or of every sequence (static)
};

/// Of what `percentile` is a share, for the range of static activations.
enum class PercentileOf {
  kTokens,  ///< the range covers that share of the tokens whole: quantiles of their maxima and minima
  kValues,  ///< it covers that share of all elements, at each end
};

/// How the input of an operator is rounded before the product: x^ = (q - z) s with integer codes of `bits`
/// bits. A value, shared by all methods that quantize activations. The fields are named `activation_...` in
/// jobs, beside those of the weights' QuantScheme.
struct ActivationScheme {
  /// kInt, or kFp8E4m3: x^ = v(q) s with the E4M3 number v(q) nearest to x / s, s = max |x| / 448.
  NumberFormat format = NumberFormat::kInt;
  int64_t bits = 8;
  bool symmetric = true;
  ActivationGranularity granularity = ActivationGranularity::kToken;
  /// The range is that of the input at hand; else it was calibrated, and is stored.
  bool dynamic = true;
  /// Static ranges only: the share that the range must cover; 1 is the least and largest value seen.
  double percentile = 1.0;
  PercentileOf percentile_of = PercentileOf::kTokens;
  /// Of symmetric scales: kMidRange (what readers of compressed-tensors apply to dynamic activations) or
  /// kRestricted (SmoothQuant).
  SymmetricConvention symmetric_convention = SymmetricConvention::kMidRange;

  void visit(FieldVisitor& v);

  /// Throws InvalidArgument("[where] ...") when a field is out of its range or two of them exclude each
  /// other.
  void validate(std::string_view where) const;

  /// Smallest and largest signed code, -2^(b-1) and 2^(b-1) - 1.
  int lowest_code() const { return -(1 << (bits - 1)); }
  int highest_code() const { return (1 << (bits - 1)) - 1; }

  /// "int8 symmetric activations, per token".
  std::string describe() const;
};

}  // namespace lcomp::quant

namespace lcomp {

template <>
struct EnumNames<quant::ActivationGranularity> {
  static constexpr std::array<std::string_view, 2> names = {"token", "tensor"};
};
template <>
struct EnumNames<quant::PercentileOf> {
  static constexpr std::array<std::string_view, 2> names = {"tokens", "values"};
};

}  // namespace lcomp
