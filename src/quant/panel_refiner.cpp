#include "quant/panel_refiner.h"

#include <ATen/ATen.h>
#include <cblas.h>

#include <algorithm>
#include <cmath>

#include "lcomp/linalg/cholesky.h"
#include "quant/range.h"

namespace lcomp::quant {
namespace {

/// Columns whose slopes come from one product; groups of more columns are visited in parts.
constexpr int64_t kBlock = 64;
constexpr int64_t kWidestGroup = 128;
/// Columns whose moves are applied one by one.
constexpr int64_t kSweepColumns = 32;
/// Rows of more groups skip the exact refit, whose matrices would take more than 50 MB a thread.
constexpr int64_t kMostGroups = 256;
/// Relative to the mean diagonal of the normal equations: groups that hardly count stay solvable.
constexpr double kRidge = 1e-9;

constexpr int kRows = static_cast<int>(kPanelRows);

}  // namespace

DampedMoment::DampedMoment(const at::Tensor& h, std::vector<double> added, std::vector<int64_t> order)
    : h_(h.contiguous()), n_(h.size(0)), added_(std::move(added)), order_(std::move(order)) {}

template <class T>
void DampedMoment::copy_rows(const T* h, int64_t first, int64_t count, double* out) const {
  for (int64_t i = 0; i < count; ++i) {
    const T* row = h + column(first + i) * n_;
    double* to = out + i * n_;
    if (order_.empty()) {
      for (int64_t j = 0; j < n_; ++j) to[j] = static_cast<double>(row[j]);
    } else {
      for (int64_t j = 0; j < n_; ++j) to[j] = static_cast<double>(row[order_[static_cast<size_t>(j)]]);
    }
    to[first + i] += added(first + i);
  }
}

void DampedMoment::rows(int64_t first, int64_t count, double* out) const {
  if (h_.scalar_type() == at::kDouble) {
    copy_rows(h_.data_ptr<double>(), first, count, out);
  } else {
    copy_rows(h_.data_ptr<float>(), first, count, out);
  }
}

PanelRefiner::PanelRefiner(const DampedMoment& moment, const QuantScheme& scheme, at::ScalarType scale_type)
    : moment_(moment),
      scheme_(scheme),
      scale_type_(scale_type),
      n_(moment.size()),
      width_(scheme.columns_per_group(n_)),
      groups_(scheme.groups(n_)),
      grid_(scheme, scale_type, groups_) {
  const auto panel = static_cast<size_t>(n_ * kPanelRows);
  codes_.resize(panel);
  for (std::vector<double>* p : {&value_, &error_, &levels_, &product_}) p->resize(panel);
  const auto block = static_cast<size_t>(kWidestGroup * kPanelRows);
  for (std::vector<double>* p : {&slope_, &change_, &moves_}) p->resize(block);
  rows_.resize(static_cast<size_t>(kWidestGroup * n_));
}

void PanelRefiner::load(const at::Tensor& target, const at::Tensor& codes, const Grid& grid,
                        const at::Tensor& kept, int64_t first_row) {
  if (kept.defined()) {
    kept_.resize(codes_.size());
    load_panel(kept, first_row, moment_.order(), kept_.data());
  }
  load_panel(target, first_row, moment_.order(), error_.data());
  load_panel(codes, first_row, moment_.order(), levels_.data());
  std::transform(levels_.begin(), levels_.end(), codes_.begin(),
                 [](double code) { return static_cast<int8_t>(code); });
  const at::Tensor rows = codes.narrow(0, first_row, std::min(kPanelRows, codes.size(0) - first_row));
  load_panel(code_values(rows, scheme_.format, at::kDouble), 0, moment_.order(), value_.data());
  grid_.load(grid, first_row);
  for (int64_t j = 0; j < n_; ++j) {
    const double* scale = grid_.scale(group_of(j));
    const double* zero = grid_.zero(group_of(j));
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const auto i = static_cast<size_t>(j * kPanelRows + r);
      value_[i] = (value_[i] - zero[r]) * scale[r];
      error_[i] -= value_[i];
    }
  }
}

/// (D A) of the block's columns, and the block's rows of A, which are its columns too.
void PanelRefiner::product_with_rows(const Block& block) {
  const int64_t count = block.last - block.first;
  moment_.rows(block.first, count, rows_.data());
  cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, kRows, static_cast<int>(count), static_cast<int>(n_),
              1.0, error_.data(), kRows, rows_.data(), static_cast<int>(n_), 0.0, slope_.data(), kRows);
}

/// The loss of what is there: D A D^T, row by row.
void PanelRefiner::measure() {
  std::fill(loss_, loss_ + kPanelRows, 0.0);
  for (int64_t first = 0; first < n_; first += kBlock) {
    const Block block{first, std::min(first + kBlock, n_)};
    product_with_rows(block);
    for (int64_t j = block.first; j < block.last; ++j) {
      const double* slope = at(slope_, j - block.first);
      const double* error = at(error_, j);
      for (int64_t r = 0; r < kPanelRows; ++r) loss_[r] += slope[r] * error[r];
    }
  }
}

void PanelRefiner::begin(bool refit) {
  if (refit && scales_are_per_row() && groups_ <= kMostGroups) {
    normal_equations();
    std::copy(loss_, loss_ + kPanelRows, start_);
    for (int64_t r = 0; r < kPanelRows; ++r) solve_row(r);
  } else {
    measure();
    std::copy(loss_, loss_ + kPanelRows, start_);
  }
}

void PanelRefiner::refit() {
  if (!scales_are_per_row() || groups_ > kMostGroups) return;
  normal_equations();
  for (int64_t r = 0; r < kPanelRows; ++r) solve_row(r);
}

void PanelRefiner::take_levels() {
  for (int64_t j = 0; j < n_; ++j) {
    const double* scale = grid_.scale(group_of(j));
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const auto i = static_cast<size_t>(j * kPanelRows + r);
      levels_[i] = value_[i] / scale[r];
    }
  }
}

/// M_gk = c_g A_gk c_k^T for k >= g and r_g = c_g (D A)_g, for all rows; on the way the loss.
void PanelRefiner::normal_equations() {
  take_levels();
  normal_.assign(static_cast<size_t>(groups_ * groups_ * kPanelRows), 0.0);
  right_.assign(static_cast<size_t>(groups_ * kPanelRows), 0.0);
  std::fill(loss_, loss_ + kPanelRows, 0.0);
  for (int64_t g = 0; g < groups_; ++g) {
    const int64_t begin = g * width_, end = begin + width_, rest = n_ - begin;
    for (int64_t first = begin; first < end; first += kBlock) {
      const Block block{first, std::min(first + kBlock, end)};
      product_with_rows(block);
      for (int64_t j = block.first; j < block.last; ++j) {
        const double* slope = at(slope_, j - block.first);
        for (int64_t r = 0; r < kPanelRows; ++r) {
          right_[static_cast<size_t>(g * kPanelRows + r)] += at(levels_, j)[r] * slope[r];
          loss_[r] += at(error_, j)[r] * slope[r];
        }
      }
      // c_g A of the columns from this group on.
      cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, kRows, static_cast<int>(rest),
                  static_cast<int>(block.last - block.first), 1.0, at(levels_, block.first), kRows,
                  rows_.data() + begin, static_cast<int>(n_), first == begin ? 0.0 : 1.0, product_.data(),
                  kRows);
    }
    for (int64_t j = begin; j < n_; ++j) {
      double* element = at(normal_, g * groups_ + group_of(j));
      const double* product = at(product_, j - begin);
      const double* level = at(levels_, j);
      for (int64_t r = 0; r < kPanelRows; ++r) element[r] += product[r] * level[r];
    }
  }
}

/// New scales of one row, where they make the loss smaller. With M = L L^T and x the exact solution,
/// |L^T (ds - x)|^2 is what a rounded ds loses: rounding from the last scale to the first, each takes into
/// account what those behind it were rounded by.
void PanelRefiner::solve_row(int64_t row) {
  const auto size = static_cast<size_t>(groups_);
  std::vector<double> m(size * size), x(size), step(size, 0.0), scales(size);
  double trace = 0;
  for (size_t g = 0; g < size; ++g) {
    for (size_t k = g; k < size; ++k) {
      m[k * size + g] = normal_[(g * size + k) * kPanelRows + static_cast<size_t>(row)];
    }
    trace += m[g * size + g];
    x[g] = right_[g * kPanelRows + static_cast<size_t>(row)];
  }
  if (!(trace > 0)) return;
  std::vector<double> lower = m;
  for (size_t g = 0; g < size; ++g) {
    lower[g * size + g] += kRidge * trace / static_cast<double>(size);
  }
  if (linalg::cholesky_lower(lower.data(), groups_, nullptr) != 0) return;
  const int n = static_cast<int>(groups_);
  cblas_dtrsv(CblasRowMajor, CblasLower, CblasNoTrans, CblasNonUnit, n, lower.data(), n, x.data(), 1);
  cblas_dtrsv(CblasRowMajor, CblasLower, CblasTrans, CblasNonUnit, n, lower.data(), n, x.data(), 1);

  for (size_t g = size; g-- > 0;) {
    double ideal = x[g];
    for (size_t k = g + 1; k < size; ++k) {
      ideal -= lower[k * size + g] * (step[k] - x[k]) / lower[g * size + g];
    }
    const double scale = grid_.scale(static_cast<int64_t>(g))[row];
    const double rounded = rounded_scale(scale_type_, scale + ideal);
    const bool taken = m[g * size + g] > 0 && rounded * scale > 0 && std::isfinite(rounded);
    scales[g] = taken ? rounded : scale;
    step[g] = scales[g] - scale;
  }
  double change = 0;
  for (size_t g = 0; g < size; ++g) {
    change -= 2 * step[g] * right_[g * kPanelRows + static_cast<size_t>(row)];
    for (size_t k = 0; k <= g; ++k) change += (k < g ? 2 : 1) * step[g] * step[k] * m[g * size + k];
  }
  if (!(change < 0)) return;
  loss_[row] += change;
  for (int64_t j = 0; j < n_; ++j) {
    const auto i = static_cast<size_t>(j * kPanelRows + row);
    const double moved = step[static_cast<size_t>(group_of(j))] * levels_[i];
    value_[i] += moved;
    error_[i] -= moved;
  }
  for (size_t g = 0; g < size; ++g) grid_.scale(static_cast<int64_t>(g))[row] = scales[g];
}

void PanelRefiner::sweep(bool scales) {
  const int64_t step = width_ > kWidestGroup ? kBlock : width_ * std::max<int64_t>(1, kBlock / width_);
  for (int64_t first = 0; first < n_; first += step) {
    const Block block{first, std::min(first + step, n_)};
    product_with_rows(block);
    for (int64_t g = block.first; g < block.last;) {
      const int64_t end = std::min(g + width_, block.last);
      visit_group(block, {g, end}, scales && scales_are_per_row() && end - g == width_);
      g = end;
    }
  }
}

void PanelRefiner::visit_group(const Block& block, const Block& group, bool scales) {
  apply_moves(change_, block, block.first, group.first, group.last);
  std::fill(at(change_, group.first - block.first), at(change_, group.last - block.first), 0.0);
  if (scales) refit_group(block, group);
  round_columns(block, group);
}

/// Slopes of the columns [to, end) after columns [from, to) of w^ moved.
void PanelRefiner::apply_moves(const std::vector<double>& moves, const Block& block, int64_t from, int64_t to,
                               int64_t end) {
  if (from >= to || to >= end) return;
  cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, kRows, static_cast<int>(end - to),
              static_cast<int>(to - from), -1.0, moves.data() + (from - block.first) * kPanelRows, kRows,
              rows_.data() + (from - block.first) * n_ + to, static_cast<int>(n_), 1.0,
              at(slope_, to - block.first), kRows);
}

/// The best scale of the group for its codes, all else fixed.
void PanelRefiner::refit_group(const Block& block, const Block& group) {
  const int64_t count = group.last - group.first, g = group_of(group.first);
  const int columns = static_cast<int>(count);
  double* scale = grid_.scale(g);
  double* levels = at(levels_, group.first);
  for (int64_t i = 0; i < count * kPanelRows; ++i)
    levels[i] = at(value_, group.first)[i] / scale[i % kPanelRows];
  cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, kRows, columns, columns, 1.0, levels, kRows,
              rows_.data() + (group.first - block.first) * n_ + group.first, static_cast<int>(n_), 0.0,
              product_.data(), kRows);
  double along[kPanelRows] = {}, curvature[kPanelRows] = {}, step[kPanelRows] = {};
  double* slope = at(slope_, group.first - block.first);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      along[r] += levels[j * kPanelRows + r] * slope[j * kPanelRows + r];
      curvature[r] += levels[j * kPanelRows + r] * at(product_, j)[r];
    }
  }
  for (int64_t r = 0; r < kPanelRows; ++r) {
    if (!(curvature[r] > 0)) continue;
    const double rounded = rounded_scale(scale_type_, scale[r] + along[r] / curvature[r]);
    if (!(rounded * scale[r] > 0) || !std::isfinite(rounded)) continue;
    const double tried = rounded - scale[r];
    const double change = tried * tried * curvature[r] - 2 * tried * along[r];
    if (!(change < 0)) continue;
    step[r] = tried;
    scale[r] = rounded;
    loss_[r] += change;
  }
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const double moved = step[r] * levels[j * kPanelRows + r];
      at(value_, group.first + j)[r] += moved;
      at(error_, group.first + j)[r] -= moved;
      at(change_, group.first - block.first + j)[r] = moved;
      slope[j * kPanelRows + r] -= step[r] * at(product_, j)[r];
    }
  }
}

void PanelRefiner::round_columns(const Block& block, const Block& group) {
  for (int64_t s1 = group.first; s1 < group.last; s1 += kSweepColumns) {
    const int64_t s2 = std::min(s1 + kSweepColumns, group.last);
    for (int64_t j = s1; j < s2; ++j) round_column(block, s1, j);
    apply_moves(moves_, block, s1, s2, group.last);
  }
}

/// The best code of one column, given that columns [first, column) have moved since the slopes were up to
/// date.
void PanelRefiner::round_column(const Block& block, int64_t first, int64_t column) {
  const int64_t local = column - block.first;
  double* slope = at(slope_, local);
  const double* row = rows_.data() + (first - block.first) * n_ + column;
  kernels::subtract_products(at(moves_, first - block.first), column - first, row, n_, slope);
  const double curvature = rows_[static_cast<size_t>(local * n_ + column)];
  double* value = at(value_, column);
  if (!(curvature > 0)) {  // an input that never fired: any code is as good
    std::fill(at(moves_, local), at(moves_, local + 1), 0.0);
    return;
  }
  double wanted[kPanelRows], decoded[kPanelRows];
  for (int64_t r = 0; r < kPanelRows; ++r) wanted[r] = value[r] + slope[r] / curvature;
  int8_t* codes = codes_.data() + column * kPanelRows;
  int8_t before[kPanelRows];
  std::copy(codes, codes + kPanelRows, before);
  grid_.encode(group_of(column), wanted, codes, decoded);
  for (int64_t r = 0; r < kPanelRows && !kept_.empty(); ++r) {
    if (at(kept_, column)[r] != 0) continue;
    codes[r] = before[r];
    decoded[r] = value[r];
  }
  double* error = at(error_, column);
  double* move = at(moves_, local);
  double* change = at(change_, local);
  for (int64_t r = 0; r < kPanelRows; ++r) {
    move[r] = decoded[r] - value[r];
    loss_[r] += move[r] * (move[r] * curvature - 2 * slope[r]);
    value[r] = decoded[r];
    error[r] -= move[r];
    change[r] += move[r];
  }
}

void PanelRefiner::store(int64_t first_row, at::Tensor& codes, Grid& grid) const {
  store_codes(codes_, first_row, moment_.order(), codes);
  if (scales_are_per_row()) grid_.store(first_row, grid);
}

RowLosses PanelRefiner::losses(int64_t row) const {
  double damping = 0;
  for (int64_t j = 0; j < n_; ++j) {
    const double d = error_[static_cast<size_t>(j * kPanelRows + row)];
    damping += moment_.added(j) * d * d;
  }
  return {start_[row], loss_[row], loss_[row] - damping};
}

}  // namespace lcomp::quant
