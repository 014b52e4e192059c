#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/observer.h"

namespace lcomp::lowrank {

struct Word2KetXsOptions {
  int64_t order = 2;        ///< n: factors of a product, 2 to 8
  int64_t rank = 16;        ///< products in the sum
  int64_t t = 0;            ///< rows of a factor; 0 for the least with t^n >= rows of the table
  int64_t q = 0;            ///< columns of a factor; 0 for the least with q^n >= columns of the table
  int64_t sweeps = 30;      ///< of alternating least squares, at most
  double tolerance = 1e-5;  ///< a sweep that lowers the relative error by less is the last
  uint64_t seed = 0;        ///< of columns of the start beyond t q (order above 2)
};

struct Word2KetXsFit {
  at::Tensor leaf;                   ///< float64 [order, rank, t, q], what KroneckerSumWeight stores
  double relative_error = 0;         ///< sqrt(sum_j w_j ||E_j - E^_j||^2 / sum_j w_j ||E_j||^2)
  std::vector<double> sweep_errors;  ///< the same at the start and after each sweep, non-increasing
};

/// The smallest base with base^order >= n.
int64_t smallest_base(int64_t n, int64_t order);

/// Bytes that `fit_word2ketxs` works in, at most.
int64_t word2ketxs_bytes(int64_t order, int64_t rank, int64_t t, int64_t q);

/// Fits E^ = sum_k F_k1 (x) ... (x) F_kn (kronecker_sum_weight.h) to a table E [vocabulary, dim]:
///
///     min sum_j w_j ||E_j - E^_j||^2
///
/// With pairs of digits as modes this is a CP decomposition. Order 2 without weights and without padding is
/// solved exactly by an SVD (Van Loan and Pitsianis); everything else by alternating least squares, from that
/// SVD or from the leading singular vectors of the unfoldings. A factor's rows are solved for one digit at a
/// time, so weights cost nothing; what is padding counts for nothing: its rows weigh 0, its columns are what
/// the model says (a majoriser, so that no sweep raises the error).
///
/// table: floating-point. row_weights: undefined, or [vocabulary], not negative and not all 0. Works in
/// float64 on the calling thread; memory: `word2ketxs_bytes`; 2 n (t q)^n rank multiply-adds a sweep, and n t
/// systems of rank equations.
/// Throws InvalidArgument for options or weights that do not fit, NumericalError when an element is not
/// finite, Interrupted when the observer, which is told of every factor, asks for it.
Word2KetXsFit fit_word2ketxs(const at::Tensor& table, const Word2KetXsOptions& options,
                             const at::Tensor& row_weights = {}, Observer* observer = nullptr);

}  // namespace lcomp::lowrank
