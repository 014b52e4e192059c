#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"

namespace lcomp::linalg {

/// How far down the ladder a factorisation had to go.
enum class Rung {
  kPlain,          ///< the damping that was asked for
  kMoreDamping,    ///< more damping
  kDiagonalFloor,  ///< small diagonal elements raised, and damping
  kFailed,         ///< no factor
};

/// The triangular factor of a damped inverse, and what it took to get it.
struct DampedInverse {
  at::Tensor upper;           ///< U, float64 [n, n], upper triangular, zeros below; undefined when failed
  std::vector<double> added;  ///< d: what was added to the diagonal of the (permuted) matrix
  Rung rung = Rung::kFailed;
  double damping = 0;         ///< the relative damping that worked
  double diagonal_floor = 0;  ///< diagonal elements were raised to at least this (rung kDiagonalFloor)
  double condition = 0;       ///< (largest / smallest diagonal of the Cholesky factor)^2, a lower bound
  std::vector<std::string>
      attempts;  ///< what failed before: "damping 0.01: not positive definite at 17 of 64"
};

/// U with (P H P^T + diag(d))^-1 = U^T U for a second moment H = sum x x^T: what GPTQ and SparseGPT walk
/// along.
///
/// Reversing the order of rows and columns turns the wanted factor into one ordinary Cholesky factorisation
/// and one triangular inverse, both in place: with J the exchange matrix and J A J = L L^T, A = (J L J)(J L
/// J)^T with J L J upper triangular, so U = (J L J)^-1 = J L^-1 J. That is 2/3 n^3 multiply-adds and one
/// buffer of n^2 float64, where factor, inverse and second factor take twice that and lose digits on the way.
///
/// d starts as damping x mean(diag H). While the matrix is not positive definite, damping doubles up to 1;
/// then the diagonal is raised to 1e-6, 1e-5 ... 0.1 of its maximum and damping starts again. An input that
/// never fires (H_jj = 0) counts as H_jj = 1. Bad data are never an exception: rung kFailed, with the
/// attempts.
///
/// second_moment: [n, n] symmetric, float32 or float64, any positive factor. order: row i of P H P^T is row
/// order[i] of H; empty for the identity. The result is the same at any number of threads.
/// Throws InvalidArgument when the shape or type is wrong, the order is not a permutation, or damping < 0.
DampedInverse damped_inverse(const at::Tensor& second_moment, double damping = 0.01,
                             const std::vector<int64_t>& order = {}, ThreadPool* pool = nullptr);

/// In place, row-major lower triangle: A -> L with A = L L^T. Returns 0, or the 1-based row where A is not
/// positive definite. The upper triangle is neither read nor written.
int64_t cholesky_lower(double* a, int64_t n, ThreadPool* pool = nullptr);

/// In place, row-major lower triangle with a non-zero diagonal: L -> L^-1.
void invert_lower(double* l, int64_t n, ThreadPool* pool = nullptr);

}  // namespace lcomp::linalg

namespace lcomp {
template <>
struct EnumNames<linalg::Rung> {
  static constexpr std::array<std::string_view, 4> names = {"plain", "more_damping", "diagonal_floor",
                                                            "failed"};
};
}  // namespace lcomp
