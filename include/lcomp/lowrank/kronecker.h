#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/linalg/svd.h"
#include "lcomp/lowrank/tensor_train.h"

namespace lcomp::lowrank {

/// The sizes of a Kronecker product: [m1, n1] (x) [m2, n2] is [m1 m2, n1 n2].
struct KroneckerShape {
  int64_t m1 = 1, n1 = 1, m2 = 1, n2 = 1;
};

/// sum_q A_q (x) B_q.
struct KroneckerSum {
  at::Tensor left;            ///< A, float64 [rank, m1, n1]
  at::Tensor right;           ///< B, float64 [rank, m2, n2]
  int64_t out = 0;            ///< rows, at most m1 m2
  int64_t in = 0;             ///< columns, at most n1 n2
  double relative_error = 0;  ///< ||W - W^|| / ||W||, padding counted

  at::Tensor full() const;  ///< float64 [out, in]
  /// The same matrix as a train of two cores, which TensorTrainWeight stores and applies.
  TrainMatrix train() const;
};

/// The sum of `rank` Kronecker products that is nearest to the weight (Van Loan and Pitsianis: Approximation
/// with Kronecker Products, 1993): the truncated SVD of R[(i, j), (k, l)] = W[(i, k), (j, l)], A_q =
/// sqrt(s_q) u_q and B_q = sqrt(s_q) v_q. Its squared error is that of the singular values left out.
///
/// weight: [out, in] floating-point, padded with zeros to [m1 m2, n1 n2]. rank: at least 1;
/// more than min(m1 n1, m2 n2) is that. Throws InvalidArgument for sizes that do not fit, NumericalError when
/// an element is not finite.
KroneckerSum kronecker_sum(const at::Tensor& weight, const KroneckerShape& shape, int64_t rank,
                           linalg::SvdSolver solver = linalg::SvdSolver::kExact);

}  // namespace lcomp::lowrank
