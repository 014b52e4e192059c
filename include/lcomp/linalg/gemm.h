#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "lcomp/core/threads.h"

namespace lcomp::linalg {

/// Arithmetic of matrix products. Both accumulate in float32; kBf16 rounds the factors to bfloat16 first.
enum class Precision { kF32, kBf16 };

/// Whether this processor multiplies bfloat16 natively (AVX-512 BF16 or AMX); elsewhere kBf16 is refused.
bool has_native_bf16();

/// Memory that one thread reuses between calls, so that hot loops allocate nothing. Not shared between
/// threads.
class Scratch {
 public:
  Scratch();
  ~Scratch();
  Scratch(Scratch&&) noexcept;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  /// At least `count` floats, 64-byte aligned, contents unspecified; valid until the next call with the same
  /// slot.
  float* floats(size_t slot, int64_t count);

  /// Frees everything.
  void release();

 private:
  struct Buffer;
  std::vector<Buffer> buffers_;
};

/// Matrices `[out_i, in]` that read the same input, stacked along `out` and laid out once for repeated
/// products. Runs on oneDNN with the instructions of the processor at hand, on the calling thread. Immutable
/// after construction: one PackedMatrix may be used by several threads at once.
class PackedMatrix {
 public:
  /// Each weight is a floating-point `[out_i, in]` tensor with the same `in`.
  PackedMatrix(const std::vector<at::Tensor>& weights, Precision precision);
  ~PackedMatrix();
  PackedMatrix(PackedMatrix&&) noexcept;
  PackedMatrix& operator=(PackedMatrix&&) noexcept;

  int64_t out_features() const;
  int64_t in_features() const;

  /// y `[rows, out]` = x `[rows, in]` W^T, or += with `accumulate`; both contiguous, float32.
  void multiply(const float* x, int64_t rows, float* y, bool accumulate, Scratch& scratch) const;

  /// Rows that one kernel call handles; callers that work in chunks of this many rows stay in cache.
  static constexpr int64_t kRowChunk = 128;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Slots of a Scratch below this number belong to this folder's products; callers use the others.
constexpr size_t kFirstFreeSlot = 3;

/// Adds x^T x to the upper triangle of `gram`, in float32 (symmetric rank-k update: half the work of a
/// product). x is `[rows, n]` contiguous, gram `[n, n]`. Tiles of the triangle are shared out over the pool;
/// each tile sums its rows in order, so the result does not depend on the number of threads.
void syrk_upper(ThreadPool* pool, const float* x, int64_t rows, int64_t n, float* gram);

/// Adds d^T x to `sum`, in float32. d and x are `[rows, n]` contiguous, sum `[n, n]`: sum over rows of
/// d_i x_j. Tiles are shared out as in `syrk_upper`.
void add_cross_products(ThreadPool* pool, const float* d, const float* x, int64_t rows, int64_t n,
                        float* sum);

/// Copies the upper triangle of the square float32 matrix `gram` into its lower one.
void mirror_upper(at::Tensor& gram);

/// GFLOP/s of one thread on a product that suits it: the roof against which speed is reported. Takes about 50
/// ms.
double measure_gemm_peak(Precision precision);

}  // namespace lcomp::linalg
