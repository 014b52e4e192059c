#include "lcomp/lowrank/low_rank.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/one_thread.h"
#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/linalg/cholesky.h"
#include "lcomp/lowrank/identity_rows_weight.h"

namespace lcomp::lowrank {
namespace {

/// Rows of a product that one piece of work makes.
constexpr int64_t kRowsOfProduct = 128;

/// Eigenvalues above this share of the largest give vectors that are orthogonal to 1e-8.
constexpr double kSafeRatio = 1e-8;

/// a b, float64, in pieces of rows.
at::Tensor product(const at::Tensor& a, const at::Tensor& b, ThreadPool* pool) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, at::kDouble);
  const int64_t rows = a.size(0);
  parallel_for(pool, (rows + kRowsOfProduct - 1) / kRowsOfProduct, [&](int64_t piece, int) {
    const int64_t first = piece * kRowsOfProduct, count = std::min(kRowsOfProduct, rows - first);
    at::Tensor part = out.narrow(0, first, count);
    at::mm_out(part, a.narrow(0, first, count), b);
  });
  return out;
}

void check_weight(const at::Tensor& weight, const InputMetric& metric, const at::Tensor& row_weights) {
  const bool fits = weight.dim() == 2 && weight.size(1) == metric.in_features() &&
                    (!row_weights.defined() || row_weights.sizes() == at::IntArrayRef({weight.size(0)}));
  if (!fits) {
    throw InvalidArgument(
        "low_rank",
        fmt::format("the weight must be [out, {}] and the weights of its rows [out]", metric.in_features()));
  }
}

void check_rank(const at::Tensor& weight, int64_t rank) {
  const int64_t most = std::min(weight.size(0), weight.size(1));
  if (rank < 1 || rank > most)
    throw InvalidArgument("low_rank", fmt::format("the rank must lie in [1, {}]; it is {}", most, rank));
}

/// E^1/2, float64 [out, 1]; undefined for 1.
at::Tensor roots(const at::Tensor& row_weights) {
  if (!row_weights.defined()) return {};
  at::Tensor e = row_weights.to(at::kDouble).sqrt().unsqueeze(1);
  if (!(e > 0).all().item<bool>())
    throw InvalidArgument("low_rank", "the weights of the rows must be positive; some are not");
  return e;
}

linalg::SvdSolver svd_solver(Solver solver) {
  return solver == Solver::kExact ? linalg::SvdSolver::kExact : linalg::SvdSolver::kRandomized;
}

/// Where a random subspace is faster than eigenvalues (docs/lowrank.md): for few directions of a large
/// matrix.
Solver settled(Solver solver, const at::Tensor& weight, int64_t rank) {
  constexpr int64_t kLeastSide = 1024, kSidePerRank = 32;
  if (solver != Solver::kAuto) return solver;
  const int64_t side = std::min(weight.size(0), weight.size(1));
  return side >= kLeastSide && rank * kSidePerRank <= side ? Solver::kRandomized : Solver::kGram;
}

/// The same product with a left factor of orthonormal columns, of which there are fewer where some were
/// superfluous.
Factors without_null_space(const Factors& factors) {
  constexpr double kNull = 1e-12;
  const linalg::Svd svd = linalg::truncated_svd(factors.left);
  int64_t count = 1;
  while (count < svd.left.size(1) && svd.values[static_cast<size_t>(count)] > kNull * svd.values[0]) ++count;
  const at::Tensor values = at::tensor(svd.values, at::kDouble).narrow(0, 0, count).unsqueeze(1);
  return {svd.left.narrow(1, 0, count).contiguous(),
          product(svd.right.narrow(0, 0, count) * values, factors.right, nullptr),
          {}};
}

/// The strongest directions of the outputs.
struct Directions {
  at::Tensor rows;              // U_k^T, [rank, out]
  std::vector<double> squares;  // s_i^2, descending
  double energy = 0;            // sum of all of them
};

Directions by_eigenvalues(const at::Tensor& w, const InputMetric& metric, int64_t rank, ThreadPool* pool) {
  Directions found;
  if (w.size(0) <= w.size(1)) {
    const at::Tensor energy = metric.energy(w, pool);
    linalg::Eigen eigen = linalg::largest_eigen(energy, rank);
    return {eigen.vectors, std::move(eigen.values), energy.trace().item<double>()};
  }
  // The eigenvectors of (W S) (W S)^T are W S times those of (W S)^T (W S).
  const at::Tensor scaled = metric.scaled(w, pool);
  const at::Tensor gram = product(scaled.t().contiguous(), scaled, pool);
  linalg::Eigen eigen = linalg::largest_eigen(gram, rank);
  const at::Tensor columns = product(scaled, eigen.vectors.t().contiguous(), pool);
  // They lose orthogonality as their eigenvalues fall behind the largest.
  at::Tensor rows;
  if (eigen.values.back() > kSafeRatio * eigen.values.front()) {
    rows = (columns / at::tensor(eigen.values, at::kDouble).sqrt()).t().contiguous();
  } else {
    rows = linalg::orthonormal_columns(columns).t().contiguous();
  }
  return {std::move(rows), std::move(eigen.values), gram.trace().item<double>()};
}

Directions by_svd(const at::Tensor& w, const InputMetric& metric, int64_t rank, Solver solver,
                  ThreadPool* pool) {
  const at::Tensor scaled = metric.scaled(w, pool);
  linalg::Svd svd = linalg::truncated_svd(scaled, rank, svd_solver(solver));
  Directions found{svd.left.t().contiguous(), {}, scaled.square().sum().item<double>()};
  for (const double s : svd.values) found.squares.push_back(s * s);
  return found;
}

/// Rows of the left factor that span it, ascending. Factors whose left one has not full rank become such.
std::vector<int64_t> pivots_of(Factors& factors) {
  linalg::PivotRows rows = linalg::pivot_rows(factors.left);
  if (rows.rank < factors.left.size(1)) {
    factors = without_null_space(factors);
    rows = linalg::pivot_rows(factors.left);
  }
  rows.order.resize(static_cast<size_t>(factors.left.size(1)));
  std::sort(rows.order.begin(), rows.order.end());
  return rows.order;
}

/// X with X basis = rows. basis: pivot rows, which are independent.
at::Tensor solved_for(const at::Tensor& basis, const at::Tensor& rows) {
  at::Tensor solution;
  on_one_blas_thread([&] { solution = at::linalg_solve(basis.t(), rows.t()); });
  return solution.t().contiguous();
}

/// The rows [first, first + count) of a stacked matrix.
struct OwnRows {
  /// int64 [rank]: where each pivot is among them, counted from `first`; -1: it is not.
  at::Tensor pivots;
  at::Tensor rest;  // int64: the other rows, as the stacked matrix counts
};

OwnRows own_rows(const std::vector<int64_t>& pivots, int64_t rank, int64_t first, int64_t count) {
  std::vector<int64_t> own(static_cast<size_t>(rank), -1), rest;
  std::vector<bool> is_pivot(static_cast<size_t>(count), false);
  for (size_t i = 0; i < pivots.size(); ++i) {
    if (pivots[i] < first || pivots[i] >= first + count) continue;
    own[i] = pivots[i] - first;
    is_pivot[static_cast<size_t>(own[i])] = true;
  }
  for (int64_t row = 0; row < count; ++row) {
    if (!is_pivot[static_cast<size_t>(row)]) rest.push_back(first + row);
  }
  return {at::tensor(own, at::kLong), at::tensor(rest, at::kLong)};
}

}  // namespace

InputMetric InputMetric::plain(int64_t in) {
  return diagonal(at::ones({in}, at::kDouble));
}

InputMetric InputMetric::diagonal(const at::Tensor& scale) {
  InputMetric metric;
  metric.scale_ = scale.to(at::kDouble).contiguous();
  if (scale.dim() != 1 || (metric.scale_ < 0).any().item<bool>())
    throw InvalidArgument("InputMetric", "the scale must be [in] and not negative");
  if (!at::isfinite(metric.scale_).all().item<bool>())
    throw NumericalError("InputMetric", "the scale must be finite; it is not");
  return metric;
}

InputMetric InputMetric::moment(const at::Tensor& h) {
  if (h.dim() != 2 || h.size(0) != h.size(1))
    throw InvalidArgument("InputMetric", fmt::format("the moment must be a square matrix; it is [{}]",
                                                     fmt::join(h.sizes(), ", ")));
  InputMetric metric;
  metric.h_ = h.to(at::kDouble).contiguous();
  if (!at::isfinite(metric.h_).all().item<bool>())
    throw NumericalError("InputMetric", "the moment must be finite; it is not");
  return metric;
}

int64_t InputMetric::in_features() const {
  return scale_.defined() ? scale_.size(0) : h_.size(0);
}

const at::Tensor& InputMetric::root(ThreadPool* pool) const {
  std::call_once(root_->made, [&] {
    at::Tensor lower = h_.clone();
    root_->singular = linalg::cholesky_lower(lower.data_ptr<double>(), lower.size(0), pool) != 0;
    if (!root_->singular) {
      root_->s = lower.tril();
      return;
    }
    const linalg::Eigen eigen = linalg::largest_eigen(h_);
    const at::Tensor values = at::tensor(eigen.values, at::kDouble).clamp_min(0).sqrt();
    root_->s = (eigen.vectors * values.unsqueeze(1)).t().contiguous();
  });
  return root_->s;
}

at::Tensor InputMetric::weighted(const at::Tensor& weight, ThreadPool* pool) const {
  const at::Tensor w = weight.to(at::kDouble).contiguous();
  return scale_.defined() ? w * scale_.square() : product(w, h_, pool);
}

at::Tensor InputMetric::energy(const at::Tensor& weight, ThreadPool* pool) const {
  const at::Tensor w = weight.to(at::kDouble).contiguous();
  const at::Tensor out = product(weighted(w, pool), w.t(), pool);
  return (out + out.t()) / 2;
}

at::Tensor InputMetric::scaled(const at::Tensor& weight, ThreadPool* pool) const {
  const at::Tensor w = weight.to(at::kDouble).contiguous();
  return scale_.defined() ? w * scale_ : product(w, root(pool), pool);
}

double InputMetric::loss(const at::Tensor& difference, ThreadPool* pool) const {
  if (scale_.defined()) return (difference.to(at::kDouble) * scale_).square().sum().item<double>();
  return activation_energy(difference, h_, pool);
}

Factors low_rank(const at::Tensor& weight, const InputMetric& metric, int64_t rank, Solver solver,
                 const at::Tensor& row_weights, ThreadPool* pool) {
  check_weight(weight, metric, row_weights);
  check_rank(weight, rank);
  const at::Tensor e = roots(row_weights);
  at::Tensor w = weight.to(at::kDouble).contiguous();
  if (e.defined()) w = w * e;
  solver = settled(solver, w, rank);
  Directions found =
      solver == Solver::kGram ? by_eigenvalues(w, metric, rank, pool) : by_svd(w, metric, rank, solver, pool);
  Factors factors;
  factors.left = found.rows.t().contiguous();
  if (e.defined()) factors.left = factors.left / e;
  factors.right = product(found.rows, w, pool);
  factors.energy = found.energy;
  factors.tail = found.energy;
  for (const double square : found.squares) {
    factors.singular_values.push_back(std::sqrt(std::max(0.0, square)));
    factors.tail -= square;
  }
  factors.tail = std::max(0.0, factors.tail);
  return factors;
}

at::Tensor Factors::product() const {
  return lowrank::product(left, right, nullptr);
}

Factors low_rank_from(const at::Tensor& weight, const InputMetric& metric, const Factors& start,
                      ThreadPool* pool) {
  check_weight(weight, metric, {});
  const at::Tensor w = weight.to(at::kDouble).contiguous();
  // (W H W^T) U = W (H (W^T U)).
  const at::Tensor seen = product(start.left.t().contiguous(), w, pool);
  const at::Tensor turned = product(w, metric.weighted(seen, pool).t(), pool);
  Factors factors;
  factors.left = linalg::orthonormal_columns(turned);
  factors.right = product(factors.left.t().contiguous(), w, pool);
  factors.energy = metric.loss(w, pool);
  factors.tail = std::max(0.0, factors.energy - metric.loss(factors.right, pool));
  return factors;
}

std::vector<double> component_losses(const at::Tensor& weight, const InputMetric& metric,
                                     const at::Tensor& row_weights, ThreadPool* pool) {
  check_weight(weight, metric, row_weights);
  const at::Tensor e = roots(row_weights);
  at::Tensor w = weight.to(at::kDouble).contiguous();
  if (e.defined()) w = w * e;
  at::Tensor gram;
  if (w.size(0) <= w.size(1)) {
    gram = metric.energy(w, pool);
  } else {
    const at::Tensor scaled = metric.scaled(w, pool);
    gram = product(scaled.t().contiguous(), scaled, pool);
  }
  std::vector<double> losses = linalg::largest_eigen(gram).values;
  for (double& loss : losses) loss = std::max(loss, 0.0);
  return losses;
}

Factors project_inputs(const at::Tensor& weight, const InputMetric& metric, int64_t rank, ThreadPool* pool) {
  check_weight(weight, metric, {});
  check_rank(weight, rank);
  const at::Tensor identity = at::eye(metric.in_features(), at::kDouble);
  const at::Tensor directions = linalg::largest_eigen(metric.energy(identity, pool), rank).vectors;
  const at::Tensor w = weight.to(at::kDouble).contiguous();
  Factors factors;
  factors.left = product(w, directions.t().contiguous(), pool);
  factors.right = directions;
  factors.energy = metric.loss(w, pool);
  factors.tail = metric.loss(w - product(factors.left, factors.right, pool), pool);
  return factors;
}

void update_left(Factors& factors, const at::Tensor& weight, const InputMetric& metric, ThreadPool* pool) {
  check_weight(weight, metric, {});
  // In the eigenvectors of B H B^T, of which those that H does not see are left out.
  const at::Tensor seen = metric.energy(factors.right, pool);
  const linalg::Eigen eigen = linalg::largest_eigen(seen);
  const double floor = 1e-12 * std::max(eigen.values.front(), 0.0);
  int64_t count = 0;
  while (count < seen.size(0) && eigen.values[static_cast<size_t>(count)] > floor) ++count;
  if (count == 0) {
    factors.singular_values.clear();
    factors.tail = metric.loss(weight.to(at::kDouble) - product(factors.left, factors.right, pool), pool);
    return;
  }
  const at::Tensor axes = eigen.vectors.narrow(0, 0, count);
  const at::Tensor values = at::tensor(eigen.values, at::kDouble).narrow(0, 0, count);
  const at::Tensor difference =
      weight.to(at::kDouble).contiguous() - product(factors.left, factors.right, pool);
  const at::Tensor along = product(axes, factors.right, pool);
  // D H B^T = (D S) (B S)^T.
  const at::Tensor crossed = product(metric.scaled(difference, pool), metric.scaled(along, pool).t(), pool);
  factors.left = factors.left + product(crossed / values, axes, pool);
  factors.singular_values.clear();
  factors.tail = metric.loss(weight.to(at::kDouble) - product(factors.left, factors.right, pool), pool);
}

int64_t factored_size(Form form, int64_t out, int64_t in, int64_t rank) {
  return rank * (out + in - (form == Form::kPivoted ? rank : 0));
}

int64_t largest_rank(Form form, int64_t out, int64_t in, int64_t size, int64_t multiple) {
  // Sizes grow with the rank: of the pivoted form, up to the smaller side, where it is the matrix itself.
  int64_t low = 0, high = std::min(out, in) / multiple;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (factored_size(form, out, in, middle * multiple) <= size) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * multiple;
}

std::vector<WeightPtr> shared_factored_weights(const Factors& given, Form form,
                                               const std::vector<StackedRows>& operators,
                                               const StoreFactor& store, const at::Tensor& target,
                                               const InputMetric* metric) {
  Factors factors = given;
  std::vector<int64_t> pivots;  // ascending; of the pivoted form
  if (form == Form::kPivoted && factors.left.size(1) < factors.left.size(0)) pivots = pivots_of(factors);
  const int64_t rank = factors.left.size(1);
  at::Tensor basis, right_values = factors.right;
  if (!pivots.empty()) {
    basis = factors.left.index_select(0, at::tensor(pivots, at::kLong));
    right_values = product(basis, factors.right, nullptr);
  }
  std::vector<OwnRows> shares;
  int64_t first = 0;
  for (const StackedRows& op : operators) {
    shares.push_back(own_rows(pivots, rank, first, op.rows));
    if (shares.back().rest.numel() == 0) return {};
    first += op.rows;
  }
  const WeightPtr right = store(right_values, nullptr);
  std::vector<WeightPtr> weights;
  for (size_t i = 0; i < operators.size(); ++i) {
    const OwnRows& own = shares[i];
    Factors rest{factors.left.index_select(0, own.rest), right_values, {}};
    if (basis.defined()) rest.left = solved_for(basis, rest.left);
    if (metric != nullptr) {
      rest.right = right->dense().to(at::kDouble);
      update_left(rest, target.index_select(0, own.rest), *metric);
    }
    WeightPtr left = store(rest.left, right.get());
    if (!pivots.empty()) left = std::make_shared<IdentityRowsWeight>(own.pivots, std::move(left));
    WeightPtr shared = right;
    if (i > 0)
      shared = std::make_shared<SharedWeight>(ProductWeight::factor_name(operators[0].name, 1), right);
    weights.push_back(std::make_shared<ProductWeight>(std::vector<WeightPtr>{left, shared}));
  }
  return weights;
}

WeightPtr factored_weight(const Factors& factors, Form form, const StoreFactor& store,
                          const at::Tensor& target, const InputMetric* metric) {
  return shared_factored_weights(factors, form, {{"", factors.left.size(0)}}, store, target, metric).at(0);
}

}  // namespace lcomp::lowrank
