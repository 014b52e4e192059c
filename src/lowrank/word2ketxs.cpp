#include "lcomp/lowrank/word2ketxs.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/one_thread.h"
#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "lcomp/lowrank/kronecker.h"
#include "lcomp/lowrank/tucker.h"
#include "lowrank/row_weights.h"

namespace lcomp::lowrank {
namespace {

/// Of normal matrices that are held at once: 64 MB.
constexpr int64_t kNormalNumbers = int64_t{1} << 23;

using KetFactors = std::vector<at::Tensor>;  // [t q, rank] each: the leaf as factors of a CP decomposition

/// What is fitted. Modes are pairs of digits, [(t q) ... (t q)].
struct KetProblem {
  int64_t order = 0, rank = 0, t = 0, q = 0;
  at::Tensor data;          ///< weight x table, 0 in the padding
  at::Tensor weights;       ///< weight of each element, 0 in the padding
  at::Tensor padding;       ///< weight of the row in padding columns, 0 elsewhere; undefined without any
  at::Tensor row_weights;   ///< [t ... t], 0 in padding rows
  double squared_norm = 0;  ///< weighted, of the table

  std::vector<int64_t> bases(int64_t base) const {
    return std::vector<int64_t>(static_cast<size_t>(order), base);
  }
};

void check_ket_options(const at::Tensor& table, const Word2KetXsOptions& o) {
  constexpr const char* kWhere = "fit_word2ketxs";
  if (table.dim() != 2 || table.numel() == 0 || !table.is_floating_point())
    throw InvalidArgument(kWhere, "the table must be a floating-point matrix that is not empty");
  if (o.order < 2 || o.order > 8)
    throw InvalidArgument(kWhere, fmt::format("the order must lie in [2, 8]; it is {}", o.order));
  if (o.rank < 1 || o.sweeps < 0) {
    throw InvalidArgument(kWhere,
                          fmt::format("the rank must be at least 1 and sweeps at least 0; they are {} "
                                      "and {}",
                                      o.rank, o.sweeps));
  }
  const int64_t rows = smallest_base(table.size(0), o.order), columns = smallest_base(table.size(1), o.order);
  if ((o.t != 0 && o.t < rows) || (o.q != 0 && o.q < columns)) {
    throw InvalidArgument(kWhere,
                          fmt::format("t and q must be at least {} and {} at order {}; they are {} and "
                                      "{}",
                                      rows, columns, o.order, o.t, o.q));
  }
}

KetProblem ket_problem(const at::Tensor& table, const Word2KetXsOptions& o, const at::Tensor& row_weights) {
  check_ket_options(table, o);
  const at::Tensor w = checked_row_weights(row_weights, table.size(0), "fit_word2ketxs").unsqueeze(1);
  KetProblem p{.order = o.order,
               .rank = o.rank,
               .t = o.t == 0 ? smallest_base(table.size(0), o.order) : o.t,
               .q = o.q == 0 ? smallest_base(table.size(1), o.order) : o.q,
               .data = {},
               .weights = {},
               .padding = {},
               .row_weights = {}};
  const at::Tensor e = table.to(at::kDouble);
  const auto rows = p.bases(p.t), columns = p.bases(p.q);
  const int64_t all_columns = c10::multiply_integers(columns);
  p.squared_norm = (w * e.square()).sum().item<double>();
  p.data = paired_digits(w * e, rows, columns);
  p.weights = paired_digits(w.expand({-1, e.size(1)}), rows, columns);
  if (all_columns > e.size(1))
    p.padding = paired_digits(w.expand({-1, all_columns}), rows, columns) - p.weights;
  p.row_weights =
      at::constant_pad_nd(w.squeeze(1), {0, c10::multiply_integers(rows) - e.size(0)}).reshape(rows);
  return p;
}

/// Column-wise Kronecker product [I J, rank] of factors [I, rank] and [J, rank].
at::Tensor khatri_rao(const at::Tensor& a, const at::Tensor& b) {
  return (a.unsqueeze(1) * b.unsqueeze(0)).flatten(0, 1);
}

/// That of factors begin ... end - 1; [1, rank] ones when there are none.
at::Tensor khatri_rao(const KetFactors& factors, size_t begin, size_t end) {
  at::Tensor result = at::ones({1, factors.front().size(1)}, at::kDouble);
  for (size_t k = begin; k < end; ++k) result = khatri_rao(result, factors[k]);
  return result;
}

/// The model, flat.
at::Tensor ket_model(const KetFactors& factors) {
  const size_t half = factors.size() / 2;
  return one_thread_product(khatri_rao(factors, 0, half), khatri_rao(factors, half, factors.size()).t())
      .flatten();
}

/// sum over all modes but k of X times the other factors, [t q, rank].
at::Tensor all_but_one(const at::Tensor& x, const KetFactors& factors, size_t k) {
  const int64_t size = factors[k].size(0);
  const at::Tensor left = khatri_rao(factors, 0, k), right = khatri_rao(factors, k + 1, factors.size());
  if (right.size(0) == 1) return one_thread_product(x.reshape({-1, size}).t(), left);
  const at::Tensor contracted =
      one_thread_product(x.reshape({-1, right.size(0)}), right).reshape({-1, size, left.size(1)});
  return (contracted * left.unsqueeze(1)).sum(0);
}

/// What each digit's rows of a factor make with themselves, [t, rank^2].
at::Tensor digit_grams(const KetProblem& p, const at::Tensor& factor) {
  const at::Tensor rows = factor.reshape({p.t, p.q, p.rank});
  return at::matmul(rows.transpose(1, 2), rows).reshape({p.t, -1});
}

/// weights: [count, t ... t], a mode for each of `grams` from `mode` on. The sum over all digits of the
/// weight times the products of their grams, [count, rank^2].
at::Tensor sum_of_grams(const at::Tensor& weights, const std::vector<at::Tensor>& grams, size_t mode) {
  if (mode + 1 == grams.size())
    return one_thread_product(weights.reshape({weights.size(0), -1}), grams[mode]);
  at::Tensor sum;
  for (int64_t digit = 0; digit < weights.size(1); ++digit) {
    const at::Tensor term = sum_of_grams(weights.select(1, digit), grams, mode + 1) * grams[mode][digit];
    sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

/// Least squares for factor k, a few digits at a time, with a pull to what it was that is too weak to matter
/// unless the equations are singular: so the error never rises.
void update_factor(const KetProblem& p, const at::Tensor& target, KetFactors& factors, size_t k) {
  std::vector<at::Tensor> grams;
  for (size_t l = 0; l < factors.size(); ++l) {
    if (l != k) grams.push_back(digit_grams(p, factors[l]));
  }
  const at::Tensor weights = p.row_weights.movedim(static_cast<int64_t>(k), 0);
  const at::Tensor before = factors[k].reshape({p.t, p.q, p.rank});
  const at::Tensor wanted = all_but_one(target, factors, k).reshape({p.t, p.q, p.rank});
  at::Tensor solved = at::empty_like(before);
  const int64_t at_once = std::max<int64_t>(1, kNormalNumbers / (p.rank * p.rank));
  for (int64_t first = 0; first < p.t; first += at_once) {
    const int64_t count = std::min(at_once, p.t - first);
    at::Tensor normal =
        sum_of_grams(weights.narrow(0, first, count), grams, 0).reshape({count, p.rank, p.rank});
    const at::Tensor scale = normal.diagonal(0, 1, 2).mean(1);
    const at::Tensor pull = at::where(scale > 0, 1e-10 * scale, at::ones_like(scale)).reshape({-1, 1, 1});
    normal = normal + pull * at::eye(p.rank, at::kDouble);
    const at::Tensor right = wanted.narrow(0, first, count) + pull * before.narrow(0, first, count);
    on_one_blas_thread([&] {
      const at::Tensor part = std::get<0>(at::linalg_solve_ex(normal, right.transpose(1, 2)));
      solved.narrow(0, first, count).copy_(part.transpose(1, 2));
    });
  }
  factors[k] = solved.reshape({p.t * p.q, p.rank});
}

double ket_error(const KetProblem& p, const at::Tensor& model) {
  if (p.squared_norm == 0) return 0;
  const double cross = (p.data.flatten() * model).sum().item<double>();
  const double own = (p.weights.flatten() * model.square()).sum().item<double>();
  return std::sqrt(std::max(0.0, p.squared_norm - 2 * cross + own) / p.squared_norm);
}

/// The exact answer for two factors when nothing is padded or weighted.
KetFactors ket_start_by_svd(const at::Tensor& table, const KetProblem& p) {
  const KroneckerSum sum =
      kronecker_sum(table.to(at::kDouble), {p.t, p.q, p.t, p.q}, p.rank, linalg::SvdSolver::kGram);
  KetFactors factors;
  for (const at::Tensor& side : {sum.left, sum.right}) {
    const at::Tensor rows = side.flatten(1).t();
    factors.push_back(at::constant_pad_nd(rows, {0, p.rank - rows.size(1)}));
  }
  return factors;
}

/// The first left singular vectors of the unfoldings, as for Tucker decompositions; random columns where
/// there are too few. The first factor is zero: it is solved for first, and what is padding starts at zero.
KetFactors ket_start_by_unfoldings(const KetProblem& p, uint64_t seed) {
  Rng rng(seed, "word2ketxs");
  const int64_t size = p.t * p.q, count = std::min(size, p.rank);
  KetFactors factors{at::zeros({size, p.rank}, at::kDouble)};
  for (int64_t k = 1; k < p.order; ++k) {
    const at::Tensor matrix = unfold(p.data, k);
    at::Tensor factor = at::empty({size, p.rank}, at::kDouble);
    for (int64_t i = 0; i < factor.numel(); ++i) factor.data_ptr<double>()[i] = rng.normal();
    factor.narrow(1, 0, count)
        .copy_(linalg::largest_eigen(one_thread_product(matrix, matrix.t()), count).vectors.t());
    factors.push_back(factor);
  }
  return factors;
}

void tell_word2ketxs(Observer* observer, int64_t sweep, int64_t sweeps, double error) {
  if (observer == nullptr) return;
  observer->progress({"Kronecker factors", sweep, sweeps, fmt::format("relative error {:.4f}", error)});
  if (observer->cancelled()) throw Interrupted("fit_word2ketxs", "stopped between two factors, as asked");
}

}  // namespace

int64_t smallest_base(int64_t n, int64_t order) {
  const auto reaches = [&](int64_t base) {
    double power = 1;
    for (int64_t i = 0; i < order; ++i) power *= static_cast<double>(base);
    return power >= static_cast<double>(n);
  };
  auto base = static_cast<int64_t>(std::pow(static_cast<double>(n), 1.0 / static_cast<double>(order)));
  base = std::max<int64_t>(1, base - 1);
  while (!reaches(base)) ++base;
  return base;
}

int64_t word2ketxs_bytes(int64_t order, int64_t rank, int64_t t, int64_t q) {
  const auto power = [](double base, int64_t exponent) {
    return std::pow(base, static_cast<double>(exponent));
  };
  const auto size = static_cast<double>(t * q), columns = static_cast<double>(rank);
  const double arrays = 6 * power(size, order);
  // Products of about half of the factors on either side, and the target contracted with those behind one.
  const double halves = 2 * power(size, (order + 1) / 2) * columns;
  const double contracted = order > 2 ? 3 * power(size, order - 1) * columns : 0;
  const double grams = static_cast<double>((order - 1) * t) * columns * columns;
  const double normal = 4 * std::max(columns * columns, static_cast<double>(kNormalNumbers));
  return static_cast<int64_t>(std::min(8 * (arrays + halves + contracted + grams + normal), 0x1p62));
}

Word2KetXsFit fit_word2ketxs(const at::Tensor& table, const Word2KetXsOptions& options,
                             const at::Tensor& row_weights, Observer* observer) {
  const KetProblem p = ket_problem(table, options, row_weights);
  KetFactors factors = p.order == 2 ? ket_start_by_svd(table, p) : ket_start_by_unfoldings(p, options.seed);
  const bool solved = p.order == 2 && !row_weights.defined() && p.data.numel() == table.numel();
  at::Tensor model = ket_model(factors);
  Word2KetXsFit fit;
  fit.sweep_errors.push_back(ket_error(p, model));
  for (int64_t sweep = 0; sweep < options.sweeps && !solved; ++sweep) {
    const at::Tensor target = p.padding.defined() ? p.data.flatten() + p.padding.flatten() * model : p.data;
    for (size_t k = 0; k < factors.size(); ++k) {
      tell_word2ketxs(observer, sweep, options.sweeps, fit.sweep_errors.back());
      update_factor(p, target, factors, k);
    }
    model = ket_model(factors);
    fit.sweep_errors.push_back(ket_error(p, model));
    const size_t last = fit.sweep_errors.size() - 1;
    if (fit.sweep_errors[last - 1] - fit.sweep_errors[last] < options.tolerance) break;
  }
  fit.relative_error = fit.sweep_errors.back();
  fit.leaf = at::stack(factors).reshape({p.order, p.t, p.q, p.rank}).permute({0, 3, 1, 2}).contiguous();
  return fit;
}

}  // namespace lcomp::lowrank
