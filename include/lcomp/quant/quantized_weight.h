#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// The tensors that compressed-tensors `pack-quantized` stores for one weight; undefined when absent.
struct PackedTensors {
  at::Tensor packed;      ///< `weight_packed` int32 [out, ceil(in bits / 32)]
  at::Tensor scale;       ///< `weight_scale` [out, groups], or [1] per tensor
  at::Tensor shape;       ///< `weight_shape` int64 [2] = out, in
  at::Tensor zero_point;  ///< `weight_zero_point` int32 [ceil(out bits / 32), groups], packed along dim 0;
                          ///< int8 [1] per tensor; undefined when symmetric
  at::Tensor
      group_index;  ///< `weight_g_idx` int32 [in], written by libraries before 0.13; undefined in plain order
};

/// The tensors of compressed-tensors `int-quantized` and `float-quantized`, where a code is a byte.
struct PlainTensors {
  at::Tensor codes;       ///< `weight` [out, in]: int8, or the bytes of E4M3 numbers as uint8 or int8
  at::Tensor scale;       ///< `weight_scale` [out, groups], or [1] per tensor
  at::Tensor zero_point;  ///< `weight_zero_point` int8 as scale; undefined when symmetric
};

/// A matrix on a uniform grid: w^[i, j] = (codes[i, j] - zero[i, g(j)]) scale[i, g(j)], with g(j) = j / group
/// size unless a group index says otherwise; or on the grid of another number format, w^ = v(codes) scale.
/// Integers are stored as compressed-tensors `pack-quantized`, E4M3 numbers as `float-quantized`, NF4 in the
/// layout of bitsandbytes.
class QuantizedWeight final : public Weight {
 public:
  /// codes: int8 [out, in], signed, within the scheme's bits; 0 to 15 for NF4; for E4M3 the bytes. scale:
  /// [out or 1, groups], in its storage type (float32, bfloat16, float16; float64 for mathematics). zero:
  /// int8 of the same shape, undefined when symmetric. group_index: int32 [in] or undefined. Throws
  /// InvalidArgument when a shape or type disagrees with the scheme.
  QuantizedWeight(const QuantScheme& scheme, at::Tensor codes, at::Tensor scale, at::Tensor zero = {},
                  at::Tensor group_index = {});
  /// The same on a grid, which may have double-quantized scales.
  QuantizedWeight(const QuantScheme& scheme, at::Tensor codes, const Grid& grid, at::Tensor group_index = {});

  /// Reads what `save` wrote, and the layouts of older libraries (padded words of 3, 5, 6, 7 bit codes, group
  /// index, stored zeros of symmetric schemes). `scheme` gives bits, symmetry, granularity and group size,
  /// from the checkpoint's config. Throws CorruptFile naming the tensor `<name>.weight_...` that disagrees.
  static QuantizedWeight from_packed(const PackedTensors& tensors, const QuantScheme& scheme,
                                     const std::string& name);

  /// The same for codes that are stored a byte each (`<name>.weight`).
  static QuantizedWeight from_plain(const PlainTensors& tensors, const QuantScheme& scheme,
                                    const std::string& name);

  int64_t out_features() const override { return codes_.size(0); }
  int64_t in_features() const override { return codes_.size(1); }
  /// float32 [out, in]. Exact when scales have at most 16 significant bits (bfloat16, float16).
  at::Tensor dense() const override;
  int64_t bytes() const override;
  std::string describe() const override { return scheme_.describe(); }
  /// Integers: `<name>.weight_packed`, `.weight_scale`, `.weight_shape`, and `.weight_zero_point`,
  /// `.weight_g_idx` if any. E4M3 numbers: as `save_plain`. NF4: as `save_nf4` (nf4_storage.h).
  void save(TensorSink& sink, const std::string& name) const override;

  /// A byte for each code: `<name>.weight`, `.weight_scale`, and `.weight_zero_point` if any.
  void save_plain(TensorSink& sink, const std::string& name) const;

  /// The tensors that `save` hands out for integers.
  PackedTensors pack() const;

  const QuantScheme& scheme() const { return scheme_; }
  const at::Tensor& codes() const { return codes_; }
  const at::Tensor& scale() const { return scale_; }
  const at::Tensor& zero() const { return zero_; }
  const at::Tensor& group_index() const { return group_index_; }
  /// What the scales are stored as under double quantization.
  const NestedScales& nested_scales() const { return nested_; }

 private:
  QuantScheme scheme_;
  at::Tensor codes_;
  at::Tensor scale_;
  at::Tensor zero_;
  at::Tensor group_index_;
  NestedScales nested_;
};

/// The exact size of what `QuantizedWeight::save` stores for a matrix [out, in], without having it:
/// words, scales of `scale_type`, zero points if asymmetric, and the shape; or what the other formats have.
int64_t packed_bytes(const QuantScheme& scheme, int64_t out, int64_t in, c10::ScalarType scale_type);

}  // namespace lcomp::quant
