#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "quant/panel.h"

namespace lcomp::quant {

/// A = H + diag(added), rows and columns in an order of their own. Rows are made in float64 when asked for:
/// a copy of the whole would be the largest thing in memory.
class DampedMoment {
 public:
  /// h: float32 or float64 [n, n], symmetric. added: [n] in the plain order, or empty. order: empty for the
  /// plain one.
  DampedMoment(const at::Tensor& h, std::vector<double> added, std::vector<int64_t> order);

  int64_t size() const { return n_; }
  const std::vector<int64_t>& order() const { return order_; }
  /// What was added to the i-th diagonal element, in the order.
  double added(int64_t i) const { return added_.empty() ? 0 : added_[static_cast<size_t>(column(i))]; }
  /// Rows [first, first + count) of A, row-major [count, n].
  void rows(int64_t first, int64_t count, double* out) const;

 private:
  int64_t column(int64_t i) const { return order_.empty() ? i : order_[static_cast<size_t>(i)]; }
  template <class T>
  void copy_rows(const T* h, int64_t first, int64_t count, double* out) const;

  at::Tensor h_;
  int64_t n_;
  std::vector<double> added_;
  std::vector<int64_t> order_;
};

/// Losses of one row: d A d^T of what was loaded and of what is there now, and d H d^T of the latter.
struct RowLosses {
  double start = 0;
  double damped = 0;
  double plain = 0;
};

/// The rows of one panel on their way to a smaller loss (`refine`); column j is column order[j] of the
/// matrix, so that the columns of a group follow each other.
class PanelRefiner {
 public:
  PanelRefiner(const DampedMoment& moment, const QuantScheme& scheme, at::ScalarType scale_type);

  /// `kept`: undefined, or bool [out, in]: where it is false the code stays.
  void load(const at::Tensor& target, const at::Tensor& codes, const Grid& grid, const at::Tensor& kept,
            int64_t first_row);
  /// Measures the loss; with `refit` refits the scales in the same go. Comes first.
  void begin(bool refit);
  /// Exact refit of all scales of each row.
  void refit();
  /// One pass over the codes; with `scales` each group's scale is refitted before its codes.
  void sweep(bool scales);
  void store(int64_t first_row, at::Tensor& codes, Grid& grid) const;

  RowLosses losses(int64_t row) const;

 private:
  /// Columns [first, last) that are visited together, whole groups where groups fit in.
  struct Block {
    int64_t first = 0;
    int64_t last = 0;
  };

  bool scales_are_per_row() const { return scheme_.granularity != Granularity::kTensor; }
  int64_t group_of(int64_t column) const { return column / width_; }
  double* at(std::vector<double>& panel, int64_t column) const { return panel.data() + column * kPanelRows; }
  void measure();
  void product_with_rows(const Block& block);
  void take_levels();
  void normal_equations();
  void solve_row(int64_t row);
  void visit_group(const Block& block, const Block& group, bool scales);
  void refit_group(const Block& block, const Block& group);
  void round_columns(const Block& block, const Block& group);
  void round_column(const Block& block, int64_t first, int64_t column);
  void apply_moves(const std::vector<double>& moves, const Block& block, int64_t from, int64_t to,
                   int64_t end);

  const DampedMoment& moment_;
  QuantScheme scheme_;
  at::ScalarType scale_type_;
  int64_t n_;
  int64_t width_;  // columns of a group
  int64_t groups_;
  PanelGrid grid_;
  std::vector<int8_t> codes_;
  std::vector<double> kept_;    // 1 or 0; empty when all codes may change
  std::vector<double> value_;   // w^
  std::vector<double> error_;   // w - w^
  std::vector<double> levels_;  // w^ / s
  std::vector<double> slope_;   // (D A) of the block's columns
  std::vector<double> change_;  // of w^ since the block was entered
  std::vector<double> moves_;   // of w^ by codes, in the group at hand
  std::vector<double> product_;
  std::vector<double> rows_;    // of A: those of the block
  std::vector<double> normal_;  // M, element (g, k) of row r at (g G + k) kPanelRows + r; k >= g only
  std::vector<double> right_;   // r
  double start_[kPanelRows] = {};
  double loss_[kPanelRows] = {};
};

}  // namespace lcomp::quant
