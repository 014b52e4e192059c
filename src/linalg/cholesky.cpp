#include "lcomp/linalg/cholesky.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp::linalg {
namespace {

constexpr int kFloorRounds = 6;
constexpr double kFirstFloor = 1e-6;

void check_arguments(const at::Tensor& h, double damping, const std::vector<int64_t>& order) {
  const bool fits = h.dim() == 2 && h.size(0) == h.size(1) && h.size(0) > 0 &&
                    (h.scalar_type() == at::kFloat || h.scalar_type() == at::kDouble);
  if (!fits) {
    throw InvalidArgument(
        "damped_inverse",
        fmt::format("the second moment must be a square matrix of float32 or float64; received [{}] of {}",
                    fmt::join(h.sizes().begin(), h.sizes().end(), ", "), dtype_name(h.scalar_type())));
  }
  if (!(damping >= 0)) {
    throw InvalidArgument("damped_inverse", fmt::format("damping must be at least 0; received {}", damping));
  }
  if (order.empty()) return;
  std::vector<bool> seen(static_cast<size_t>(h.size(0)), false);
  for (const int64_t i : order) {
    if (i >= 0 && i < h.size(0)) seen[static_cast<size_t>(i)] = true;
  }
  if (static_cast<int64_t>(order.size()) != h.size(0) ||
      std::find(seen.begin(), seen.end(), false) != seen.end()) {
    throw InvalidArgument("damped_inverse",
                          fmt::format("the order must be a permutation of 0 .. {}", h.size(0) - 1));
  }
}

/// The damped, reordered matrix of every attempt.
class Attempt {
 public:
  Attempt(const at::Tensor& second_moment, const std::vector<int64_t>& order)
      : h_(second_moment.contiguous()), n_(h_.size(0)), order_(order) {
    if (order_.empty()) {
      order_.resize(static_cast<size_t>(n_));
      std::iota(order_.begin(), order_.end(), 0);
    }
    const at::Tensor diagonal = h_.diagonal().to(at::kDouble).contiguous();
    for (const int64_t i : order_) diagonal_.push_back(diagonal.data_ptr<double>()[i]);
    finite_ = std::all_of(diagonal_.begin(), diagonal_.end(), [](double d) { return std::isfinite(d); });
    alive_ = std::any_of(diagonal_.begin(), diagonal_.end(), [](double d) { return d != 0; });
    for (const double d : diagonal_) {
      mean_ += (d == 0 ? 1 : d) / static_cast<double>(n_);
      largest_ = std::max(largest_, std::abs(d));
    }
  }

  bool finite() const { return finite_; }
  bool alive() const { return alive_; }
  double largest() const { return largest_; }
  int64_t size() const { return n_; }

  /// What `damping` and a diagonal floor add to the diagonal.
  std::vector<double> addition(double damping, double floor) const {
    std::vector<double> added;
    for (const double d : diagonal_) {
      double counted = d == 0 ? 1 : d;
      if (floor > 0) counted = std::max(counted, floor);
      added.push_back(counted - d + damping * mean_);
    }
    return added;
  }

  /// Factors J (P H P^T + diag(added)) J in `buffer` [n, n]; 0, or where it fails, counted from 1.
  int64_t factor(const std::vector<double>& added, double* buffer, ThreadPool* pool) const {
    if (h_.scalar_type() == at::kDouble) {
      fill(h_.data_ptr<double>(), added, buffer, pool);
    } else {
      fill(h_.data_ptr<float>(), added, buffer, pool);
    }
    return cholesky_lower(buffer, n_, pool);
  }

 private:
  /// Only the lower triangle of the reversed matrix, which is the upper one of the matrix.
  template <class T>
  void fill(const T* h, const std::vector<double>& added, double* buffer, ThreadPool* pool) const {
    parallel_for(pool, n_, [&](int64_t i, int) {
      const T* row = h + order_[static_cast<size_t>(i)] * n_;
      double* to = buffer + (n_ - 1 - i) * n_ + (n_ - 1);
      for (int64_t j = i; j < n_; ++j) to[-j] = static_cast<double>(row[order_[static_cast<size_t>(j)]]);
      to[-i] += added[static_cast<size_t>(i)];
    });
  }

  at::Tensor h_;
  int64_t n_;
  std::vector<int64_t> order_;
  std::vector<double> diagonal_;
  bool finite_ = false;
  bool alive_ = false;
  double mean_ = 0;
  double largest_ = 0;
};

/// Square of the ratio of the extreme diagonal elements; infinity or NaN when the factor is unusable.
double condition_bound(const double* lower, int64_t n) {
  double smallest = std::abs(lower[0]), largest = smallest;
  for (int64_t i = 0; i < n; ++i) {
    const double d = std::abs(lower[i * n + i]);
    if (std::isnan(d)) return d;
    smallest = std::min(smallest, d);
    largest = std::max(largest, d);
  }
  return (largest / smallest) * (largest / smallest);
}

/// U = J L^-1 J from L: reversing rows and columns of a matrix reverses its memory.
void finish(at::Tensor& buffer, ThreadPool* pool) {
  const int64_t n = buffer.size(0);
  double* data = buffer.data_ptr<double>();
  invert_lower(data, n, pool);
  std::reverse(data, data + n * n);
  for (int64_t i = 1; i < n; ++i) std::fill(data + i * n, data + i * n + i, 0.0);
}

/// One step of the ladder. True when `result` holds the factor.
bool try_factor(const Attempt& matrix, double damping, double floor, DampedInverse& result,
                ThreadPool* pool) {
  result.added = matrix.addition(damping, floor);
  const int64_t n = matrix.size();
  double* buffer = result.upper.data_ptr<double>();
  const int64_t failed_at = matrix.factor(result.added, buffer, pool);
  result.condition = failed_at == 0 ? condition_bound(buffer, n) : 0;
  if (failed_at == 0 && std::isfinite(result.condition)) {
    result.damping = damping;
    result.diagonal_floor = floor;
    return true;
  }
  const std::string where = floor > 0 ? fmt::format(", diagonal at least {:.3g}", floor) : "";
  result.attempts.push_back(failed_at == 0
                                ? fmt::format("damping {:.3g}{}: not finite", damping, where)
                                : fmt::format("damping {:.3g}{}: not positive definite at {} of {}", damping,
                                              where, n - failed_at + 1, n));
  return false;
}

double next_damping(double damping) {
  return damping > 0 ? 2 * damping : 0.01;
}

/// Damping as given, then doubled, while below 1.
bool try_dampings(const Attempt& matrix, double damping, double floor, DampedInverse& result,
                  ThreadPool* pool) {
  while (damping < 1) {
    if (try_factor(matrix, damping, floor, result, pool)) return true;
    damping = next_damping(damping);
  }
  return false;
}

}  // namespace

DampedInverse damped_inverse(const at::Tensor& second_moment, double damping,
                             const std::vector<int64_t>& order, ThreadPool* pool) {
  check_arguments(second_moment, damping, order);
  // OpenBLAS must run with one thread, which a pool sees to.
  ThreadPool alone(1);
  if (pool == nullptr) pool = &alone;

  const Attempt matrix(second_moment, order);
  DampedInverse result;
  const auto failed = [&](const std::string& why) {
    if (!why.empty()) result.attempts.push_back(why);
    result.upper.reset();
    result.added.clear();
    return result;
  };
  if (!matrix.finite()) return failed("the diagonal of the second moment is not finite");
  if (!matrix.alive()) return failed("the diagonal of the second moment is zero: no input ever fired");

  result.upper = at::empty({matrix.size(), matrix.size()}, at::kDouble);
  if (!try_factor(matrix, damping, 0, result, pool) && !at::isfinite(second_moment).all().item<bool>()) {
    return failed("the second moment is not finite");  // no damping will help
  }
  if (result.attempts.empty() || try_dampings(matrix, next_damping(damping), 0, result, pool)) {
    result.rung = result.attempts.empty() ? Rung::kPlain : Rung::kMoreDamping;
    finish(result.upper, pool);
    return result;
  }
  double floor = kFirstFloor * matrix.largest();
  for (int round = 0; round < kFloorRounds; ++round, floor *= 10) {
    if (!try_dampings(matrix, damping, floor, result, pool)) continue;
    result.rung = Rung::kDiagonalFloor;
    finish(result.upper, pool);
    return result;
  }
  return failed("");
}

}  // namespace lcomp::linalg
