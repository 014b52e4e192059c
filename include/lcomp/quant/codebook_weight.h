#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"

namespace lcomp::quant {

/// The entries of a matrix that are kept beside its codes, in compressed rows: row r has the entries
/// `offsets[r]` to `offsets[r + 1]`, columns ascending. Undefined tensors mean that there are none.
struct SparseEntries {
  at::Tensor offsets;  ///< int32 [out + 1]
  at::Tensor columns;  ///< int32 [entries]
  at::Tensor values;   ///< [entries], of the code books' type: *added* to the decoded value there

  int64_t count() const { return values.defined() ? values.numel() : 0; }
};

/// The tensors that a CodebookWeight is stored as; those of the sparse part undefined when there is none.
struct CodebookTensors {
  at::Tensor codes;      ///< `<name>.weight_codes` int32 [out, ceil(in bits / 32)]
  at::Tensor codebook;   ///< `<name>.weight_codebook` [out, 2^bits]
  at::Tensor shape;      ///< `<name>.weight_shape` int64 [2] = out, in
  SparseEntries sparse;  ///< `<name>.weight_sparse_offsets`, `_columns`, `_values`
};

/// A matrix whose rows have a code book each: w^[r, j] = codebook[r, code[r, j]] + sparse[r, j].
///
/// Codes lie as a bit stream per row, least significant bit first, so a matrix-vector product reads
/// bits / 32 of the memory of a float32 one; decoding looks codes up in vector registers (up to 4 bits). Only
/// lcomp reads this kind.
class CodebookWeight final : public Weight {
 public:
  /// codes: uint8 [out, in], below 2^bits, bits 2-8. codebook: [out, 2^bits] float32, bfloat16 or float16.
  /// Throws InvalidArgument when shapes, types or values disagree.
  CodebookWeight(int64_t bits, const at::Tensor& codes, at::Tensor codebook, SparseEntries sparse = {});

  /// Takes what `save` wrote. Throws CorruptFile naming the tensor `<name>.weight_...` that is wrong.
  static CodebookWeight from_stored(CodebookTensors tensors, int64_t bits, const std::string& name);

  int64_t out_features() const override { return out_; }
  int64_t in_features() const override { return in_; }
  /// float32 [out, in].
  at::Tensor dense() const override;
  /// Up to 16 rows of x are multiplied straight from the codes, more through `dense()`.
  at::Tensor apply(const at::Tensor& x) const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  int64_t bits() const { return bits_; }
  const at::Tensor& codebook() const { return stored_.codebook; }
  const SparseEntries& sparse() const { return stored_.sparse; }
  /// uint8 [out, in].
  at::Tensor codes() const;

 private:
  CodebookWeight(int64_t bits, CodebookTensors stored);

  int64_t bits_;
  int64_t out_;
  int64_t in_;
  CodebookTensors stored_;
  at::Tensor table_;  // float32 [out, max(2^bits, 16)]: the code books as the kernels want them
};

/// "3 bit code book per row (float16)", with ", 0.45 % kept beside it" where entries are.
std::string describe_codebook(int64_t bits, c10::ScalarType type, double sparse_share);

/// The exact size of what `save` stores.
int64_t codebook_bytes(int64_t bits, int64_t out, int64_t in, int64_t sparse_entries, c10::ScalarType type);

}  // namespace lcomp::quant
