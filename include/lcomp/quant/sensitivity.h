#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// A few rows that stand for all rows of a matrix: rows sorted by energy are cut into strata of nearly equal
/// size, and the middle row of each stands for the rows of its stratum.
struct RowSample {
  std::vector<int64_t> rows;    ///< ascending by energy
  std::vector<double> weights;  ///< rows that each stands for; they sum to the number of rows
};

/// `energies`: one number per row. All rows, each for itself, when there are no more than `count`.
RowSample sample_rows(const std::vector<double>& energies, int64_t count);

/// Estimates what GPTQ would lose at several bit widths, tr((W - W^_b) H (W - W^_b)^T) for each b, without
/// quantizing the whole matrix. GPTQ's rows are independent given the factor, so it is run on a sample of
/// rows, and each row's loss counts for its stratum. With as many `sampled_rows` as the matrix has, the
/// result is what `gptq` reports, but for rounding.
///
/// weight: [out, in]. factor: of the inputs' second moment, made by `gptq_factor` with the same scheme and
/// options. scheme.bits is ignored. Returns one loss per entry of `bits`; a wider code never loses more than
/// a narrower one (the estimates are made monotone from the wide end). Cost: about 4 sampled_rows in^2 FLOP
/// per width, and in^2 float64 of memory. Throws InvalidArgument as `gptq` does, and when `bits` is not
/// ascending or `sampled_rows` < 1.
std::vector<double> losses_by_bits(const at::Tensor& weight, const GptqFactor& factor,
                                   const QuantScheme& scheme, const std::vector<int64_t>& bits,
                                   const GptqOptions& options = {}, int64_t sampled_rows = 64,
                                   ThreadPool* pool = nullptr);

}  // namespace lcomp::quant
