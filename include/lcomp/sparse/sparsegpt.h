#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/sparse/sparsity.h"

namespace lcomp::sparse {

struct SparseGptOptions {
  int64_t block_size = 128;
  double damping = 0.01;
  bool refit = false;
  bool strict = false;

  void visit(FieldVisitor& v);
};

struct SparseGptResult {
  at::Tensor weight;                                ///< float32 [out, in], 0 where nothing is kept
  at::Tensor kept;                                  ///< bool [out, in]
  std::optional<quant::QuantizedWeight> quantized;  ///< the same on the grid that was asked for
  double damped_loss = 0;  ///< tr(D (H + diag(d)) D^T), D = W - W^ with dead columns at 0
  double walk_loss = 0;    ///< the same before the refit: sum e^2 of the walk
  double loss = 0;         ///< tr(D H D^T)
  double masked_loss =
      0;  ///< the same with Wanda's mask and nothing else changed; NaN when there is no factor
  linalg::Rung rung = linalg::Rung::kFailed;
  double damping = 0;
  int64_t dead_columns = 0;
  bool fell_back = false;  ///< the result is Wanda's: no factor, or it lost less
};

/// Throws Unsupported or InvalidArgument for a grid (null: none) that pruned weights cannot lie on, or that
/// excludes the options: before any matrix is there.
void check_sparse_grid(const Sparsity& sparsity, const SparseGptOptions& options,
                       const quant::QuantScheme* scheme);

/// SparseGPT: removes weights and moves what each removal loses into the columns to the right, so that the
/// outputs change least,
///     min over masks and values of tr((W - W^) H (W - W^)^T),   H = sum x x^T,
/// along GPTQ's walk over the columns. Frantar, Alistarh: SparseGPT: Massive Language Models Can be
/// Accurately Pruned in One-Shot, ICML 2023, algorithm 1. What goes is decided by w^2 / U_jj^2 of the weights
/// as compensated so far:
///   N:M           for M columns when the walk reaches them;
///   unstructured  for `block_size` columns when the walk enters them; scores compete over all rows (scope
///   tensor, as
///                 the paper) or within each row (scope row). Every block of columns loses the same share.
/// With a `scheme` kept weights are rounded to its grid in the same walk (section 3.5), which makes up for
/// both. Without one they are rounded to `stored`, and the walk makes up for that too.
///
/// `refit` then sets the kept weights to the least squares of the mask (`sparse::refit`), which the walk,
/// that only looks to the right, does not reach; it cannot be had on a grid.
///
/// weight: [out, in], any floating-point type; not changed. factor: of H, made by `quant::gptq_factor` in the
/// plain order of columns, with the damping of the options. A grid must have 0 among its points. Cost 2 out
/// in^2 FLOP; memory: a float64 copy of the matrix. N:M: a row's result depends on nothing but that row. The
/// result is the same at any number of threads. Errors: InvalidArgument for shapes, patterns and options that
/// do not fit; Unsupported for a grid without 0. Without a factor, or where that loses less, the result is
/// Wanda's mask on unchanged (or rounded) weights; with `strict` NumericalError.
SparseGptResult sparsegpt(const at::Tensor& weight, const quant::GptqFactor& factor, const Sparsity& sparsity,
                          const SparseGptOptions& options = {}, const quant::QuantScheme* scheme = nullptr,
                          at::ScalarType stored = at::kFloat, ThreadPool* pool = nullptr);

/// The same from the second moment [in, in].
SparseGptResult sparsegpt(const at::Tensor& weight, const at::Tensor& second_moment, const Sparsity& sparsity,
                          const SparseGptOptions& options = {}, const quant::QuantScheme* scheme = nullptr,
                          at::ScalarType stored = at::kFloat, ThreadPool* pool = nullptr);

}  // namespace lcomp::sparse
