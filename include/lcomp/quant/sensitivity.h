#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
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

/// Estimates what each of several ways to treat a matrix loses, from a sample of its rows:
///     sum_o s_o (d_o M d_o^T),   d_o = row o of W - W^,
/// each row's loss counting for its stratum. For what M and s may be, see `losses_by_bits`.
///
/// weight: [out, in]. moment: M, [in, in]. row_weights: s, [out]; undefined for 1. `treated(rows, way)`
/// returns those rows of W^ ([rows, in]; the positions are an int64 tensor) for ways 0 ... ways - 1. Throws
/// NumericalError when a loss is not finite, InvalidArgument when row weights or moment have another shape or
/// sampled_rows < 1.
std::vector<double> sampled_losses(
    const at::Tensor& weight, const at::Tensor& moment, const at::Tensor& row_weights, int64_t sampled_rows,
    size_t ways, const std::function<at::Tensor(const at::Tensor& rows, size_t way)>& treated);

/// Estimates what GPTQ would lose at several bit widths without quantizing the whole matrix: for each b
///     sum_o s_o (d_o M d_o^T),   d_o = row o of W - W^_b,
/// where M says which inputs count, and s_o how much output o does. With M = H = sum x x^T and s = 1 that is
/// the error of the outputs. With M = sum_t |g_t|^2 x_t x_t^T and s_o = sum_t g_to^2 / sum_t |g_t|^2, g being
/// the gradients of the model's loss by the outputs, it is the loss's second-order change by the empirical
/// Fisher information, sum_to g_to^2 (d_o x_t)^2, but for the squared gradients being taken as the product of
/// a factor of the token and one of the output. The token's factor matters: attention sinks have the largest
/// inputs and hardly any gradient.
///
/// GPTQ's rows are independent given the factor, so it is run on a sample of rows, and each row's loss counts
/// for its stratum. With as many `sampled_rows` as the matrix has, M = H and s = 1, the result is what `gptq`
/// reports, but for rounding.
///
/// weight: [out, in]. factor: of the inputs' second moment, made by `gptq_factor` with the same scheme and
/// options. scheme.bits is ignored. row_weights: s, [out], not negative; undefined for 1. loss_moment: M,
/// [in, in]; undefined for H. Returns one loss per entry of `bits`; a wider code never loses more than a
/// narrower one (the estimates are made monotone from the wide end). Cost: about 4 sampled_rows in^2 FLOP per
/// width, and in^2 float64 of memory. Throws InvalidArgument as `gptq` does, and when `bits` is not
/// ascending, `sampled_rows` < 1, or row weights or moment have another shape.
std::vector<double> losses_by_bits(const at::Tensor& weight, const GptqFactor& factor,
                                   const QuantScheme& scheme, const std::vector<int64_t>& bits,
                                   const GptqOptions& options = {}, int64_t sampled_rows = 64,
                                   const at::Tensor& row_weights = {}, const at::Tensor& loss_moment = {},
                                   ThreadPool* pool = nullptr);

}  // namespace lcomp::quant
