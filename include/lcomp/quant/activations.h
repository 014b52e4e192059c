#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "lcomp/quant/activation_scheme.h"

namespace lcomp::quant {

/// Scale and signed zero point that share of the activations has in common: x^ = (q - zero) scale.
struct ActivationGrid {
  float scale = 1;
  int32_t zero = 0;

  bool operator==(const ActivationGrid&) const = default;
};

/// The grid of the range [lowest, highest], extended to contain 0, in float32 as it is done while the model
/// runs:
///   symmetric, m = max(-lowest, highest): s = m / ((2^b - 1) / 2) (kMidRange; s = 2^-23 for m = 0) or
///   max(m, 1e-5) / (2^(b-1) - 1) (kRestricted);
///   E4M3: s = m / 448;
///   asymmetric: s = (hi - lo) / (2^b - 1), z = clamp(round(-2^(b-1) - lo / s)).
/// `type`: the type that the scale is stored in and rounded to, for static ranges.
/// Throws NumericalError when the scale overflows that type.
ActivationGrid activation_grid(float lowest, float highest, const ActivationScheme& scheme,
                               at::ScalarType type = at::kFloat);

/// Activations as codes.
struct QuantizedActivations {
  NumberFormat format = NumberFormat::kInt;
  at::Tensor codes;  ///< int8 [tokens, in]; of E4M3 the bytes
  at::Tensor scale;  ///< float32 [tokens, 1], or [1, 1] per tensor
  at::Tensor zero;   ///< int32, same shape; undefined when symmetric
};

/// x `[tokens, in]`, float32 -> codes q = round(clamp(x / s + z)), halves to even: the order of
/// compressed-tensors. Ranges are those of x, or `calibrated` for a static scheme.
/// Throws InvalidArgument when x is no such matrix, or a static scheme comes without its grid, and
/// NumericalError naming the first token that has NaN or infinity.
QuantizedActivations quantize_activations(const at::Tensor& x, const ActivationScheme& scheme,
                                          const std::optional<ActivationGrid>& calibrated = {});

/// (q - z) s, float32 [tokens, in].
at::Tensor dequantize_activations(const QuantizedActivations& activations);

/// What was seen of the inputs of an operator, for static ranges.
struct SeenRange {
  /// Least and largest element of every calibration token, float32 [tokens].
  at::Tensor token_lowest, token_highest;
  /// Of all elements: how many fell into each bucket, int64 [65536]; the bucket of a float32 is its upper 16
  /// bits. Only read for PercentileOf::kValues with a percentile below 1.
  at::Tensor value_counts;
};

/// The least range that covers the share `percentile` = p of what was seen. With n tokens (or elements) in
/// ascending order, the highest value is element ceil(p n) of the tokens' maxima (of the elements), the
/// lowest element ceil(p n) from the top of the tokens' minima (of the elements). No interpolation: p = 1 is
/// exactly the least and the largest. Elements are known up to their bucket, whose outer end is taken: at
/// most a 128th too wide. Throws InvalidArgument when the statistics that the scheme needs are missing or
/// empty.
std::pair<float, float> covered_range(const SeenRange& seen, const ActivationScheme& scheme);

}  // namespace lcomp::quant
