#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace lcomp::lowrank {

/// The bases that all heads of an attention share.
struct HeadBases {
  at::Tensor hidden;          ///< U_1, float64 [hidden, R_1], orthonormal columns
  at::Tensor head;            ///< U_2, float64 [head_dim, R_2], orthonormal columns
  double relative_error = 0;  ///< of the projections on both, ||T - T^|| / ||T||
};

/// Multi-head Tucker decomposition of an attention (TensorLLM: Gu et al., IJCNN 2025, section 3.2): the heads
/// of q, k, v and, transposed, of o are slices [hidden, head_dim] of one tensor, which is cut in these two
/// modes and not in that of the heads,
///     W_i ~ U_1 C_i U_2^T,
/// so each head keeps a core C_i [R_1, R_2] of its own. The paper stacks the four projections of a head in a
/// mode of their own; side by side with the heads they need not be equally many, as grouped queries demand.
///
/// slices: matrices [heads x head_dim, hidden] of any numbers of heads. Bases by `hooi`. Throws
/// InvalidArgument for shapes and ranks that do not fit.
HeadBases head_bases(const std::vector<at::Tensor>& slices, int64_t head_dim, int64_t hidden_rank,
                     int64_t head_rank);

/// [heads x head_dim, n] -> [heads x R_2, n]: every head's rows by U_2^T.
at::Tensor heads_projected(const at::Tensor& weight, const at::Tensor& head_basis);

}  // namespace lcomp::lowrank
