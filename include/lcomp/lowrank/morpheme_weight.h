#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"

namespace lcomp::lowrank {

/// The tensors that a MorphemeWeight is stored as.
struct MorphemeParts {
  at::Tensor tables;  ///< `<name>.weight_morpheme_tables` [rank, morphemes, q]
  at::Tensor index;   ///< `<name>.weight_morpheme_index` int32 [vocabulary, order]
  at::Tensor shape;   ///< `<name>.weight_morpheme_shape` int64 [2] = vocabulary, in
};

/// An embedding whose rows are composed of the vectors of a word's morphemes (MorphTE; Gan et al., NeurIPS
/// 2022, arXiv 2210.15379):
///
///     row_j = sum_i F_i[I_j1] (x) F_i[I_j2] (x) ... (x) F_i[I_jn], cut from q^n to `in` columns
///
/// All positions share the tables F_1 ... F_rank. Words with the same morphemes have the same row.
class MorphemeWeight final : public Weight {
 public:
  /// tables: F, [rank, morphemes, q] of float32, bfloat16 or float16. index: I, int32 [vocabulary, order], in
  /// [0, morphemes), order 1 to 16. in: at most q^order, and at least a 2^order-th of it. Throws
  /// InvalidArgument otherwise.
  MorphemeWeight(at::Tensor tables, const at::Tensor& index, int64_t in);

  /// Takes what `save` wrote. Throws CorruptFile naming the tensor `<name>.weight_morpheme_...` that is
  /// wrong.
  static MorphemeWeight from_stored(MorphemeParts parts, const std::string& name);

  int64_t out_features() const override { return parts_.index.size(0); }
  int64_t in_features() const override { return in_; }
  at::Tensor dense() const override;
  /// Composes a few thousand rows at a time and multiplies by them: what a tied head does.
  at::Tensor apply(const at::Tensor& x) const override;
  /// Throws InvalidArgument for ids outside of [0, vocabulary).
  at::Tensor rows(const at::Tensor& ids) const override;
  /// Elements of the tables and of the index, as the paper counts.
  int64_t parameters() const override { return parts_.tables.numel() + parts_.index.numel(); }
  /// vocabulary x (in + row_macs()): of one token. Composing the rows is done once for all tokens of `apply`,
  /// so that several tokens cost less each.
  int64_t macs_per_token() const override { return out_features() * (in_ + row_macs()); }
  /// Multiplications that compose a row: rank x (q^2 + ... + q^order).
  int64_t row_macs() const;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const at::Tensor& tables() const { return parts_.tables; }
  const at::Tensor& index() const { return parts_.index; }

 private:
  explicit MorphemeWeight(MorphemeParts parts);

  /// Rows of the index, int32 [count, order], composed: float32 [count, in].
  at::Tensor composed(const at::Tensor& index) const;
  int64_t rows_at_a_time() const;

  MorphemeParts parts_;
  int64_t in_ = 0;
};

}  // namespace lcomp::lowrank
