#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <string>

#include "lcomp/core/weight.h"
#include "lcomp/quant/activations.h"
#include "lcomp/quant/quantized_weight.h"

namespace lcomp::quant {

/// A quantized matrix whose input is quantized too ("W8A8"):
///   y[t, o] = s_x[t] s_w[o] sum_j (q_x[t, j] - z_x[t]) (q_w[o, j] - z_w[o])
/// The sum is a product of int8 codes in 32-bit integers, exact, when each row of the matrix has one scale
/// (granularity channel or tensor); with groups of columns or E4M3 numbers it is simulated: quantized and
/// dequantized inputs times the dequantized matrix, in float32. Both differ by rounding in float32 only. "Per
/// tensor" means all tokens of one call to `apply`.
class QuantizedInputWeight final : public Weight {
 public:
  /// `grid`: the calibrated grid of a static scheme, its scale a value of the type of the weight's scales.
  /// Throws InvalidArgument when the grid is missing or too much, or when 32-bit sums could overflow: more
  /// than 32767 columns with two zero points, 65535 with one, 131071 with none.
  QuantizedInputWeight(QuantizedWeight weight, const ActivationScheme& activations,
                       const std::optional<ActivationGrid>& grid = {});

  int64_t out_features() const override { return weight_.out_features(); }
  int64_t in_features() const override { return weight_.in_features(); }
  bool quantizes_input() const override { return true; }
  /// The dequantized matrix.
  at::Tensor dense() const override { return weight_.dense(); }
  /// The first call lays out the matrix. Throws NumericalError when x has NaN or infinity.
  at::Tensor apply(const at::Tensor& x) const override;
  int64_t bytes() const override;
  std::string describe() const override;
  /// Codes of 8 bits as `QuantizedWeight::save_plain` (compressed-tensors `int-quantized`,
  /// `float-quantized`), smaller ones packed; for static activations `<name>.input_scale` [1] and, when
  /// asymmetric,
  /// `<name>.input_zero_point` int8 [1].
  void save(TensorSink& sink, const std::string& name) const override;

  /// Whether `apply` is a product of integers.
  bool has_int8_product() const;
  /// The same product, simulated in float32.
  at::Tensor simulate(const at::Tensor& x) const;

  const QuantizedWeight& weight() const { return weight_; }
  const ActivationScheme& activations() const { return activations_; }
  const std::optional<ActivationGrid>& grid() const { return grid_; }

 private:
  struct Layout;

  const Layout& layout() const;
  at::Tensor int8_product(const at::Tensor& x) const;

  QuantizedWeight weight_;
  ActivationScheme activations_;
  std::optional<ActivationGrid> grid_;
  std::shared_ptr<Layout> layout_;  // made by the first `apply`; copies share it
};

/// The exact size of what a QuantizedInputWeight [out, in] saves, without having it.
int64_t quantized_input_bytes(const QuantScheme& scheme, const ActivationScheme& activations, int64_t out,
                              int64_t in, at::ScalarType scale_type);

}  // namespace lcomp::quant
