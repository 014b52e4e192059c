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

/// Estimates what GPTQ would lose at several bit widths without quantizing the whole matrix: for each b
///     sum_o s_o (d_o H d_o^T),   d_o = row o of W - W^_b,
/// where s_o says how much the model's loss cares about output o. GPTQ's rows are independent given the
/// factor, so it is run on a sample of rows, and each row's loss counts for its stratum. With as many
/// `sampled_rows` as the matrix has and s = 1, the result is what `gptq` reports, but for rounding.
///
/// weight: [out, in]. factor: of the inputs' second moment, made by `gptq_factor` with the same scheme and
/// options. scheme.bits is ignored. row_weights: s, [out], not negative; undefined for 1. Returns one loss
/// per entry of `bits`; a wider code never loses more than a narrower one (the estimates are made monotone
/// from the wide end). Cost: about 4 sampled_rows in^2 FLOP per width, and in^2 float64 of memory. Throws
/// InvalidArgument as `gptq` does, and when `bits` is not ascending, `sampled_rows` < 1, or the row weights
/// have another shape.
std::vector<double> losses_by_bits(const at::Tensor& weight, const GptqFactor& factor,
                                   const QuantScheme& scheme, const std::vector<int64_t>& bits,
                                   const GptqOptions& options = {}, int64_t sampled_rows = 64,
                                   const at::Tensor& row_weights = {}, ThreadPool* pool = nullptr);

/// How much the loss cares about each output of an operator: s_o = sum_i F_oi / sum_i H_ii, with F the
/// squared gradients of the loss by the weights, [out, in], and H the second moment of the inputs. A gradient
/// by w_oi is that by the output times the input, so this estimates the mean square of the gradient by output
/// o: the Fisher information is taken as the Kronecker product of diag(s) and H (Martens and Grosse, ICML
/// 2015, section 3, with the output factor's diagonal only). Inputs that never fire give zeros. Returns
/// float64 [out].
at::Tensor output_sensitivity(const at::Tensor& gradient_squares, const at::Tensor& second_moment);

}  // namespace lcomp::quant
