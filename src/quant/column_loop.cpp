#include "lcomp/quant/column_loop.h"

#include <cblas.h>

#include <algorithm>

#include "quant/panel_kernels.h"

namespace lcomp::quant {
namespace {

/// Columns whose errors are applied one by one; the panel's segment (24 KB) stays in the first-level cache.
constexpr int64_t kSegment = 32;

/// Where the block that begins at `first` ends. A block that would cut a group in two ends before that group,
/// so that whoever fits the group finds all of its columns up to date.
int64_t block_end(int64_t first, int64_t n, int64_t block_size, int64_t group_size) {
  const int64_t last = std::min(first + block_size, n);
  if (group_size == 0 || last == n) return last;
  const int64_t boundary = last / group_size * group_size;
  return boundary > first ? boundary : last;
}

int64_t segment_end(int64_t first, int64_t block_last, int64_t group_size) {
  int64_t last = std::min(first + kSegment, block_last);
  if (group_size > 0) last = std::min(last, (first / group_size + 1) * group_size);
  return last;
}

/// Columns [first, last), each after the errors of those before it in the segment.
void run_segment(double* panel, int64_t n, const double* upper, int64_t first, int64_t last,
                 ColumnPolicy& policy, double* row_loss) {
  alignas(64) double decoded[kPanelRows];
  for (int64_t i = first; i < last; ++i) {
    double* values = panel + i * kPanelRows;
    kernels::subtract_products(panel + first * kPanelRows, i - first, upper + first * n + i, n, values);
    policy.encode(i, values, decoded);
    kernels::scaled_error(decoded, upper[i * n + i], values, row_loss);
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

//        i1  s1  s2   i2                 n
//   -----+---+---+----+------------------+
//     E  | E | . |    |                  |    . the running segment, column by column
//   -----+---+---+----+------------------+
//              \____/ \_________________/
//        after a segment    after a block
void compensate(double* panel, int64_t n, const double* upper, int64_t block_size, ColumnPolicy& policy,
                double* row_loss) {
  const int64_t group_size = policy.group_size();
  for (int64_t i1 = 0, i2 = 0; i1 < n; i1 = i2) {
    i2 = block_end(i1, n, block_size, group_size);
    policy.begin_block(i1, i2, panel + i1 * kPanelRows);
    for (int64_t s1 = i1, s2 = 0; s1 < i2; s1 = s2) {
      s2 = segment_end(s1, i2, group_size);
      if (group_size > 0 && s1 % group_size == 0) policy.begin_group(s1, panel + s1 * kPanelRows);
      run_segment(panel, n, upper, s1, s2, policy, row_loss);
      apply_errors(panel, n, upper, s1, s2 - s1, s2, i2);
    }
    apply_errors(panel, n, upper, i1, i2 - i1, i2, n);
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
    policy.encode(i, values, decoded);
    kernels::scaled_error(decoded, upper[i * n + i], values, row_loss);
    for (int64_t j = i + 1; j < n; ++j) {
      kernels::subtract_products(values, 1, upper + i * n + j, n, panel + j * kPanelRows);
    }
  }
}

}  // namespace lcomp::quant
