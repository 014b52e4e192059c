#include "lcomp/quant/mismatch.h"

#include <ATen/ATen.h>
#include <cblas.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "quant/panel.h"

namespace lcomp::quant {
namespace {

constexpr int64_t kMostRows = 2 * kPanelRows;
constexpr int64_t kRowsAtOnce = 64;

void check_moment(const at::Tensor& moment, int64_t in, const char* what) {
  const bool fits = moment.defined() && moment.sizes() == at::IntArrayRef{in, in} &&
                    (moment.scalar_type() == at::kFloat || moment.scalar_type() == at::kDouble);
  if (fits) return;
  throw InvalidArgument(
      "mismatch", fmt::format("{} must be [{}, {}] of float32 or float64; received {}", what, in, in,
                              moment.defined() ? fmt::format("[{}] of {}", fmt::join(moment.sizes(), ", "),
                                                             dtype_name(moment.scalar_type()))
                                               : std::string("none")));
}

int64_t column_at(const std::vector<int64_t>& order, int64_t i) {
  return order.empty() ? i : order[static_cast<size_t>(i)];
}

/// Rows [first, first + count) of P M P^T in float64, for the permutation P of `order`.
template <class T>
void copy_rows(const T* m, int64_t n, const std::vector<int64_t>& order, int64_t first, int64_t count,
               double* out) {
  for (int64_t i = 0; i < count; ++i) {
    const T* row = m + column_at(order, first + i) * n;
    for (int64_t j = 0; j < n; ++j) out[i * n + j] = static_cast<double>(row[column_at(order, j)]);
  }
}

/// panel M for a panel of rows in `order`: [kPanelRows, n] times [n, n].
std::vector<double> times(const std::vector<double>& panel, const at::Tensor& m,
                          const std::vector<int64_t>& order) {
  const int64_t n = m.size(1);
  std::vector<double> product(panel.size()), rows(static_cast<size_t>(kRowsAtOnce * n));
  for (int64_t first = 0; first < n; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, n - first);
    if (m.scalar_type() == at::kDouble) {
      copy_rows(m.data_ptr<double>(), n, order, first, count, rows.data());
    } else {
      copy_rows(m.data_ptr<float>(), n, order, first, count, rows.data());
    }
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, static_cast<int>(kPanelRows), static_cast<int>(n),
                static_cast<int>(count), 1.0, panel.data() + first * kPanelRows, static_cast<int>(kPanelRows),
                rows.data(), static_cast<int>(n), first == 0 ? 0.0 : 1.0, product.data(),
                static_cast<int>(kPanelRows));
  }
  return product;
}

/// panel (H + diag(d))^-1 = panel U^T U, in place.
void times_inverse(std::vector<double>& panel, const at::Tensor& upper) {
  const int n = static_cast<int>(upper.size(0)), rows = static_cast<int>(kPanelRows);
  for (const auto transposed : {CblasNoTrans, CblasTrans}) {
    // U, row-major and upper, is U^T, column-major and lower.
    cblas_dtrmm(CblasColMajor, CblasRight, CblasLower, transposed, CblasNonUnit, rows, n, 1.0,
                upper.data_ptr<double>(), n, panel.data(), rows);
  }
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

/// At most kMostRows rows of all weights below each other, evenly spaced.
at::Tensor sampled_rows(const std::vector<at::Tensor>& weights) {
  int64_t total = 0;
  for (const at::Tensor& weight : weights) total += weight.size(0);
  const int64_t count = std::min(total, kMostRows);
  std::vector<at::Tensor> rows;
  size_t k = 0;
  int64_t before = 0;  // rows of the weights before the k-th
  for (int64_t i = 0; i < count; ++i) {
    const int64_t wanted = i * total / count;
    while (wanted - before >= weights[k].size(0)) before += weights[k++].size(0);
    rows.push_back(weights[k][wanted - before].to(at::kDouble));
  }
  return at::stack(rows);
}

struct Agreement {
  double along = 0;  ///< <W Delta_j, W D_i>
  double size = 0;   ///< <W D_i H_j, W D_i>
};

}  // namespace

at::Tensor mismatch_target(const at::Tensor& weight, const at::Tensor& delta,
                           const linalg::DampedInverse& inverse, const std::vector<int64_t>& order, double a,
                           ThreadPool* pool) {
  if (weight.dim() != 2 || !weight.is_floating_point())
    throw InvalidArgument("mismatch", "the weight must be a matrix of a floating-point type");
  const int64_t out = weight.size(0), in = weight.size(1);
  check_moment(delta, in, "delta");
  if (!inverse.upper.defined() || inverse.upper.size(0) != in) {
    throw InvalidArgument("mismatch",
                          fmt::format("the inverse must be the factor of a second moment [{}, {}]", in, in));
  }
  if (a == 0) return weight;
  ThreadPool alone(1);  // OpenBLAS must run with one thread, which a pool sees to
  if (pool == nullptr) pool = &alone;
  const at::Tensor moment = delta.contiguous();
  at::Tensor target = at::empty({out, in}, at::kDouble);
  pool->parallel_for(panel_count(out), [&](int64_t index, int) {
    const int64_t first_row = index * kPanelRows, rows = std::min(kPanelRows, out - first_row);
    std::vector<double> panel(static_cast<size_t>(in * kPanelRows));
    load_panel(weight, first_row, order, panel.data());
    std::vector<double> move = times(panel, moment, order);
    times_inverse(move, inverse.upper);
    double* to = target.data_ptr<double>() + first_row * in;
    for (int64_t j = 0; j < in; ++j) {
      for (int64_t r = 0; r < rows; ++r) {
        const auto i = static_cast<size_t>(j * kPanelRows + r);
        to[r * in + column_at(order, j)] = panel[i] + a * move[i];
      }
    }
  });
  return target;
}

double mismatch_weight(const std::vector<at::Tensor>& weights, const MismatchMoments& moments, double damping,
                       ThreadPool* pool) {
  if (weights.empty()) return 0;
  const int64_t in = weights[0].size(1);
  for (size_t i = 0; i < 2; ++i) {
    check_moment(moments.half[i], in, "the second moment of a half");
    check_moment(moments.half_delta[i], in, "delta of a half");
  }
  ThreadPool alone(1);
  if (pool == nullptr) pool = &alone;
  const at::Tensor rows = sampled_rows(weights);
  std::vector<Agreement> parts(static_cast<size_t>(panel_count(rows.size(0))));
  for (size_t i = 0; i < 2; ++i) {
    const linalg::DampedInverse inverse = linalg::damped_inverse(moments.half[i], damping, {}, pool);
    if (!inverse.upper.defined()) return 0;
    pool->parallel_for(static_cast<int64_t>(parts.size()), [&](int64_t index, int) {
      std::vector<double> panel(static_cast<size_t>(in * kPanelRows));
      load_panel(rows, index * kPanelRows, {}, panel.data());
      std::vector<double> correction = times(panel, moments.half_delta[i].contiguous(), {});
      times_inverse(correction, inverse.upper);
      Agreement& part = parts[static_cast<size_t>(index)];
      part.along += dot(times(panel, moments.half_delta[1 - i].contiguous(), {}), correction);
      part.size += dot(times(correction, moments.half[1 - i].contiguous(), {}), correction);
    });
  }
  Agreement total;
  for (const Agreement& part : parts) {
    total.along += part.along;
    total.size += part.size;
  }
  return total.size > 0 && std::isfinite(total.along) ? std::clamp(total.along / total.size, 0.0, 1.0) : 0.0;
}

}  // namespace lcomp::quant
