#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "lcomp/core/threads.h"
#include "lcomp/core/weight.h"
#include "lcomp/sparse/formats.h"

namespace lcomp::sparse {

/// A matrix with many zeros. Saved as `<name>.weight_values` and what else its format has (docs/formats.md);
/// as
/// `<name>.weight` where its format is kDense.
class SparseWeight final : public Weight {
 public:
  /// matrix: [out, in], float32, bfloat16 or float16; what is 0 in it was removed.
  SparseWeight(const at::Tensor& matrix, SparseFormat format);
  /// Parts as they were stored; throws CorruptFile naming the tensor that is wrong.
  static SparseWeight from_stored(SparseTensors stored, SparseFormat format, const std::string& name);

  int64_t out_features() const override { return stored_.out; }
  int64_t in_features() const override { return stored_.in; }
  at::Tensor dense() const override;
  at::Tensor apply(const at::Tensor& x) const override { return apply(x, nullptr); }
  /// The same with the rows shared out over a pool: the same result at any number of threads. The stored
  /// elements are multiplied as docs/sparsity.md (Speed) says; for many tokens the matrix is decoded first.
  at::Tensor apply(const at::Tensor& x, ThreadPool* pool) const;
  int64_t parameters() const override;
  int64_t bytes() const override { return stored_.bytes(); }
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  SparseFormat format() const { return format_; }
  /// Type of the elements.
  at::ScalarType dtype() const;
  /// bool [out, in]: true where an element is not 0.
  at::Tensor kept() const;
  const SparseTensors& stored() const { return stored_; }

 private:
  SparseWeight(SparseTensors stored, SparseFormat format) : stored_(std::move(stored)), format_(format) {}

  SparseTensors stored_;
  SparseFormat format_;
};

/// The mask of a weight that earlier pruning made sparse, or of a sum of such; undefined for any other.
at::Tensor kept_mask(const Weight& weight);

/// `matrix` in place of `before`: stored as sparse as that where that is sparse, or a sum of sparse parts
/// that have no element in common.
WeightPtr replaced_matrix(const Weight& before, const at::Tensor& matrix);

/// The type of the elements of a dense matrix, a sparse one, or a sum of such; nothing for codes.
std::optional<at::ScalarType> matrix_type(const Weight& weight);

}  // namespace lcomp::sparse
