#include "lcomp/lowrank/morphte.h"

#include <ATen/ATen.h>
#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "lcomp/linalg/cholesky.h"
#include "lcomp/lowrank/word2ketxs.h"
#include "lowrank/morphte_rows.h"
#include "lowrank/row_weights.h"

namespace lcomp::lowrank {
namespace {

using Integers2d = std::vector<std::vector<int64_t>>;

/// Rows that are one piece of work when errors are summed.
constexpr int64_t kPieceRows = 256;

/// What is fitted, at a spread of 1.
struct MorphteProblem {
  MorphteSizes sizes;
  int64_t morphemes = 0;
  at::Tensor table;           ///< float32 [vocabulary, columns], scaled
  at::Tensor index;           ///< int32 [vocabulary, order]
  at::Tensor weights;         ///< float64 [vocabulary], of mean 1 over the rows that count
  std::vector<int64_t> rows;  ///< those that count: of weight above 0
  double spread = 1;          ///< what the table was divided by
  double squared_norm = 0;    ///< weighted, of the scaled table

  int64_t morpheme(int64_t row, int64_t j) const { return index.data_ptr<int32_t>()[row * sizes.order + j]; }
  double weight(int64_t row) const { return weights.data_ptr<double>()[row]; }
  const float* target(int64_t row) const { return table.data_ptr<float>() + row * sizes.columns; }
};

void check_morphte_index(const at::Tensor& table, const at::Tensor& index, int64_t morphemes) {
  constexpr const char* kWhere = "fit_morphte";
  if (index.dim() != 2 || index.scalar_type() != at::kInt || index.size(0) != table.size(0) ||
      index.size(1) < 1 || index.size(1) > 8) {
    throw InvalidArgument(kWhere, fmt::format("the index must be int32 [{}, 1 to 8]; it has {} elements",
                                              table.size(0), index.numel()));
  }
  const auto least = index.min().item<int64_t>(), most = index.max().item<int64_t>();
  if (least < 0 || most >= morphemes) {
    throw InvalidArgument(kWhere, fmt::format("the index must lie in [0, {}), the morphemes; one is {}",
                                              morphemes, least < 0 ? least : most));
  }
}

void check_morphte_arguments(const at::Tensor& table, const at::Tensor& index, int64_t morphemes,
                             const MorphteOptions& o) {
  constexpr const char* kWhere = "fit_morphte";
  if (table.dim() != 2 || table.numel() == 0 || !table.is_floating_point())
    throw InvalidArgument(kWhere, "the table must be a floating-point matrix that is not empty");
  check_morphte_index(table, index, morphemes);
  if (o.rank < 1 || o.sweeps < 0) {
    throw InvalidArgument(kWhere,
                          fmt::format("the rank must be at least 1 and sweeps at least 0; they are {} "
                                      "and {}",
                                      o.rank, o.sweeps));
  }
  const int64_t least = smallest_base(table.size(1), index.size(1));
  if (o.q != 0 && o.q < least)
    throw InvalidArgument(kWhere, fmt::format("q must be at least {}; it is {}", least, o.q));
  if (!at::isfinite(table).all().item<bool>())
    throw NumericalError(kWhere, "all elements of the table must be finite; some are not");
}

MorphteProblem morphte_problem(const at::Tensor& table, const at::Tensor& index, int64_t morphemes,
                               const MorphteOptions& o, const at::Tensor& row_weights) {
  check_morphte_arguments(table, index, morphemes, o);
  MorphteProblem p{.sizes = {.order = index.size(1), .rank = o.rank, .q = o.q, .columns = table.size(1)},
                   .morphemes = morphemes,
                   .table = {},
                   .index = index.contiguous(),
                   .weights = checked_row_weights(row_weights, table.size(0), "fit_morphte").contiguous(),
                   .rows = {}};
  if (o.q == 0) p.sizes.q = smallest_base(p.sizes.columns, p.sizes.order);
  for (int64_t row = 0; row < table.size(0); ++row) {
    if (p.weight(row) > 0) p.rows.push_back(row);
  }
  const auto count = static_cast<double>(p.rows.size());
  p.weights = p.weights * (count / p.weights.sum());
  const at::Tensor squares = table.to(at::kDouble).square().sum(1);
  const double energy = (squares * p.weights).sum().item<double>();
  if (energy > 0) p.spread = std::sqrt(energy / (count * static_cast<double>(p.sizes.columns)));
  p.squared_norm = energy / (p.spread * p.spread);
  p.table = (table.to(at::kFloat) / p.spread).contiguous();
  return p;
}

/// The tables, [morphemes, rank, q], and who works on them.
struct MorphteWork {
  std::vector<float> tables;
  std::vector<MorphteScratch> scratch;  ///< of each thread
  ThreadPool* pool = nullptr;

  MorphteVectors vectors(const MorphteProblem& p, int64_t row) const {
    MorphteVectors result;
    for (int64_t j = 0; j < p.sizes.order; ++j)
      result.push_back(tables.data() + p.morpheme(row, j) * p.sizes.vector());
    return result;
  }
};

/// Random tables whose products have a spread of 1: rank terms of spread^order each.
MorphteWork morphte_start(const MorphteProblem& p, uint64_t seed, ThreadPool* pool) {
  const double spread =
      std::pow(static_cast<double>(p.sizes.rank), -0.5 / static_cast<double>(p.sizes.order));
  const auto threads = static_cast<size_t>(pool == nullptr ? 1 : pool->size());
  MorphteWork work{.tables = std::vector<float>(static_cast<size_t>(p.morphemes * p.sizes.vector())),
                   .scratch = std::vector<MorphteScratch>(threads, MorphteScratch(p.sizes)),
                   .pool = pool};
  Rng rng(seed, "morphte");
  for (float& value : work.tables) value = static_cast<float>(spread * rng.normal());
  return work;
}

double morphte_error(const MorphteProblem& p, MorphteWork& work) {
  const auto count = static_cast<int64_t>(p.rows.size());
  std::vector<double> sums(static_cast<size_t>(ceil_div(count, kPieceRows)));
  parallel_for(work.pool, static_cast<int64_t>(sums.size()), [&](int64_t piece, int worker) {
    for (int64_t i = piece * kPieceRows; i < std::min(count, (piece + 1) * kPieceRows); ++i) {
      const int64_t row = p.rows[static_cast<size_t>(i)];
      sums[static_cast<size_t>(piece)] +=
          p.weight(row) * row_residual(p.sizes, work.vectors(p, row), p.target(row),
                                       work.scratch[static_cast<size_t>(worker)]);
    }
  });
  const double loss = std::accumulate(sums.begin(), sums.end(), 0.0);
  return p.squared_norm == 0 ? 0 : std::sqrt(loss / p.squared_norm);
}

/// The rows that count in which each morpheme stands, ascending.
Integers2d rows_by_morpheme(const MorphteProblem& p) {
  Integers2d rows_of(static_cast<size_t>(p.morphemes));
  for (const int64_t row : p.rows) {
    for (int64_t j = 0; j < p.sizes.order; ++j) {
      auto& rows = rows_of[static_cast<size_t>(p.morpheme(row, j))];
      if (rows.empty() || rows.back() != row) rows.push_back(row);
    }
  }
  return rows_of;
}

/// The morphemes that stand in a row, in classes of which no row has two. Frequent ones are dealt out first,
/// each to the first class that it fits.
Integers2d independent_classes(const MorphteProblem& p, const Integers2d& rows_of) {
  std::vector<int64_t> morphemes(rows_of.size());
  std::iota(morphemes.begin(), morphemes.end(), 0);
  const auto count = [&](int64_t m) { return rows_of[static_cast<size_t>(m)].size(); };
  std::stable_sort(morphemes.begin(), morphemes.end(),
                   [&](int64_t a, int64_t b) { return count(a) > count(b); });
  Integers2d classes;
  std::vector<std::vector<size_t>> classes_of_row(static_cast<size_t>(p.table.size(0)));
  for (const int64_t morpheme : morphemes) {
    if (count(morpheme) == 0) break;
    std::vector<bool> taken(classes.size() + 1);
    for (const int64_t row : rows_of[static_cast<size_t>(morpheme)]) {
      for (const size_t c : classes_of_row[static_cast<size_t>(row)]) taken[c] = true;
    }
    const auto free = static_cast<size_t>(std::find(taken.begin(), taken.end(), false) - taken.begin());
    if (free == classes.size()) classes.emplace_back();
    classes[free].push_back(morpheme);
    for (const int64_t row : rows_of[static_cast<size_t>(morpheme)])
      classes_of_row[static_cast<size_t>(row)].push_back(free);
  }
  return classes;
}

/// The equations for the vectors of one morpheme: N [rank, rank], the same for each of the q elements of a
/// vector, and the gradient [rank, q].
struct NormalEquations {
  explicit NormalEquations(const MorphteSizes& s)
      : normal(static_cast<size_t>(s.rank * s.rank)),
        gradient(static_cast<size_t>(s.vector())),
        products(normal.size()),
        gram(normal.size()),
        part(gradient.size()) {}

  std::vector<double> normal, gradient;
  std::vector<float> products, gram, part;  // of one word
};

/// Adds weight x the products over the other vectors of <v_r, v_s>.
void add_normal_matrix(const MorphteSizes& s, const MorphteVectors& vectors, int64_t left_out, double weight,
                       NormalEquations& e) {
  const int rank = static_cast<int>(s.rank), q = static_cast<int>(s.q);
  std::fill(e.products.begin(), e.products.end(), 1.0F);
  for (int64_t j = 0; j < s.order; ++j) {
    if (j == left_out) continue;
    const float* v = vectors[static_cast<size_t>(j)];
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rank, rank, q, 1, v, q, v, q, 0, e.gram.data(),
                rank);
    for (size_t i = 0; i < e.gram.size(); ++i) e.products[i] *= e.gram[i];
  }
  for (size_t i = 0; i < e.products.size(); ++i) e.normal[i] += weight * static_cast<double>(e.products[i]);
}

/// gradient = (N + pull)^-1 gradient, where the pull to what the vectors were is too weak to matter unless N
/// is singular. False when there is nothing to go by.
bool solve_normal_equations(const MorphteSizes& s, NormalEquations& e) {
  const int rank = static_cast<int>(s.rank), q = static_cast<int>(s.q);
  double trace = 0;
  for (size_t i = 0; i < e.normal.size(); i += static_cast<size_t>(s.rank + 1)) trace += e.normal[i];
  const double pull = 1e-6 * trace / static_cast<double>(s.rank);
  for (size_t i = 0; i < e.normal.size(); i += static_cast<size_t>(s.rank + 1)) e.normal[i] += pull;
  if (linalg::cholesky_lower(e.normal.data(), s.rank) != 0) return false;
  for (const auto transposed : {CblasNoTrans, CblasTrans}) {
    cblas_dtrsm(CblasRowMajor, CblasLeft, CblasLower, transposed, CblasNonUnit, rank, q, 1, e.normal.data(),
                rank, e.gradient.data(), q);
  }
  return true;
}

/// The best vectors of a morpheme for those of the others: v - N^-1 g. What is cut off of the rows is taken
/// to be what the model says: its residual is 0, N keeps its form, and the error still does not rise.
void update_morpheme(const MorphteProblem& p, int64_t morpheme, const std::vector<int64_t>& rows,
                     MorphteWork& work, MorphteScratch& scratch) {
  NormalEquations e(p.sizes);
  for (const int64_t row : rows) {
    const MorphteVectors vectors = work.vectors(p, row);
    row_residual(p.sizes, vectors, p.target(row), scratch);
    int64_t times = 0;
    for (int64_t j = 0; j < p.sizes.order; ++j) times += p.morpheme(row, j) == morpheme ? 1 : 0;
    for (int64_t j = 0; j < p.sizes.order; ++j) {
      if (p.morpheme(row, j) != morpheme) continue;
      // (sum J_j)^T (sum J_j) is at most `times` sum J_j^T J_j: steps that long do not overshoot.
      add_normal_matrix(p.sizes, vectors, j, static_cast<double>(times) * p.weight(row), e);
      row_gradient(p.sizes, vectors, j, scratch, e.part.data());
      for (size_t i = 0; i < e.part.size(); ++i)
        e.gradient[i] += p.weight(row) * static_cast<double>(e.part[i]);
    }
  }
  if (!solve_normal_equations(p.sizes, e)) return;
  float* own = work.tables.data() + morpheme * p.sizes.vector();
  for (size_t i = 0; i < e.gradient.size(); ++i) own[i] -= static_cast<float>(e.gradient[i]);
}

void least_squares_sweep(const MorphteProblem& p, const Integers2d& classes, const Integers2d& rows_of,
                         MorphteWork& work) {
  for (const std::vector<int64_t>& members : classes) {
    parallel_for(work.pool, static_cast<int64_t>(members.size()), [&](int64_t i, int worker) {
      const int64_t morpheme = members[static_cast<size_t>(i)];
      update_morpheme(p, morpheme, rows_of[static_cast<size_t>(morpheme)], work,
                      work.scratch[static_cast<size_t>(worker)]);
    });
  }
}

/// [rank, morphemes, q] at the scale of the table.
at::Tensor finished_tables(const MorphteProblem& p, const std::vector<float>& tables) {
  const at::Tensor t = at::tensor(tables, at::kFloat).reshape({p.morphemes, p.sizes.rank, p.sizes.q});
  return t.transpose(0, 1).contiguous() * std::pow(p.spread, 1.0 / static_cast<double>(p.sizes.order));
}

void tell_morphte(Observer* observer, int64_t sweep, int64_t sweeps, double error) {
  if (observer == nullptr) return;
  observer->progress({"morpheme vectors", sweep, sweeps, fmt::format("relative error {:.4f}", error)});
  if (observer->cancelled()) throw Interrupted("fit_morphte", "stopped between two sweeps, as asked");
}

}  // namespace

MorphteFit fit_morphte(const at::Tensor& table, const at::Tensor& index, int64_t morphemes,
                       const MorphteOptions& options, const at::Tensor& row_weights, ThreadPool* pool,
                       Observer* observer) {
  const MorphteProblem p = morphte_problem(table, index, morphemes, options, row_weights);
  const Integers2d rows_of = rows_by_morpheme(p), classes = independent_classes(p, rows_of);
  MorphteWork work = morphte_start(p, options.seed, pool);
  MorphteFit fit;
  fit.relative_error = morphte_error(p, work);
  fit.sweep_errors.push_back(fit.relative_error);
  std::vector<float> best = work.tables;
  for (int64_t sweep = 0; sweep < options.sweeps; ++sweep) {
    tell_morphte(observer, sweep, options.sweeps, fit.relative_error);
    least_squares_sweep(p, classes, rows_of, work);
    const double before = fit.relative_error, error = morphte_error(p, work);
    fit.sweep_errors.push_back(error);
    if (error < before) {
      fit.relative_error = error;
      best = work.tables;
    }
    if (before - error < options.tolerance) break;
  }
  fit.tables = finished_tables(p, best);
  return fit;
}

}  // namespace lcomp::lowrank
