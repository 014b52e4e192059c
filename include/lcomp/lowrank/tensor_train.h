#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "lcomp/linalg/svd.h"

/// Tensor trains (Oseledets: Tensor-Train Decomposition, SIAM J. Sci. Comput. 2011) of tensors and of
/// matrices. Everything is computed in float64 on the calling thread; all reshaping is row-major.
namespace lcomp::lowrank {

/// T[i_1 ... i_d] = G_1[i_1] G_2[i_2] ... G_d[i_d], a product of matrices.
struct TensorTrain {
  std::vector<at::Tensor> cores = {};  ///< G_k, float64 [r_k-1, I_k, r_k], r_0 = r_d = 1

  std::vector<int64_t> ranks() const;  ///< r_0 ... r_d
  int64_t parameters() const;
  at::Tensor full() const;  ///< [I_1 ... I_d]
};

/// What a train may lose and how large it may be. Both limits hold; a rank is at least 1.
struct TrainLimits {
  /// Relative error ||T - T^|| / ||T||: each of the d - 1 cuts may lose eps / sqrt(d - 1) of the norm, and
  /// takes the smallest rank that loses no more. 0 keeps what float64 can.
  double eps = 0;
  /// Largest r_1 ... r_d-1; one number holds for all, none is no limit. More than a cut can have is cut to
  /// that.
  std::vector<int64_t> ranks = {};
  /// How matrices are decomposed. Nothing: by the smaller Gram matrix where one side is four times the other
  /// and eps at least 1e-6, else exactly.
  std::optional<linalg::SvdSolver> solver = {};
};

struct TrainResult {
  TensorTrain train = {};
  double relative_error = 0;  ///< ||T - T^|| / ||T||: what the cuts lost is orthogonal, so its squares add up
};

/// TT-SVD (algorithm 1 of the paper): cores 1 ... d-1 have orthonormal columns as [r_k-1 I_k, r_k]. The
/// squared error is at most the sum of what the unfoldings [I_1 ... I_k, rest] lose at these ranks, so at
/// most d - 1 times the least possible. tensor: floating-point, not empty. Throws InvalidArgument for a wrong
/// tensor or limits, NumericalError when an element is not finite.
TrainResult tt_svd(const at::Tensor& tensor, const TrainLimits& limits);

/// The train cut to smaller ranks (algorithm 2): orthogonalised from the right, then cut from the left as
/// `tt_svd` does. O(d I r^3). Throws as `tt_svd`, also for cores that do not fit together.
TrainResult tt_round(const TensorTrain& train, const TrainLimits& limits);

/// a + b: ranks add (section 4.1). Throws InvalidArgument unless both have the same shape.
TensorTrain tt_sum(const TensorTrain& a, const TensorTrain& b);

/// A matrix as a train over pairs of digits of its row and its column (TT-matrix; Novikov et al.: Tensorizing
/// Neural Networks, NeurIPS 2015, section 4):
///
///     W[(i_1 ... i_d), (j_1 ... j_d)] = G_1[i_1, j_1] ... G_d[i_d, j_d]
///
/// The first digit is the most significant. Rows and columns beyond `out` and `in` are padding.
struct TrainMatrix {
  std::vector<at::Tensor> cores = {};  ///< float64 [r_k-1, m_k, n_k, r_k]
  int64_t out = 0;                     ///< rows, at most m_1 ... m_d
  int64_t in = 0;                      ///< columns, at most n_1 ... n_d
  double relative_error = 0;           ///< of the padded matrix, so at least that of the matrix itself

  at::Tensor full() const;  ///< float64 [out, in]
  TensorTrain train() const;
  TrainMatrix transposed() const;
};

/// A matrix as a tensor with a mode for each pair of digits: W [out, in], padded with zeros to [m_1 ... m_d,
/// n_1 ... n_d], as [m_1 n_1, m_2 n_2 ... m_d n_d], float64. With two digits, sums of Kronecker products of W
/// are sums of outer products of the result (Van Loan and Pitsianis: Approximation with Kronecker Products,
/// 1993). Throws InvalidArgument when the shapes do not fit.
at::Tensor paired_digits(const at::Tensor& weight, const std::vector<int64_t>& row_shape,
                         const std::vector<int64_t>& col_shape);

/// W [out, in], floating-point, padded with zeros to the products of the shapes, as a train by `tt_svd`. Two
/// digits give the sum of Kronecker products of rank r_1 that is nearest to W, one gives W itself. Throws
/// InvalidArgument when the shapes do not fit, else as `tt_svd`.
TrainMatrix tt_matrix(const at::Tensor& weight, const std::vector<int64_t>& row_shape,
                      const std::vector<int64_t>& col_shape, const TrainLimits& limits);

/// `tt_round` of a matrix.
TrainMatrix tt_round(const TrainMatrix& matrix, const TrainLimits& limits);

/// The full matrix [m_1 ... m_d, n_1 ... n_d] of cores [r_k-1, m_k, n_k, r_k], in their type.
at::Tensor full_matrix(const std::vector<at::Tensor>& cores);

/// What a TT-matrix costs.
struct TrainCost {
  int64_t parameters = 0;  ///< sum_k r_k-1 m_k n_k r_k
  int64_t macs_left = 0;   ///< per vector, from the first core to the last
  int64_t macs_right = 0;  ///< from the last to the first
  int64_t row_macs = 0;    ///< one row, from the first core to the last
  int64_t macs() const { return macs_left < macs_right ? macs_left : macs_right; }
};

/// ranks: r_0 ... r_d. Contracting core k from the left costs (m_1 ... m_k-1) r_k-1 m_k n_k r_k (n_k+1 ...
/// n_d) multiply-adds, from the right (n_1 ... n_k-1) r_k-1 m_k n_k r_k (m_k+1 ... m_d).
TrainCost train_cost(const std::vector<int64_t>& row_shape, const std::vector<int64_t>& col_shape,
                     const std::vector<int64_t>& ranks);

/// n as a product of d factors, ascending, that are as alike as can be: of all factorisations the one of the
/// largest entropy of f_k / sum f (Khrulkov et al.: Tensorized Embedding Layers, 2019, its code). A prime n
/// gives 1 ... 1, n: see `padded_shape`. Throws InvalidArgument unless n and d are at least 1.
std::vector<int64_t> balanced_shape(int64_t n, int64_t d);

/// Like `balanced_shape`, of n or of n rounded up to a multiple of 10, 100 ... (at most n): the one of the
/// largest entropy, of equal ones the smallest. Its product is at least n.
std::vector<int64_t> padded_shape(int64_t n, int64_t d);

/// Shapes of the rows and the columns of a matrix.
struct MatrixShapes {
  std::vector<int64_t> rows, columns;
};

/// `balanced_shape` of both sides, ascending for rows and descending for columns: the products m_k n_k, and
/// so the cores, are then nearly alike.
MatrixShapes paired_shapes(int64_t out, int64_t in, int64_t d);

}  // namespace lcomp::lowrank
