#pragma once

#include <ATen/core/Tensor.h>

namespace lcomp::sparse {

/// What each weight of a matrix [out, in] counts for, so that the least can go (`select_kept`). All return
/// float64 [out, in]; weights of any floating-point type.

/// |w|.
at::Tensor magnitude(const at::Tensor& weight);

/// |w_ij| sqrt(H_jj): Wanda (Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large
/// Language Models, ICLR 2024, section 3). Its square is what removing this weight alone adds to tr(D H D^T).
/// diagonal: [in], diag(H) of H = sum x x^T, any positive factor.
at::Tensor wanda(const at::Tensor& weight, const at::Tensor& diagonal);

/// (|w_ij| / sum_i' |w_i'j| + |w_ij| / sum_j' |w_ij'|) H_jj^(power / 2): RIA (Zhang, Bai, Lin, Zhao, Hou,
/// Cannistraci: Plug-and-Play: An Efficient Post-training Pruning Method for Large Language Models, ICLR
/// 2024, section 3.1): no row or column loses all of its weights. Columns and rows of zeros count 0.
at::Tensor relative_importance(const at::Tensor& weight, const at::Tensor& diagonal, double power = 0.5);

/// h_ij w_ij^2 / 2: Optimal Brain Damage (LeCun, Denker, Solla, NIPS 1989, eq. 5), what removing a weight
/// adds to a loss of which h is the diagonal of the second derivatives. curvature: [out, in], such as the
/// squared gradients of the model's loss (Fisher information), or [in], such as 2 diag(H).
at::Tensor optimal_brain_damage(const at::Tensor& weight, const at::Tensor& curvature);

}  // namespace lcomp::sparse
