#include "lcomp/lowrank/embedding.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/morphte.h"
#include "lcomp/lowrank/row_patch_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/lowrank/word2ketxs.h"

namespace lcomp::lowrank {
namespace {

/// Rows that are looked up at a time where the whole table is compared.
constexpr int64_t kRowsCompared = 1024;

/// What a fit works with.
struct EmbeddingProblem {
  const at::Tensor& table;  // [vocabulary, dim]
  const EmbeddingOptions& options;
  at::Tensor weights;  // float64 [vocabulary]
  int64_t rank;
  at::ScalarType type;
  uint64_t seed;
  ThreadPool* pool;

  int64_t rows() const { return table.size(0); }
  int64_t columns() const { return table.size(1); }
};

/// Numbers of one Kronecker product.
int64_t product_size(int64_t order, int64_t rows, int64_t columns) {
  return order * smallest_base(rows, order) * smallest_base(columns, order);
}

/// The digits of rows and columns that a train goes over.
MatrixShapes train_shapes(int64_t order, int64_t rows, int64_t columns) {
  MatrixShapes shapes{padded_shape(rows, order), balanced_shape(columns, order)};
  std::reverse(shapes.columns.begin(), shapes.columns.end());
  return shapes;
}

int64_t train_size(const MatrixShapes& shapes, int64_t rank) {
  std::vector<int64_t> ranks(shapes.rows.size() + 1, rank);
  ranks.front() = ranks.back() = 1;
  return train_cost(shapes.rows, shapes.columns, ranks).parameters;
}

/// The largest rank of an approximation of at most so many numbers, what it takes, and what rank 1 takes.
struct Room {
  int64_t rank = 0;
  int64_t numbers = 0;
  int64_t least = 0;
};

Room room_for(const EmbeddingOptions& options, int64_t rows, int64_t columns, int64_t numbers,
              const MorphemeIndex* morphemes) {
  const int64_t order = options.settled_order();
  const auto linear = [numbers](int64_t each, int64_t fixed) {
    const int64_t rank = (numbers - fixed) / each;
    return Room{rank, fixed + rank * each, fixed + each};
  };
  switch (options.method) {
    case EmbeddingMethod::kLowRank: {
      const int64_t rank = largest_rank(Form::kPair, rows, columns, numbers);
      return {rank, factored_size(Form::kPair, rows, columns, rank), rows + columns};
    }
    case EmbeddingMethod::kTensorTrain: {
      const MatrixShapes shapes = train_shapes(order, rows, columns);
      int64_t rank = 0;
      while (rank < rows && train_size(shapes, rank + 1) <= numbers) ++rank;
      return {rank, train_size(shapes, rank), train_size(shapes, 1)};
    }
    case EmbeddingMethod::kWord2KetXs:
      return linear(product_size(order, rows, columns), 0);
    case EmbeddingMethod::kMorphTe:
      break;
  }
  if (morphemes == nullptr)
    throw InvalidArgument("embedding", "morphte must be given the tokens' morphemes; there are none");
  return linear(static_cast<int64_t>(morphemes->morphemes.size()) * smallest_base(columns, order),
                morphemes->index.numel());
}

/// That the approximation may take.
int64_t numbers_left(const EmbeddingOptions& options, int64_t rows, int64_t columns) {
  const double all = static_cast<double>(rows) * static_cast<double>(columns);
  return static_cast<int64_t>(all / options.ratio + 1e-6) - options.exceptions * columns;
}

/// "low_rank", "tensor_train of order 3".
std::string described(const EmbeddingOptions& options) {
  std::string name(name_of(options.method));
  if (options.method == EmbeddingMethod::kLowRank) return name;
  return fmt::format("{} of order {}", name, options.settled_order());
}

/// A rank of at least 1; throws InvalidArgument for options that cannot be.
Room checked_room(const EmbeddingOptions& options, int64_t rows, int64_t columns, bool counted,
                  const MorphemeIndex* morphemes) {
  if (options.order == 1) throw InvalidArgument("embedding", "order must be 0 or from 2 up; it is 1");
  if (options.exceptions > 0 && !counted) {
    throw InvalidArgument("embedding", fmt::format("exceptions need counts that tell the frequent tokens; "
                                                   "there are none for {} of them",
                                                   options.exceptions));
  }
  if (options.exceptions >= rows) {
    throw InvalidArgument("embedding", fmt::format("exceptions must be fewer than the {} rows; they are {}",
                                                   rows, options.exceptions));
  }
  const int64_t numbers = numbers_left(options, rows, columns);
  const Room room = room_for(options, rows, columns, numbers, morphemes);
  if (room.rank >= 1) return room;
  throw InvalidArgument(
      "embedding", fmt::format("ratio and exceptions must leave {} numbers at least for {}; they leave {}",
                               room.least, described(options), std::max<int64_t>(0, numbers)));
}

WeightPtr in_two_factors(const EmbeddingProblem& p) {
  const Factors factors =
      low_rank(p.table, InputMetric::plain(p.columns()), p.rank, Solver::kAuto, p.weights, p.pool);
  return factored_weight(factors, Form::kPair, [&](const at::Tensor& values, const Weight*) {
    return std::make_shared<DenseWeight>(values.to(p.type));
  });
}

WeightPtr as_train(const EmbeddingProblem& p) {
  const MatrixShapes shapes = train_shapes(p.options.settled_order(), p.rows(), p.columns());
  const TrainMatrix train = tt_matrix(p.table, shapes.rows, shapes.columns,
                                      {.ranks = {p.rank}, .solver = linalg::SvdSolver::kGram});
  return std::make_shared<TensorTrainWeight>(train, p.type);
}

WeightPtr as_kronecker_sum(const EmbeddingProblem& p, Observer* observer) {
  const Word2KetXsOptions options{
      .order = p.options.settled_order(), .rank = p.rank, .sweeps = p.options.sweeps, .seed = p.seed};
  const Word2KetXsFit fit = fit_word2ketxs(p.table, options, p.weights, observer);
  return std::make_shared<KroneckerSumWeight>(p.rows(), p.columns(), fit.leaf.to(p.type));
}

WeightPtr of_morphemes(const EmbeddingProblem& p, const MorphemeIndex& morphemes, Observer* observer) {
  const auto count = static_cast<int64_t>(morphemes.morphemes.size());
  const MorphteFit fit =
      fit_morphte(p.table, morphemes.index, count,
                  {.rank = p.rank, .sweeps = p.options.sweeps, .seed = p.seed}, p.weights, p.pool, observer);
  return std::make_shared<MorphemeWeight>(fit.tables.to(p.type), morphemes.index, p.columns());
}

WeightPtr fitted(const EmbeddingProblem& problem, const MorphemeIndex* morphemes, Observer* observer) {
  switch (problem.options.method) {
    case EmbeddingMethod::kLowRank:
      return in_two_factors(problem);
    case EmbeddingMethod::kTensorTrain:
      return as_train(problem);
    case EmbeddingMethod::kWord2KetXs:
      return as_kronecker_sum(problem, observer);
    case EmbeddingMethod::kMorphTe:
      break;
  }
  return of_morphemes(problem, *morphemes, observer);
}

/// The most frequent tokens, ascending by number; of equally frequent ones the first.
at::Tensor most_frequent(const at::Tensor& counts, int64_t count) {
  const at::Tensor order = std::get<1>(counts.sort(/*stable=*/true, 0, /*descending=*/true));
  return std::get<0>(order.narrow(0, 0, count).sort());
}

}  // namespace

void EmbeddingOptions::visit(FieldVisitor& v) {
  v.field("method", method, "what becomes of the table");
  v.field("ratio", ratio, {1}, "times fewer numbers than the table has");
  v.field("order", order, {0, 8},
          "cores of a train, factors of a Kronecker product, or morphemes of a token, from 2 up; 0: 2 for "
          "word2ketxs, else 3");
  v.field("exceptions", exceptions, {0},
          "rows that are kept but for the rounding of a difference: those of the most frequent tokens of the "
          "calibration text");
  v.field("frequency_power", frequency_power, {0, 1},
          "rows weigh (count + 1) to this power in the fit, by their counts in the calibration text; 0: all "
          "alike. A tensor train has no weights");
  v.field("sweeps", sweeps, {1, 10000},
          "of the alternating least squares of word2ketxs and morphte, at most");
  v.field("segments", segments,
          "of morphte: JSON file with the morphemes of tokens; without one, common affixes of English");
}

std::vector<IdleSetting> EmbeddingOptions::idle(bool counts) const {
  std::vector<IdleSetting> idle;
  const bool alternates = method == EmbeddingMethod::kWord2KetXs || method == EmbeddingMethod::kMorphTe;
  if (method == EmbeddingMethod::kLowRank) idle.push_back({"order", "with a method other than low_rank"});
  if (!alternates) idle.push_back({"sweeps", "with method word2ketxs or morphte"});
  if (method != EmbeddingMethod::kMorphTe) idle.push_back({"segments", "with method morphte"});
  if (method == EmbeddingMethod::kTensorTrain) {
    idle.push_back({"frequency_power", "with a method other than tensor_train"});
  } else if (!counts) {
    idle.push_back({"frequency_power", "with a calibration text"});
  }
  return idle;
}

int64_t EmbeddingOptions::settled_order() const {
  if (order > 0) return order;
  return method == EmbeddingMethod::kWord2KetXs ? 2 : 3;
}

int64_t embedding_fit_bytes(const EmbeddingOptions& options, int64_t vocabulary, int64_t dim) {
  // The table in float64, its copies by digits, products of factors.
  constexpr int64_t kBytesPerElement = 48;
  const int64_t order = options.settled_order();
  const int64_t rank = numbers_left(options, vocabulary, dim) / product_size(order, vocabulary, dim);
  if (options.method != EmbeddingMethod::kWord2KetXs || rank < 1) return kBytesPerElement * vocabulary * dim;
  return word2ketxs_bytes(order, rank, smallest_base(vocabulary, order), smallest_base(dim, order));
}

int64_t embedding_numbers(const EmbeddingOptions& options, int64_t vocabulary, int64_t dim, bool counted,
                          const MorphemeIndex* morphemes) {
  return checked_room(options, vocabulary, dim, counted, morphemes).numbers + options.exceptions * dim;
}

EmbeddingFit fit_embedding(const at::Tensor& table, const EmbeddingOptions& options, const at::Tensor& counts,
                           const MorphemeIndex* morphemes, at::ScalarType type, uint64_t seed,
                           ThreadPool* pool, Observer* observer) {
  const int64_t rows = table.size(0), columns = table.size(1);
  const int64_t rank = checked_room(options, rows, columns, counts.defined(), morphemes).rank;
  at::Tensor weights = at::ones({rows}, at::kDouble);
  if (counts.defined()) weights = (counts.to(at::kDouble) + 1).pow(options.frequency_power);
  at::Tensor kept;
  if (options.exceptions > 0) {
    kept = most_frequent(counts, options.exceptions);
    weights.index_fill_(0, kept, 1e-6 * weights.min().item<double>());
  }
  EmbeddingFit fit;
  fit.weight = fitted({table, options, weights, rank, type, seed, pool}, morphemes, observer);
  if (kept.defined()) {
    const at::Tensor left_over = table.index_select(0, kept).to(at::kFloat) - fit.weight->rows(kept);
    auto patch = std::make_shared<RowPatchWeight>(rows, kept, left_over.to(type));
    fit.weight = std::make_shared<SumWeight>(std::vector<WeightPtr>{fit.weight, patch});
  }
  double error = 0, energy = 0;
  for (int64_t first = 0; first < rows; first += kRowsCompared) {
    const int64_t count = std::min(kRowsCompared, rows - first);
    const at::Tensor part = table.narrow(0, first, count).to(at::kDouble);
    const at::Tensor ids = at::arange(first, first + count, at::kLong);
    error += (part - fit.weight->rows(ids)).square().sum().item<double>();
    energy += part.square().sum().item<double>();
  }
  fit.relative_error = energy > 0 ? std::sqrt(error / energy) : 0;
  return fit;
}

}  // namespace lcomp::lowrank
