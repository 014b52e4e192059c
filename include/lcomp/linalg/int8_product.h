#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "lcomp/linalg/gemm.h"

namespace lcomp::linalg {

/// How an int8 product is computed. All ways give the same integers.
enum class Int8Way {
  kBest,    ///< kDirect where the processor can, else kSplit
  kDirect,  ///< one product of signed bytes, with instructions that sum in 32 bits (AVX-512 VNNI, AMX)
  kSplit,   ///< for older instructions, which sum pairs of products in 16 bits and saturate there: the
            ///< activation's low seven bits and its top bit are multiplied apart, so that no pair reaches
            ///< 2^15. One product instead of two when no code of the matrix exceeds 64
};

/// Whether this processor sums products of bytes in 32 bits (kDirect).
bool has_native_int8();

/// A matrix of int8 codes `[out, in]`, laid out once for repeated products with int8 codes. Runs on oneDNN
/// with the instructions of the processor at hand, on the calling thread. Immutable after construction: one
/// Int8Matrix may be used by several threads at once.
///
/// Products are exact: sums are 32-bit integers, which `in` <= 131071 cannot overflow.
class Int8Matrix {
 public:
  /// codes: int8 `[out, in]`. Throws InvalidArgument for another type or shape or too many columns, and
  /// Unsupported for kDirect on a processor without it.
  explicit Int8Matrix(const at::Tensor& codes, Int8Way way = Int8Way::kBest);
  ~Int8Matrix();
  Int8Matrix(Int8Matrix&&) noexcept;
  Int8Matrix& operator=(Int8Matrix&&) noexcept;

  int64_t out_features() const;
  int64_t in_features() const;

  /// y `[rows, out]` = x `[rows, in]` W^T; both contiguous.
  void multiply(const int8_t* x, int64_t rows, int32_t* y, Scratch& scratch) const;

  /// Sum of each row of the matrix, `out` of them: what a zero point of x must be multiplied by.
  const int32_t* row_sums() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lcomp::linalg
