#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/core/threads.h"

namespace lcomp::lowrank {

struct MorphteOptions {
  int64_t rank = 8;         ///< tables
  int64_t q = 0;            ///< length of a morpheme's vector; 0 for the least with q^order >= columns
  int64_t sweeps = 40;      ///< of alternating least squares, at most
  double tolerance = 1e-5;  ///< a sweep that lowers the relative error by less is the last
  uint64_t seed = 0;        ///< of the start
};

struct MorphteFit {
  at::Tensor tables;                 ///< float32 [rank, morphemes, q], what MorphemeWeight stores
  double relative_error = 0;         ///< sqrt(sum_j f_j ||E_j - E^_j||^2 / sum_j f_j ||E_j||^2)
  std::vector<double> sweep_errors;  ///< the same at the start and after each sweep; the tables are the best
};

/// Fits the tables of a MorphemeWeight (morpheme_weight.h; MorphTE, Gan et al., NeurIPS 2022) to an embedding
/// E [vocabulary, dim] that is there already:
///
///     min sum_j f_j ||E_j - sum_i F_i[I_j1] (x) ... (x) F_i[I_jn]||^2
///
/// by alternating least squares over morphemes, which the paper, training from scratch, has no need of. For
/// the vectors of one morpheme the problem is linear, and its normal matrix is [rank, rank]: the products of
/// what the other vectors of a word make with each other, summed over the words that have it. Morphemes that
/// no word has together are solved for at the same time. The error never rises, except
/// maybe by the step for a morpheme that a word has twice, which is that of a linear problem and bounded from
/// above; the best tables are kept. The start is normal
/// random, at a scale at which products have the spread of E.
///
/// table: floating-point. index: int32 [vocabulary, order] in [0, morphemes), order 1 to 8. row_weights: f,
/// undefined for 1, or [vocabulary], such as frequencies; a row of weight 0 is left out. Arithmetic of rows
/// is in float32, sums over them and solving in float64: order x (2 rank q^order + order rank^2 q)
/// multiply-adds per word and sweep, at least. The result is the same at any number of threads. Throws
/// InvalidArgument for options, an index or weights that do not fit, NumericalError when an element is not
/// finite, Interrupted when the observer asks for it.
MorphteFit fit_morphte(const at::Tensor& table, const at::Tensor& index, int64_t morphemes,
                       const MorphteOptions& options, const at::Tensor& row_weights = {},
                       ThreadPool* pool = nullptr, Observer* observer = nullptr);

}  // namespace lcomp::lowrank
