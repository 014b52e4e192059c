#include "lcomp/lowrank/tensor_train.h"
#include "core/one_thread.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "lcomp/core/error.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

using Integers = std::vector<int64_t>;

constexpr int64_t kAnyRank = -1;

void check_limits(const TrainLimits& limits, size_t cuts, const char* where) {
  if (limits.eps < 0 || !std::isfinite(limits.eps))
    throw InvalidArgument(where, fmt::format("eps must be at least 0; it is {}", limits.eps));
  if (limits.ranks.size() > 1 && limits.ranks.size() != cuts) {
    throw InvalidArgument(where, fmt::format("ranks must be none, one, or one for each of {} cuts; there "
                                             "are {}",
                                             cuts, limits.ranks.size()));
  }
  for (const int64_t rank : limits.ranks) {
    if (rank < 1) throw InvalidArgument(where, fmt::format("ranks must be at least 1; one is {}", rank));
  }
}

int64_t largest_rank(const TrainLimits& limits, size_t cut) {
  if (limits.ranks.empty()) return kAnyRank;
  return limits.ranks.size() == 1 ? limits.ranks.front() : limits.ranks[cut];
}

/// A matrix cut in two, left (orthonormal columns) times right, and the squared norm of what that loses.
struct Halves {
  at::Tensor left, right;
  double lost = 0;
};

linalg::SvdSolver solver_for(const at::Tensor& matrix, const TrainLimits& limits) {
  if (limits.solver) return *limits.solver;
  const int64_t less = std::min(matrix.size(0), matrix.size(1));
  const int64_t more = std::max(matrix.size(0), matrix.size(1));
  const bool by_gram = less * 4 <= more && limits.eps >= 1e-6;
  return by_gram ? linalg::SvdSolver::kGram : linalg::SvdSolver::kExact;
}

/// The smallest rank that loses at most `delta`, or the largest allowed.
Halves cut(const at::Tensor& matrix, int64_t most, double delta, const TrainLimits& limits) {
  const int64_t all = std::min(matrix.size(0), matrix.size(1));
  const int64_t count = most == kAnyRank ? all : std::min(most, all);
  const linalg::Svd svd = linalg::truncated_svd(matrix, count, solver_for(matrix, limits));
  Halves halves{.left = {}, .right = {}, .lost = svd.tail};
  int64_t rank = count;
  for (; rank > 1; --rank) {
    const double value = svd.values[static_cast<size_t>(rank - 1)];
    if (halves.lost + value * value > delta * delta) break;
    halves.lost += value * value;
  }
  const at::Tensor values = at::tensor(svd.values, at::kDouble).narrow(0, 0, rank);
  halves.left = svd.left.narrow(1, 0, rank).contiguous();
  halves.right = svd.right.narrow(0, 0, rank) * values.unsqueeze(1);
  return halves;
}

double allowed_loss(const TrainLimits& limits, size_t cores, double norm) {
  return cores < 2 ? 0 : limits.eps / std::sqrt(static_cast<double>(cores - 1)) * norm;
}

/// Cores that fit together, as `tt_round` and `tt_sum` want them.
void check_train(const TensorTrain& train, const char* where) {
  int64_t rank = 1;
  for (const at::Tensor& core : train.cores) {
    if (core.dim() != 3 || core.numel() == 0 || core.size(0) != rank || core.scalar_type() != at::kDouble) {
      throw InvalidArgument(where, fmt::format("cores must be float64 [r_k-1, I_k, r_k] from r_0 = 1 on; "
                                               "after rank {} there is [{}]",
                                               rank, fmt::join(core.sizes(), ", ")));
    }
    rank = core.size(2);
  }
  if (train.cores.empty() || rank != 1)
    throw InvalidArgument(where, fmt::format("the last rank must be 1; it is {}", rank));
}

/// Makes all cores but the first have orthonormal rows as [r_k-1, I_k r_k]; the first takes the norm.
std::vector<at::Tensor> right_orthogonal(std::vector<at::Tensor> cores) {
  for (size_t k = cores.size() - 1; k > 0; --k) {
    const at::Tensor core = cores[k], rows = core.reshape({core.size(0), -1});
    const at::Tensor basis = linalg::orthonormal_columns(rows.t());
    cores[k] = basis.t().reshape({basis.size(1), core.size(1), core.size(2)});
    const at::Tensor moved = one_thread_product(rows, basis), before = cores[k - 1];
    cores[k - 1] = one_thread_product(before.reshape({-1, before.size(2)}), moved)
                       .reshape({before.size(0), before.size(1), moved.size(1)});
  }
  return cores;
}

/// -sum p log p of p = f / sum f.
double entropy(const Integers& factors) {
  double total = 0, sum = 0;
  for (const int64_t f : factors) total += static_cast<double>(f);
  for (const int64_t f : factors) {
    const double p = static_cast<double>(f) / total;
    sum -= p * std::log(p);
  }
  return sum;
}

/// Tries every ascending way to write `n` as `d` more factors, none below the last of `begun`.
void try_factors(int64_t n, int64_t d, Integers& begun, Integers& best) {
  const int64_t least = begun.empty() ? 1 : begun.back();
  if (d == 1) {
    if (n < least) return;
    begun.push_back(n);
    if (best.empty() || entropy(begun) > entropy(best) * (1 + 1e-12)) best = begun;
    begun.pop_back();
    return;
  }
  // d factors of at least f have a product of at least f^d.
  for (int64_t f = least; std::pow(static_cast<double>(f), d) <= static_cast<double>(n) * (1 + 1e-9); ++f) {
    if (n % f != 0) continue;
    begun.push_back(f);
    try_factors(n / f, d - 1, begun, best);
    begun.pop_back();
  }
}

int64_t product_of(const Integers& factors) {
  return c10::multiply_integers(factors);
}

void check_matrix_shapes(const at::Tensor& weight, const Integers& rows, const Integers& columns) {
  const auto fits = [](const Integers& shape, int64_t size) {
    return !shape.empty() && std::all_of(shape.begin(), shape.end(), [](int64_t f) { return f >= 1; }) &&
           product_of(shape) >= size;
  };
  if (weight.dim() != 2 || !weight.is_floating_point() || weight.numel() == 0)
    throw InvalidArgument("paired_digits", "the weight must be a floating-point matrix that is not empty");
  if (rows.size() == columns.size() && fits(rows, weight.size(0)) && fits(columns, weight.size(1))) return;
  throw InvalidArgument(
      "tt_matrix",
      fmt::format("the shapes must have as many factors as each other and products of at "
                  "least [{}, {}]; they are {} and {}",
                  weight.size(0), weight.size(1), fmt::join(rows, " x "), fmt::join(columns, " x ")));
}

/// A train over pairs of digits as a matrix of `size`.
TrainMatrix with_train(const TrainResult& result, const Integers& rows, const Integers& columns,
                       std::pair<int64_t, int64_t> size) {
  TrainMatrix matrix{
      .cores = {}, .out = size.first, .in = size.second, .relative_error = result.relative_error};
  for (size_t k = 0; k < rows.size(); ++k) {
    const at::Tensor& core = result.train.cores[k];
    matrix.cores.push_back(core.reshape({core.size(0), rows[k], columns[k], core.size(2)}));
  }
  return matrix;
}

}  // namespace

std::vector<int64_t> TensorTrain::ranks() const {
  Integers result{1};
  for (const at::Tensor& core : cores) result.push_back(core.size(2));
  return result;
}

int64_t TensorTrain::parameters() const {
  int64_t sum = 0;
  for (const at::Tensor& core : cores) sum += core.numel();
  return sum;
}

at::Tensor TensorTrain::full() const {
  Integers shape;
  at::Tensor left = at::ones({1, 1}, at::kDouble);
  for (const at::Tensor& core : cores) {
    left = one_thread_product(left, core.reshape({core.size(0), -1})).reshape({-1, core.size(2)});
    shape.push_back(core.size(1));
  }
  return left.reshape(shape);
}

TrainResult tt_svd(const at::Tensor& tensor, const TrainLimits& limits) {
  if (tensor.dim() < 1 || tensor.numel() == 0 || !tensor.is_floating_point()) {
    throw InvalidArgument("tt_svd",
                          fmt::format("the tensor must be of floating-point numbers and not empty; it is {}",
                                      part_text(tensor)));
  }
  const size_t d = static_cast<size_t>(tensor.dim());
  check_limits(limits, d - 1, "tt_svd");
  at::Tensor rest = tensor.to(at::kDouble).contiguous();
  const double norm = rest.norm().item<double>(), delta = allowed_loss(limits, d, norm);
  TrainResult result;
  double lost = 0;
  int64_t rank = 1;
  for (size_t k = 0; k + 1 < d; ++k) {
    const int64_t size = tensor.size(static_cast<int64_t>(k));
    const Halves halves = cut(rest.reshape({rank * size, -1}), largest_rank(limits, k), delta, limits);
    result.train.cores.push_back(halves.left.reshape({rank, size, -1}));
    rank = halves.right.size(0);
    rest = halves.right;
    lost += halves.lost;
  }
  result.train.cores.push_back(rest.reshape({rank, tensor.size(-1), 1}));
  result.relative_error = norm == 0 ? 0 : std::sqrt(lost) / norm;
  return result;
}

TrainResult tt_round(const TensorTrain& train, const TrainLimits& limits) {
  check_train(train, "tt_round");
  check_limits(limits, train.cores.size() - 1, "tt_round");
  TrainResult result{.train = {right_orthogonal(train.cores)}, .relative_error = 0};
  std::vector<at::Tensor>& cores = result.train.cores;
  const double norm = cores.front().norm().item<double>(), delta = allowed_loss(limits, cores.size(), norm);
  double lost = 0;
  for (size_t k = 0; k + 1 < cores.size(); ++k) {
    const int64_t rank = cores[k].size(0), size = cores[k].size(1);
    const Halves halves = cut(cores[k].reshape({rank * size, -1}), largest_rank(limits, k), delta, limits);
    cores[k] = halves.left.reshape({rank, size, -1});
    const at::Tensor next = cores[k + 1];
    cores[k + 1] = one_thread_product(halves.right, next.reshape({next.size(0), -1}))
                       .reshape({halves.right.size(0), next.size(1), next.size(2)});
    lost += halves.lost;
  }
  result.relative_error = norm == 0 ? 0 : std::sqrt(lost) / norm;
  return result;
}

TensorTrain tt_sum(const TensorTrain& a, const TensorTrain& b) {
  check_train(a, "tt_sum");
  check_train(b, "tt_sum");
  const size_t d = a.cores.size();
  TensorTrain sum;
  for (size_t k = 0; k < d; ++k) {
    if (d != b.cores.size() || a.cores[k].size(1) != b.cores[k].size(1))
      throw InvalidArgument("tt_sum", "both trains must have the same shape; they have not");
    const at::Tensor &left = a.cores[k], &right = b.cores[k];
    if (d == 1) return {{left + right}};
    const int64_t above = k == 0 ? 0 : left.size(0), before = k + 1 == d ? 0 : left.size(2);
    at::Tensor core = at::zeros({above + right.size(0), left.size(1), before + right.size(2)}, at::kDouble);
    core.narrow(0, 0, left.size(0)).narrow(2, 0, left.size(2)).copy_(left);
    core.narrow(0, above, right.size(0)).narrow(2, before, right.size(2)).copy_(right);
    sum.cores.push_back(core);
  }
  return sum;
}

at::Tensor full_matrix(const std::vector<at::Tensor>& cores) {
  at::Tensor left = at::ones({1, 1}, cores.front().options());
  Integers digits, order;
  int64_t rows = 1;
  const auto d = static_cast<int64_t>(cores.size());
  for (int64_t k = 0; k < d; ++k) {
    const at::Tensor& core = cores[static_cast<size_t>(k)];
    left = one_thread_product(left, core.reshape({core.size(0), -1})).reshape({-1, core.size(3)});
    digits.insert(digits.end(), {core.size(1), core.size(2)});
    rows *= core.size(1);
    order.push_back(2 * k);
  }
  for (int64_t k = 0; k < d; ++k) order.push_back(2 * k + 1);
  return left.reshape(digits).permute(order).reshape({rows, -1});
}

at::Tensor TrainMatrix::full() const {
  return full_matrix(cores).narrow(0, 0, out).narrow(1, 0, in).contiguous();
}

TensorTrain TrainMatrix::train() const {
  TensorTrain merged;
  for (const at::Tensor& core : cores) merged.cores.push_back(core.flatten(1, 2));
  return merged;
}

TrainMatrix TrainMatrix::transposed() const {
  TrainMatrix result{.cores = {}, .out = in, .in = out, .relative_error = relative_error};
  for (const at::Tensor& core : cores) result.cores.push_back(core.transpose(1, 2).contiguous());
  return result;
}

at::Tensor paired_digits(const at::Tensor& weight, const Integers& row_shape, const Integers& col_shape) {
  check_matrix_shapes(weight, row_shape, col_shape);
  at::Tensor padded = at::zeros({product_of(row_shape), product_of(col_shape)}, at::kDouble);
  padded.narrow(0, 0, weight.size(0)).narrow(1, 0, weight.size(1)).copy_(weight);
  const auto d = static_cast<int64_t>(row_shape.size());
  Integers digits = row_shape, pairs, merged;
  digits.insert(digits.end(), col_shape.begin(), col_shape.end());
  for (int64_t k = 0; k < d; ++k) {
    pairs.insert(pairs.end(), {k, d + k});
    merged.push_back(row_shape[static_cast<size_t>(k)] * col_shape[static_cast<size_t>(k)]);
  }
  return padded.reshape(digits).permute(pairs).reshape(merged);
}

TrainMatrix tt_matrix(const at::Tensor& weight, const Integers& row_shape, const Integers& col_shape,
                      const TrainLimits& limits) {
  const TrainResult result = tt_svd(paired_digits(weight, row_shape, col_shape), limits);
  return with_train(result, row_shape, col_shape, {weight.size(0), weight.size(1)});
}

TrainMatrix tt_round(const TrainMatrix& matrix, const TrainLimits& limits) {
  Integers rows, columns;
  for (const at::Tensor& core : matrix.cores) {
    rows.push_back(core.size(1));
    columns.push_back(core.size(2));
  }
  return with_train(tt_round(matrix.train(), limits), rows, columns, {matrix.out, matrix.in});
}

TrainCost train_cost(const Integers& row_shape, const Integers& col_shape, const Integers& ranks) {
  if (row_shape.size() != col_shape.size() || ranks.size() != row_shape.size() + 1) {
    throw InvalidArgument("train_cost", fmt::format("for {} rows there must be as many columns and one more "
                                                    "rank; there are {} and {}",
                                                    row_shape.size(), col_shape.size(), ranks.size()));
  }
  TrainCost cost;
  int64_t rows_before = 1, columns_before = 1;
  int64_t rows_after = product_of(row_shape), columns_after = product_of(col_shape);
  for (size_t k = 0; k < row_shape.size(); ++k) {
    const int64_t m = row_shape[k], n = col_shape[k], core = ranks[k] * m * n * ranks[k + 1];
    rows_after /= m;
    columns_after /= n;
    cost.parameters += core;
    cost.macs_left += rows_before * core * columns_after;
    cost.macs_right += columns_before * core * rows_after;
    cost.row_macs += columns_before * ranks[k] * n * ranks[k + 1];
    rows_before *= m;
    columns_before *= n;
  }
  return cost;
}

Integers balanced_shape(int64_t n, int64_t d) {
  if (n < 1 || d < 1) {
    throw InvalidArgument("balanced_shape",
                          fmt::format("n and d must be at least 1; they are {} and {}", n, d));
  }
  Integers begun, best;
  try_factors(n, d, begun, best);
  return best;
}

Integers padded_shape(int64_t n, int64_t d) {
  Integers best = balanced_shape(n, d);
  for (int64_t step = 10; step <= n; step *= 10) {
    Integers shape = balanced_shape((n + step - 1) / step * step, d);
    if (entropy(shape) > entropy(best) * (1 + 1e-12)) best = std::move(shape);
  }
  return best;
}

MatrixShapes paired_shapes(int64_t out, int64_t in, int64_t d) {
  MatrixShapes shapes{balanced_shape(out, d), balanced_shape(in, d)};
  std::reverse(shapes.columns.begin(), shapes.columns.end());
  return shapes;
}

}  // namespace lcomp::lowrank
