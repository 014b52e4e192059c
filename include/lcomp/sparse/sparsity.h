#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"

namespace lcomp::sparse {

/// N kept of M consecutive input columns of a row. (Some papers count the removed ones: their 1:4 is 3:4
/// here; 2:4 is the same.)
struct NofM {
  int64_t kept = 2;
  int64_t of = 4;
};

/// Where weights compete for being kept, without an N:M pattern.
enum class Scope {
  kRow,     ///< each row (output channel) loses the same share
  kTensor,  ///< the whole matrix
};

/// How many weights of a matrix [out, in] are removed, and where they may be.
struct Sparsity {
  double sparsity = 0.5;
  std::string pattern = "unstructured";
  Scope scope = Scope::kRow;

  void visit(FieldVisitor& v);

  /// The pattern, nothing when it is "unstructured". Throws InvalidArgument("[where] ...") for other text
  /// than "unstructured" or "N:M" with 1 <= N < M <= 64.
  std::optional<NofM> n_of_m(std::string_view where = "sparsity") const;

  /// Throws InvalidArgument("[where] ...") unless every field lies in its range and the pattern fits a matrix
  /// of `in` columns; `name` is the operator ("" when it has none).
  void validate(int64_t in, std::string_view where, std::string_view name = {}) const;

  /// Weights of an [out, in] matrix that are removed: floor(sparsity x count) per row or matrix, or all but N
  /// of M.
  int64_t removed(int64_t out, int64_t in) const;

  /// "50 % unstructured", "2:4".
  std::string describe() const;
};

/// floor(share x count), but for the rounding of share x count itself: 0.3 of 10 is 3.
int64_t share_of(double share, int64_t count);

/// The mask of what is kept: bool [out, in], true where the weight stays. The lowest scores go; of equal ones
/// the one further left, then further up: counts are exact whatever the ties.
///
/// scores: [out, in], float32 or float64, no NaN. Cost O(out in log in). The result is the same at any number
/// of threads. Throws InvalidArgument when the pattern does not fit or a score is NaN.
at::Tensor select_kept(const at::Tensor& scores, const Sparsity& sparsity, ThreadPool* pool = nullptr);

}  // namespace lcomp::sparse

namespace lcomp {
template <>
struct EnumNames<sparse::Scope> {
  static constexpr std::array<std::string_view, 2> names = {"row", "tensor"};
};
}  // namespace lcomp
