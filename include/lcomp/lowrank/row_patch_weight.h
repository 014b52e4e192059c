#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"

namespace lcomp::lowrank {

/// The tensors that a RowPatchWeight is stored as.
struct RowPatchParts {
  at::Tensor rows;    ///< `<name>.weight_patch_rows` int64 [count], ascending
  at::Tensor values;  ///< `<name>.weight_patch_values` [count, in]
  at::Tensor shape;   ///< `<name>.weight_patch_shape` int64 [2] = out, in
};

/// A matrix of which only some rows are not zero. As a part of a SumWeight it makes exceptions to a
/// compressed embedding: the rows of frequent words as they were, less what the other parts say.
class RowPatchWeight final : public Weight {
 public:
  /// rows: int64 [count], ascending, in [0, out), at least one. values: [count, in] of float32, bfloat16 or
  /// float16. Throws InvalidArgument otherwise.
  RowPatchWeight(int64_t out, at::Tensor rows, const at::Tensor& values);

  /// Takes what `save` wrote. Throws CorruptFile naming the tensor `<name>.weight_patch_...` that is wrong.
  static RowPatchWeight from_stored(RowPatchParts parts, const std::string& name);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return parts_.values.size(1); }
  at::Tensor dense() const override;
  at::Tensor apply(const at::Tensor& x) const override;
  /// Throws InvalidArgument for ids outside of [0, out).
  at::Tensor rows(const at::Tensor& ids) const override;
  /// Elements of the rows that are kept.
  int64_t parameters() const override { return parts_.values.numel(); }
  /// count x in.
  int64_t macs_per_token() const override { return parts_.values.numel(); }
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const at::Tensor& row_ids() const { return parts_.rows; }
  const at::Tensor& values() const { return parts_.values; }

 private:
  explicit RowPatchWeight(RowPatchParts parts);

  RowPatchParts parts_;
  int64_t out_ = 0;
};

}  // namespace lcomp::lowrank
