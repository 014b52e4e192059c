#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"

namespace lcomp::sparse {

struct RefitResult {
  at::Tensor weight;              ///< float64 [out, in], 0 where nothing is kept
  int64_t rows_as_they_were = 0;  ///< rows whose equations had no Cholesky factor: only masked
};

/// The best values of the weights that a mask keeps: with A = H + diag(added), each row w minimises
///     (w - v) A (w - v)^T   over v that are 0 outside of the row's kept set S,    A_SS v_S = A_S: w
/// exactly, by a Cholesky factor per row (Hassibi and Stork 1992 give the same for one removed weight).
///
/// weight: [out, in]. second_moment: H [in, in], float32 or float64, symmetric. added: [in], such as
/// `DampedInverse::added`; empty for none. kept: bool [out, in].
/// Cost |S|^3 / 3 FLOP per row: at half of 1536 columns 0.15 GFLOP. The result is the same at any number of
/// threads. Throws InvalidArgument for shapes that do not fit.
RefitResult refit(const at::Tensor& weight, const at::Tensor& second_moment, const std::vector<double>& added,
                  const at::Tensor& kept, ThreadPool* pool = nullptr);

}  // namespace lcomp::sparse
