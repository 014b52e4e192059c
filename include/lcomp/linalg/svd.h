#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

/// Eigenvalues and singular values, by LAPACK on the calling thread in float64. Signs are fixed (the largest
/// element of each eigenvector, and of each singular vector of one side, is positive; of equally large ones
/// the first), so that results are reproducible.
namespace lcomp::linalg {

/// The largest eigenvalues of a symmetric matrix and their eigenvectors.
struct Eigen {
  std::vector<double> values;  ///< descending
  at::Tensor vectors;          ///< float64 [count, n]: orthonormal rows
};

/// matrix: [n, n] symmetric, float32 or float64 (the lower triangle is read). count: how many eigenvalues,
/// 1 ... n; all of them for -1. About 4/3 n^3 multiply-adds for the values and 2 n^2 count for the vectors
/// (LAPACK dsyevr). Throws InvalidArgument for another shape, type or count, NumericalError when a value is
/// not finite or the iteration does not converge.
Eigen largest_eigen(const at::Tensor& matrix, int64_t count = -1);

/// A = U diag(s) V^T, cut to the largest singular values.
struct Svd {
  at::Tensor left;             ///< U, float64 [m, count], orthonormal columns
  std::vector<double> values;  ///< s, descending
  at::Tensor right;            ///< V^T, float64 [count, n], orthonormal rows
  /// Squared Frobenius norm of what is cut off. Exact for the exact and the Gram solver; for the randomized
  /// one the squared norm of A less that of the result, which is the error of the result itself.
  double tail = 0;

  /// U diag(s) V^T, float64 [m, n].
  at::Tensor product() const;
};

enum class SvdSolver {
  kExact,  ///< LAPACK dgesdd on the matrix: singular values to about 1e-15 of the largest
  kGram,   ///< eigenvalues of the smaller of A A^T and A^T A: half the cost or less, to about 1e-8; vectors
           ///< of the other side are 0 where the singular value is
  kRandomized,  ///< a random subspace, sharpened by power iterations (Halko, Martinsson, Tropp 2011)
};

struct RandomizedOptions {
  int64_t oversampling = 16;  ///< p: columns of the subspace beyond `count`, not negative
  int64_t power = 3;          ///< q: the error decays with (s_{k+1} / s_k)^(2q + 1)
  uint64_t seed = 0;
};

/// The `count` largest singular values of matrix [m, n] (float32 or float64) and their vectors; all of them
/// for -1. Eckart and Young: no matrix of this rank lies nearer to it. Throws InvalidArgument for another
/// shape, type or count, NumericalError when a value is not finite or the iteration does not converge.
///
/// Randomized: Halko, Martinsson, Tropp: Finding structure with randomness, SIAM Review 2011, algorithms 4.4
/// and 5.1, orthonormalised after every product; (2 power + 2) m n (count + oversampling) multiply-adds. Its
/// expected error without power iterations is within sqrt(1 + count / (oversampling - 1)) of the least
/// (theorem 10.5).
Svd truncated_svd(const at::Tensor& matrix, int64_t count = -1, SvdSolver solver = SvdSolver::kExact,
                  const RandomizedOptions& randomized = {});

/// Orthonormal columns [m, min(m, n)] that span those of matrix [m, n] (Householder QR).
at::Tensor orthonormal_columns(const at::Tensor& matrix);

struct PivotRows {
  std::vector<int64_t> order;  ///< a permutation of 0 ... m - 1
  int64_t rank = 0;            ///< how many of the first are independent, to 1e-12 of the largest
};

/// Rows of matrix [m, n], m >= n, that span all of its rows well: the order in which QR with column pivoting
/// of its transpose takes them, the first n of which are a basis where the rank is n (LAPACK dgeqp3). Throws
/// as above.
PivotRows pivot_rows(const at::Tensor& matrix);

}  // namespace lcomp::linalg
