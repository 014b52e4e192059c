#include "lcomp/quant/column_loop.h"

#include <cblas.h>

#include <algorithm>

#include "quant/panel_kernels.h"

namespace lcomp::quant {
namespace {

/// Columns whose errors are applied one by one; the panel's segment (24 KB) stays in the first-level cache.
constexpr int64_t kSegment = 32;

/// `last` moved back to a boundary of `size` columns, unless that leaves nothing.
int64_t whole(int64_t first, int64_t last, int64_t size) {
  const int64_t boundary = last / size * size;
  return boundary > first ? boundary : last;
}

int64_t segment_end(int64_t first, int64_t block_last, int64_t group_size, int64_t unit_size) {
  int64_t last = std::min(first + std::max(kSegment, unit_size), block_last);
  if (group_size > 0) last = std::min(last, (first / group_size + 1) * group_size);
  return last == block_last ? last : whole(first, last, unit_size);
}

/// Columns [first, last), each after the errors of those before it in the segment.
void run_segment(double* panel, int64_t n, const double* upper, int64_t first, int64_t last,
                 ColumnPolicy& policy, double* row_loss) {
  alignas(64) double decoded[kPanelRows];
  const int64_t unit = policy.unit_size();
  const auto bring_up_to_date = [&](int64_t column, int64_t from, int64_t to) {
    kernels::subtract_products(panel + from * kPanelRows, to - from, upper + from * n + column, n,
                               panel + column * kPanelRows);
  };
  for (int64_t u = first; u < last; u += unit) {
    const int64_t end = std::min(u + unit, last);
    for (int64_t j = u; j < end; ++j) bring_up_to_date(j, first, u);
    if (unit > 1) policy.begin_unit(u, panel + u * kPanelRows);
    for (int64_t i = u; i < end; ++i) {
      double* values = panel + i * kPanelRows;
      bring_up_to_date(i, u, i);
      policy.encode(i, values, decoded);
      kernels::scaled_error(decoded, upper[i * n + i], values, row_loss);
    }
  }
}

/// W[:, to..end) -= E[:, from..to') U[from..to', to..end), with the panel as a column-major matrix.
void apply_errors(double* panel, int64_t n, const double* upper, int64_t from, int64_t count, int64_t to,
                  int64_t end) {
  if (to >= end) return;
  cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, static_cast<int>(kPanelRows),
              static_cast<int>(end - to), static_cast<int>(count), -1.0, panel + from * kPanelRows,
              static_cast<int>(kPanelRows), upper + from * n + to, static_cast<int>(n), 1.0,
              panel + to * kPanelRows, static_cast<int>(kPanelRows));
}

}  // namespace

int64_t block_end(int64_t first, int64_t n, int64_t block_size, const ColumnPolicy& policy) {
  const int64_t last = std::min(first + std::max(block_size, policy.unit_size()), n);
  if (last == n) return last;
  // Whoever fits a group must find all of its columns up to date.
  const int64_t group = std::max<int64_t>(policy.group_size(), 1);
  return whole(first, whole(first, last, group), policy.unit_size());
}

//        i1  s1  s2   i2                 n
//   -----+---+---+----+------------------+
//     E  | E | . |    |                  |    . the running segment, column by column
//   -----+---+---+----+------------------+
//              \____/ \_________________/
//        after a segment    after a block
void compensate_block(double* panel, int64_t n, const double* upper, int64_t first, int64_t last,
                      ColumnPolicy& policy, double* row_loss) {
  const int64_t group_size = policy.group_size(), unit_size = policy.unit_size();
  policy.begin_block(first, last, panel + first * kPanelRows);
  for (int64_t s1 = first, s2 = 0; s1 < last; s1 = s2) {
    s2 = segment_end(s1, last, group_size, unit_size);
    if (group_size > 0 && s1 % group_size == 0) policy.begin_group(s1, panel + s1 * kPanelRows);
    run_segment(panel, n, upper, s1, s2, policy, row_loss);
    apply_errors(panel, n, upper, s1, s2 - s1, s2, last);
  }
  apply_errors(panel, n, upper, first, last - first, last, n);
}

void compensate(double* panel, int64_t n, const double* upper, int64_t block_size, ColumnPolicy& policy,
                double* row_loss) {
  for (int64_t i1 = 0, i2 = 0; i1 < n; i1 = i2) {
    i2 = block_end(i1, n, block_size, policy);
    compensate_block(panel, n, upper, i1, i2, policy, row_loss);
  }
}

void compensate_unblocked(double* panel, int64_t n, const double* upper, ColumnPolicy& policy,
                          double* row_loss) {
  alignas(64) double decoded[kPanelRows];
  const int64_t group_size = policy.group_size();
  for (int64_t i = 0; i < n; ++i) {
    double* values = panel + i * kPanelRows;
    policy.begin_block(i, i + 1, values);
    if (group_size > 0 && i % group_size == 0) policy.begin_group(i, values);
    if (policy.unit_size() > 1 && i % policy.unit_size() == 0) policy.begin_unit(i, values);
    policy.encode(i, values, decoded);
    kernels::scaled_error(decoded, upper[i * n + i], values, row_loss);
    for (int64_t j = i + 1; j < n; ++j) {
      kernels::subtract_products(values, 1, upper + i * n + j, n, panel + j * kPanelRows);
    }
  }
}

}  // namespace lcomp::quant
