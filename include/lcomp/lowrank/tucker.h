#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

/// Tucker decompositions: T ~ C x_1 U_1 x_2 U_2 ... x_d U_d with a small core C and orthonormal factors U_k,
/// for all modes of a tensor or for some of them. Everything is computed in float64 on the calling thread.
namespace lcomp::lowrank {

/// Matrix [I_mode, rest] of a tensor: `mode` (from 0) in front, the other modes in their order, the last one
/// fastest (Kolda and Bader, Tensor Decompositions and Applications, SIAM Review 2009, with row-major order).
at::Tensor unfold(const at::Tensor& tensor, int64_t mode);

/// The tensor of `shape` whose unfolding is `matrix`.
at::Tensor fold(const at::Tensor& matrix, int64_t mode, at::IntArrayRef shape);

/// T x_mode A: matrix [J, I_mode] multiplies every fibre of the mode, which gets J elements.
at::Tensor mode_product(const at::Tensor& tensor, const at::Tensor& matrix, int64_t mode);

/// A core and the factors of the modes that were decomposed.
struct Tucker {
  at::Tensor core;                  ///< float64, R_k in decomposed modes, I_k in the others
  std::vector<at::Tensor> factors;  ///< U_k, float64 [I_k, R_k], orthonormal columns, one for each of `modes`
  std::vector<int64_t> modes;       ///< ascending
  /// ||T - T^|| / ||T||, from norms: sqrt(||T||^2 - ||C||^2) / ||T||, so to about 1e-8.
  double relative_error = 0;
  std::vector<double> sweep_errors;  ///< hooi: the relative error after each sweep, non-increasing

  /// C x_1 U_1 ... x_d U_d.
  at::Tensor full() const;
  int64_t parameters() const;
};

/// The order in which `st_hosvd` takes the modes.
enum class TuckerOrder {
  kGiven,             ///< ascending
  kLargestReduction,  ///< the mode with the largest I_k / R_k first: least work
};

/// When `hooi` ends.
struct HooiOptions {
  double tolerance = 1e-4;   ///< on the change of the relative error in a sweep
  int64_t max_sweeps = 100;  ///< at least 1
};

/// Higher-order SVD (De Lathauwer, De Moor, Vandewalle: A Multilinear Singular Value Decomposition, SIAM J.
/// Matrix Anal. Appl. 2000, section 4): U_k are the R_k first left singular vectors of unfold(T, k), by the
/// eigenvectors of its Gram matrix. With tail_k the squared singular values that mode k leaves out,
/// max_k tail_k <= ||T - T^||^2 <= sum_k tail_k, at most d times the least possible.
///
/// tensor: float32 or float64, any number of dimensions from 1. ranks: one for each of `modes`, in [1, I_k].
/// modes: ascending; empty for all. Cost: sum_k I_k numel(T) multiply-adds. Throws InvalidArgument for ranks
/// or modes that do not fit, NumericalError when an element is not finite.
Tucker hosvd(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
             const std::vector<int64_t>& modes = {});

/// Sequentially truncated HOSVD (Vannieuwenhoven, Vandebril, Meerbergen, SIAM J. Sci. Comput. 2012): each
/// mode is cut before the next is looked at, which costs less and keeps the bounds of `hosvd`.
Tucker st_hosvd(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
                const std::vector<int64_t>& modes = {}, TuckerOrder order = TuckerOrder::kGiven);

/// Higher-order orthogonal iteration (De Lathauwer, De Moor, Vandewalle: On the Best Rank-1 and Rank-(R1,
/// ..., RN) Approximation, same journal 2000, algorithm 4.2): from `hosvd`, each U_k in turn is the best one
/// for the others. The error never rises.
Tucker hooi(const at::Tensor& tensor, const std::vector<int64_t>& ranks,
            const std::vector<int64_t>& modes = {}, const HooiOptions& options = {});

}  // namespace lcomp::lowrank
