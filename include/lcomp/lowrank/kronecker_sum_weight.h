#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"

namespace lcomp::lowrank {

/// The tensors that a KroneckerSumWeight is stored as.
struct KroneckerParts {
  at::Tensor leaf;   ///< `<name>.weight_kronecker_leaf` [order, rank, t, q]
  at::Tensor shape;  ///< `<name>.weight_kronecker_shape` int64 [2] = out, in
};

/// A table as a sum of Kronecker products of equally large small matrices (word2ketXS; Panahi, Saeedi, Arodz:
/// word2ket, ICLR 2020, section 3.2):
///
///     W = sum_k F_k1 (x) F_k2 (x) ... (x) F_kn, cut from [t^n, q^n] to [out, in]
///
/// The first digit of a row is the most significant.
class KroneckerSumWeight final : public Weight {
 public:
  /// leaf: F, [order, rank, t, q] of float32, bfloat16 or float16, order 1 to 16. out and in are at most t^n
  /// and q^n, and at least a 2^n-th of them. Throws InvalidArgument otherwise.
  KroneckerSumWeight(int64_t out, int64_t in, at::Tensor leaf);

  /// Takes what `save` wrote. Throws CorruptFile naming the tensor `<name>.weight_kronecker_...` that is
  /// wrong.
  static KroneckerSumWeight from_stored(KroneckerParts parts, const std::string& name);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  at::Tensor dense() const override;
  /// Term by term, one mode after the other; the matrix is never formed.
  at::Tensor apply(const at::Tensor& x) const override;
  /// The Kronecker products of the rows of F that the digits of an id choose. Throws InvalidArgument for ids
  /// outside of [0, out).
  at::Tensor rows(const at::Tensor& ids) const override;
  int64_t parameters() const override { return parts_.leaf.numel(); }
  /// rank x sum_j t^j q^(n - j + 1), j = 1 ... n.
  int64_t macs_per_token() const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const at::Tensor& leaf() const { return parts_.leaf; }

 private:
  explicit KroneckerSumWeight(KroneckerParts parts);

  int64_t order() const { return parts_.leaf.size(0); }
  int64_t rank() const { return parts_.leaf.size(1); }

  KroneckerParts parts_;
  int64_t out_ = 0;
  int64_t in_ = 0;
};

}  // namespace lcomp::lowrank
