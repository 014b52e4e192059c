#pragma once

#include <cstdint>

namespace lcomp::quant {

/// What a method decides about the columns of a panel while `compensate` walks over them. The panel layout is
/// that of `quant/panel.h`: `values` points at a column of rows in contiguous memory, the next column
/// follows. Columns are numbered in the order of the walk.
class ColumnPolicy {
 public:
  virtual ~ColumnPolicy() = default;

  /// Columns of a group that `begin_group` must see up to date when its first column is reached; 0 for none.
  virtual int64_t group_size() const { return 0; }

  /// Called when the walk enters columns [first, last); they and all after them are up to date.
  virtual void begin_block(int64_t /*first*/, int64_t /*last*/, const double* /*values*/) {}

  /// Called when column `first`, a multiple of `group_size()`, is reached; it and the group's others are up
  /// to date.
  virtual void begin_group(int64_t /*first*/, const double* /*values*/) {}

  /// Columns that `begin_unit` must see up to date together, such as the M of an N:M pattern; 1 for none.
  virtual int64_t unit_size() const { return 1; }

  /// Called when column `first`, a multiple of `unit_size()`, is reached; it and the unit's others are up to
  /// date.
  virtual void begin_unit(int64_t /*first*/, const double* /*values*/) {}

  /// Chooses what column `column` becomes, given its current `values`.
  virtual void encode(int64_t column, const double* values, double* decoded) = 0;
};

/// The walk that GPTQ and SparseGPT share (Frantar 2022, algorithm 1): for every column i, in order,
///     q = encode(w_i),   e = (w_i - q) / U_ii,   w_j -= e U_ij for all j > i.
/// With H^-1 = U^T U this leaves, after each step, the remaining columns at the minimum of tr(D H D^T), and
/// sum e^2 = tr(D H D^T) at the end, D being original minus chosen.
///
/// panel: n columns of kPanelRows float64; on return column i holds e. upper: U, row-major [n, n].
/// row_loss: kPanelRows sums of e^2, added to. One panel costs 2 n^2 kPanelRows FLOP, nearly all in GEMM:
/// errors are applied at once within 32 columns, by GEMM within `block_size`, and by GEMM to the rest after
/// each block. Nothing but rounding depends on block_size. BLAS must be single-threaded (a ThreadPool sees to
/// that).
void compensate(double* panel, int64_t n, const double* upper, int64_t block_size, ColumnPolicy& policy,
                double* row_loss);

/// Where the block of the walk that begins at column `first` ends: at most `block_size` columns on, and no
/// group or unit of the policy is cut in two.
int64_t block_end(int64_t first, int64_t n, int64_t block_size, const ColumnPolicy& policy);

/// One block of the walk, columns [first, last) with `last` from `block_end`: for methods that look at all
/// panels before each block.
void compensate_block(double* panel, int64_t n, const double* upper, int64_t first, int64_t last,
                      ColumnPolicy& policy, double* row_loss);

/// The same walk without blocks, column by column: the form to read, and the reference of the tests.
void compensate_unblocked(double* panel, int64_t n, const double* upper, ColumnPolicy& policy,
                          double* row_loss);

}  // namespace lcomp::quant
