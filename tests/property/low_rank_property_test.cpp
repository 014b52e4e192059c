// What must hold of factors, tensor decompositions and the weights that store them, for any matrix and any
// metric. Seeds are in the captured values.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>

#include "lcomp/lowrank/alternation.h"
#include "lcomp/lowrank/embedding.h"
#include "lcomp/lowrank/kronecker.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/tucker.h"
#include "support/factored_llama.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::DenseWeight;
using lcomp::Rng;
using lcomp::WeightPtr;
using lcomp::test::FactoredLlama;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

using Sizes = std::vector<int64_t>;

int64_t between(Rng& rng, int64_t low, int64_t high) {
  return low + static_cast<int64_t>(rng.below(static_cast<uint64_t>(high - low + 1)));
}

/// 1, 1e6 or 1e-6.
double random_scale(Rng& rng) {
  return std::pow(10.0, 6.0 * static_cast<double>(between(rng, -1, 1)));
}

at::Tensor normal_tensor(const Sizes& shape, const std::string& stream, uint64_t seed) {
  return normal_matrix(1, c10::multiply_integers(shape), stream, seed).reshape(shape);
}

/// A matrix of any shape and scale, and a second moment: of many inputs or of fewer than it has columns, some
/// of which may be dead or alike.
struct Problem {
  at::Tensor w, h;
  int64_t rank = 1;
  bool singular = false;

  InputMetric metric() const { return InputMetric::moment(h); }
  double loss(const at::Tensor& difference) const {
    return difference.mm(h).mul(difference).sum().item<double>();
  }
  double energy() const { return loss(w); }
};

Problem random_problem(uint64_t seed) {
  Rng rng(seed, "low-rank problem");
  const int64_t out = between(rng, 1, 24), in = between(rng, 1, 24);
  Problem p;
  p.w = random_scale(rng) * normal_matrix(out, in, "w", seed);
  p.singular = rng.below(2) == 0;
  const int64_t tokens = p.singular ? between(rng, 1, in) : 4 * in;
  const at::Tensor mix = at::eye(in, at::kDouble) + 0.7 * normal_matrix(in, in, "mix", seed) / std::sqrt(in);
  at::Tensor x = random_scale(rng) * normal_matrix(tokens, in, "x", seed).mm(mix);
  if (p.singular && in > 2) {
    x.select(1, 0).zero_();
    x.select(1, 1).copy_(x.select(1, in - 1));
  }
  p.h = x.t().mm(x);
  const int64_t most = std::min(out, in);
  p.rank = rng.below(4) == 0 ? most : between(rng, 1, most);
  return p;
}

constexpr uint64_t kProblems = 250;

WeightPtr keep(const at::Tensor& values, const lcomp::Weight* = nullptr) {
  return std::make_shared<DenseWeight>(values);
}

double squared_distance(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).square().sum().item<double>();
}

/// Sum of the squares, or of another power, of the singular values beyond the rank.
double tail_beyond(const at::Tensor& matrix, int64_t rank, int power = 2) {
  const Eigen::VectorXd s = Eigen::JacobiSVD<Eigen::MatrixXd>(lcomp::test::to_eigen(matrix)).singularValues();
  return s.tail(s.size() - std::min<int64_t>(rank, s.size())).array().pow(power).sum();
}

Sizes random_sizes(Rng& rng, int64_t count, int64_t most) {
  Sizes sizes(static_cast<size_t>(count));
  for (int64_t& size : sizes) size = between(rng, 1, most);
  return sizes;
}

}  // namespace

TEST_CASE("the loss of factors is the cut tail, whatever the shape, the scale and the inputs",
          "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    const Problem p = random_problem(seed);
    CAPTURE(seed, p.w.size(0), p.w.size(1), p.rank, p.singular);
    const InputMetric metric = p.metric();
    const std::vector<double> losses = component_losses(p.w, metric);
    double tail = 0;
    for (auto i = static_cast<size_t>(p.rank); i < losses.size(); ++i) tail += losses[i];
    const double slack = 1e-9 * p.energy();
    for (const Solver solver : {Solver::kExact, Solver::kGram}) {
      const Factors found = low_rank(p.w, metric, p.rank, solver);
      const double loss = p.loss(p.w - found.product());
      REQUIRE(std::abs(loss - tail) <= slack);
      REQUIRE(std::abs(found.tail - tail) <= slack);
      REQUIRE(std::abs(found.energy - p.energy()) <= slack);
      REQUIRE(std::abs(metric.loss(p.w - found.product()) - loss) <= slack);
      REQUIRE(found.left.size(1) == p.rank);
      REQUIRE(found.right.size(0) == p.rank);
    }
  }
}

TEST_CASE("no other factors of the rank lose less, near or far", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    const Problem p = random_problem(seed);
    CAPTURE(seed, p.w.size(0), p.w.size(1), p.rank, p.singular);
    const Factors found = low_rank(p.w, p.metric(), p.rank);
    const double loss = p.loss(p.w - found.product()), slack = 1e-9 * p.energy();
    for (const double step : {1e-4, 1e-2, 1.0}) {
      for (uint64_t direction = 0; direction < 4; ++direction) {
        const uint64_t stream = 10 * seed + direction;
        const at::Tensor a =
            found.left + step * found.left.abs().mean() * normal_matrix(p.w.size(0), p.rank, "left", stream);
        const at::Tensor b = found.right + step * found.right.abs().mean() *
                                               normal_matrix(p.rank, p.w.size(1), "right", stream);
        REQUIRE(p.loss(p.w - a.mm(b)) >= loss - slack);
        REQUIRE(p.loss(p.w - a.mm(found.right)) >= loss - slack);
      }
    }
    // Other metrics, and projections of the inputs, which lose no more than their own bound.
    const int64_t in = p.w.size(1);
    for (const InputMetric& other :
         {InputMetric::plain(in), InputMetric::diagonal(p.h.diagonal().clamp_min(0).sqrt().sqrt())})
      REQUIRE(p.loss(p.w - low_rank(p.w, other, p.rank).product()) >= loss - slack);
    const double projected = p.loss(p.w - project_inputs(p.w, p.metric(), p.rank).product());
    REQUIRE(projected >= loss - slack);
    const double dropped = tail_beyond(p.h, p.rank, 1);
    REQUIRE(projected <= (tail_beyond(p.w, 0) - tail_beyond(p.w, 1)) * dropped + slack);
  }
}

TEST_CASE("second moments count up to a factor, and matrices scale", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    const Problem p = random_problem(seed);
    CAPTURE(seed, p.w.size(0), p.w.size(1), p.rank, p.singular);
    const Factors base = low_rank(p.w, p.metric(), p.rank);
    const double slack = 1e-9 * p.energy();
    for (const double factor : {1e-8, 3.0, 1e8}) {
      const Factors counted = low_rank(p.w, InputMetric::moment(factor * p.h), p.rank);
      const Factors scaled = low_rank(factor * p.w, p.metric(), p.rank);
      REQUIRE(std::abs(counted.tail / factor - base.tail) <= slack);
      REQUIRE(std::abs(scaled.tail / (factor * factor) - base.tail) <= slack);
      REQUIRE(std::abs(p.loss(p.w - counted.product()) - base.tail) <= slack);
      REQUIRE(std::abs(p.loss(p.w - scaled.product() / factor) - base.tail) <= slack);
      if (p.singular) continue;  // directions that nothing is seen of may turn
      REQUIRE(relative_difference(counted.product(), base.product()) < 1e-6);
      REQUIRE(relative_difference(scaled.product(), factor * base.product()) < 1e-6);
    }
  }
}

TEST_CASE("the pivoted form is the pair in fewer numbers", "[property][lowrank]") {
  uint64_t checked = 0;
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    const Problem p = random_problem(seed);
    const int64_t out = p.w.size(0), in = p.w.size(1);
    if (p.rank >= out) continue;  // nothing but pivots
    CAPTURE(seed, out, in, p.rank);
    ++checked;
    const Factors factors = low_rank(p.w, p.metric(), p.rank);
    const at::Tensor x = normal_matrix(5, in, "x", seed).to(at::kFloat);
    for (const Form form : {Form::kPair, Form::kPivoted}) {
      const WeightPtr weight = factored_weight(factors, form, keep);
      REQUIRE(relative_difference(weight->dense(), factors.product()) < 1e-5);
      REQUIRE(relative_difference(weight->apply(x), x.to(at::kDouble).mm(factors.product().t())) < 1e-4);
      REQUIRE(weight->parameters() == factored_size(form, out, in, p.rank));
      REQUIRE(largest_rank(form, out, in, weight->parameters()) >= p.rank);
    }
  }
  REQUIRE(checked > kProblems / 3);
}

TEST_CASE("updating a factor never raises the loss, and leaves nothing to gain", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    Problem p = random_problem(seed);
    CAPTURE(seed, p.w.size(0), p.w.size(1), p.rank, p.singular);
    Factors factors = low_rank(p.w, InputMetric::plain(p.w.size(1)), p.rank);
    const double before = p.loss(p.w - factors.product()), slack = 1e-9 * p.energy();
    update_left(factors, p.w, p.metric());
    const double after = p.loss(p.w - factors.product());
    REQUIRE(after <= before + slack);
    REQUIRE(std::abs(factors.tail - after) <= slack);
    REQUIRE(after >= low_rank(p.w, p.metric(), p.rank).tail - slack);
    for (uint64_t direction = 0; direction < 4; ++direction) {
      const at::Tensor change = normal_matrix(p.w.size(0), p.rank, "change", 10 * seed + direction);
      const at::Tensor other = factors.left + 1e-3 * factors.left.abs().mean() * change;
      REQUIRE(p.loss(p.w - other.mm(factors.right)) >= after - slack);
    }
  }
}

TEST_CASE("a low-rank part beside a quantized one never adds to its error", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    const Problem p = random_problem(seed);
    CAPTURE(seed, p.w.size(0), p.w.size(1), p.rank, p.singular);
    const PartOf rounded = [](const at::Tensor& matrix) {
      return std::make_shared<lcomp::quant::QuantizedWeight>(lcomp::quant::rtn(
          matrix.to(at::kFloat), {.bits = 3, .granularity = lcomp::quant::Granularity::kChannel}));
    };
    const int64_t in = p.w.size(1);
    const at::Tensor scale = p.h.diagonal().sqrt();
    for (const InputMetric& metric :
         {InputMetric::plain(in), InputMetric::diagonal(scale), InputMetric::moment(p.h)}) {
      const at::Tensor left = p.w - rounded(p.w)->dense();
      const double alone = metric.loss(left), slack = 1e-9 * metric.loss(p.w);
      const Alternation once = alternate(p.w, metric, p.rank, rounded);
      REQUIRE(once.loss <= alone + slack);
      const std::vector<double> losses = component_losses(left, metric);
      double tail = 0;
      for (auto i = static_cast<size_t>(p.rank); i < losses.size(); ++i) tail += losses[i];
      REQUIRE(std::abs(once.loss - tail) <= slack);
      const Alternation more = alternate(p.w, metric, p.rank, rounded, {.iterations = 4});
      REQUIRE(more.loss <= once.loss + slack);
      const at::Tensor both = more.part->dense() + more.low_rank.product();
      REQUIRE(std::abs(metric.loss(p.w - both) - more.loss) <= slack);
    }
  }
}

TEST_CASE("Tucker errors lie between the largest tail of an unfolding and their sum", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    Rng rng(seed, "tucker");
    const int64_t d = between(rng, 1, 4);
    const Sizes shape = random_sizes(rng, d, 6);
    const double scale = random_scale(rng);
    const at::Tensor t = scale * normal_tensor(shape, "t", seed);
    Sizes modes, ranks;
    for (int64_t mode = 0; mode < d; ++mode) {
      if (d > 1 && rng.below(4) == 0) continue;  // some modes alone
      modes.push_back(mode);
      ranks.push_back(between(rng, 1, shape[static_cast<size_t>(mode)]));
    }
    if (modes.empty()) continue;
    CAPTURE(seed, shape, modes, ranks, scale);
    double least = 0, most = 0;
    for (size_t i = 0; i < modes.size(); ++i) {
      const double tail = tail_beyond(unfold(t, modes[i]), ranks[i]);
      least = std::max(least, tail);
      most += tail;
    }
    const double energy = t.square().sum().item<double>(), slack = 1e-10 * energy;
    const Tucker plain = hosvd(t, ranks, modes), iterated = hooi(t, ranks, modes);
    for (const Tucker& tucker : {plain, st_hosvd(t, ranks, modes), iterated}) {
      const double lost = squared_distance(t, tucker.full());
      REQUIRE(lost >= least - slack);
      REQUIRE(lost <= most + slack);
      REQUIRE(std::abs(energy - tucker.core.square().sum().item<double>() - lost) <= slack);
      REQUIRE(std::abs(tucker.relative_error * tucker.relative_error * energy - lost) <= slack);
      for (const at::Tensor& u : tucker.factors)
        REQUIRE(at::allclose(u.t().mm(u), at::eye(u.size(1), at::kDouble), 0, 1e-10));
    }
    const double of_plain = squared_distance(t, plain.full());
    REQUIRE(squared_distance(t, iterated.full()) <= of_plain + slack);
    REQUIRE(of_plain <= static_cast<double>(modes.size()) * squared_distance(t, iterated.full()) + slack);
    for (size_t i = 1; i < iterated.sweep_errors.size(); ++i)
      REQUIRE(iterated.sweep_errors[i] <= iterated.sweep_errors[i - 1] + 1e-8);
  }
}

TEST_CASE("trains keep within eps and within the tails of the unfoldings", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    Rng rng(seed, "train");
    const int64_t d = between(rng, 1, 5);
    const Sizes shape = random_sizes(rng, d, 5);
    // Falling singular values, so that ranks differ with eps.
    const double scale = random_scale(rng);
    at::Tensor t = 0.02 * normal_tensor(shape, "noise", seed);
    for (const uint64_t term : {1, 2, 3}) {
      at::Tensor outer = at::ones({1}, at::kDouble);
      for (const int64_t size : shape)
        outer = at::outer(outer, normal_matrix(1, size, "term" + std::to_string(size), 7 * seed + term)[0])
                    .flatten();
      t = t + outer.reshape(shape) / std::pow(4.0, static_cast<double>(term));
    }
    t = scale * t;
    const double norm = t.norm().item<double>();
    CAPTURE(seed, shape, scale);
    Sizes before;
    for (const double eps : {1e-3, 0.05, 0.3, 0.9}) {
      CAPTURE(eps);
      const TrainResult result = tt_svd(t, {.eps = eps});
      const double error = std::sqrt(squared_distance(t, result.train.full())) / norm;
      REQUIRE(error <= eps * (1 + 1e-9));
      REQUIRE(std::abs(error - result.relative_error) <= 1e-6);
      const Sizes ranks = result.train.ranks();
      double tails = 0;
      int64_t left = 1;
      for (size_t k = 1; k < shape.size(); ++k) {
        left *= shape[k - 1];
        tails += tail_beyond(t.reshape({left, -1}), ranks[k]);
        REQUIRE(ranks[k] <= std::min(left, t.numel() / left));
        // Nothing that a larger error allows has larger ranks.
        if (!before.empty()) REQUIRE(ranks[k] <= before[k]);
      }
      REQUIRE(error * error * norm * norm <= tails + 1e-10 * norm * norm);
      REQUIRE(tt_svd(1e5 * t, {.eps = eps}).train.ranks() == ranks);

      // Rounding a sum of it and itself: no larger ranks than its own, and within eps.
      const TensorTrain twice = tt_sum(result.train, result.train);
      REQUIRE(relative_difference(twice.full(), 2 * result.train.full()) < 1e-10);
      const TensorTrain once = tt_round(twice, {.eps = 1e-9}).train;
      for (size_t k = 0; k < ranks.size(); ++k) REQUIRE(once.ranks()[k] <= ranks[k]);
      REQUIRE(relative_difference(once.full(), twice.full()) < 1e-7);
      const at::Tensor cut = tt_round(twice, {.eps = eps}).train.full();
      REQUIRE(std::sqrt(squared_distance(cut, twice.full())) <=
              eps * (1 + 1e-9) * twice.full().norm().item<double>());
      before = ranks;
    }
    REQUIRE(relative_difference(tt_svd(t, {}).train.full(), t) < 1e-10);
  }
}

TEST_CASE("a TT-matrix of one core is the matrix, of two the nearest Kronecker sum", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    Rng rng(seed, "kronecker");
    const KroneckerShape shape{between(rng, 1, 5), between(rng, 1, 5), between(rng, 1, 5),
                               between(rng, 1, 5)};
    const int64_t out = shape.m1 * shape.m2, in = shape.n1 * shape.n2;
    const at::Tensor w = random_scale(rng) * normal_matrix(out, in, "w", seed);
    const int64_t most = std::min(shape.m1 * shape.n1, shape.m2 * shape.n2), rank = between(rng, 1, most);
    CAPTURE(seed, out, in, shape.m1, shape.n1, rank);
    const KroneckerSum sum = kronecker_sum(w, shape, rank);
    const TrainMatrix train = tt_matrix(w, {shape.m1, shape.m2}, {shape.n1, shape.n2}, {.ranks = {rank}});
    const double energy = w.square().sum().item<double>();
    at::Tensor direct = at::zeros_like(w);
    for (int64_t q = 0; q < rank; ++q) direct += at::kron(sum.left[q], sum.right[q]);
    REQUIRE(squared_distance(sum.full(), direct) <= 1e-20 * energy);
    REQUIRE(squared_distance(train.full(), direct) <= 1e-18 * energy);
    const at::Tensor rearranged = paired_digits(w, {shape.m1, shape.m2}, {shape.n1, shape.n2});
    REQUIRE(std::abs(squared_distance(w, direct) - tail_beyond(rearranged, rank)) <= 1e-10 * energy);
    REQUIRE(squared_distance(train.transposed().full(), train.full().t()) <= 1e-20 * energy);
    REQUIRE(tt_matrix(w, {out}, {in}, {.eps = 0.5}).full().equal(w));
    // (A (x) B)^T = A^T (x) B^T.
    REQUIRE(squared_distance(sum.train().transposed().full(), direct.t()) <= 1e-18 * energy);
  }
}

TEST_CASE("rows of morphemes are the products of their vectors, element by element", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= kProblems; ++seed) {
    Rng rng(seed, "morphemes");
    const int64_t words = between(rng, 1, 12), morphemes = between(rng, 1, 7), rank = between(rng, 1, 4);
    const int64_t q = between(rng, 2, 4), in = between(rng, q * q + 1, q * q * q);
    const at::Tensor tables = normal_tensor({rank, morphemes, q}, "tables", seed).to(at::kFloat);
    at::Tensor index = at::empty({words, 3}, at::kInt);
    for (int64_t i = 0; i < index.numel(); ++i)
      index.data_ptr<int32_t>()[i] = static_cast<int32_t>(between(rng, 0, morphemes - 1));
    index[-1].copy_(index[0]);
    CAPTURE(seed, words, morphemes, rank, q, in);
    const MorphemeWeight weight(tables, index, in);
    const at::Tensor dense = weight.dense();
    for (int64_t word = 0; word < words; ++word) {
      for (int64_t place = 0; place < in; ++place) {
        double expected = 0;
        const Sizes digits{place / (q * q), place / q % q, place % q};
        for (int64_t i = 0; i < rank; ++i) {
          double term = 1;
          for (int64_t j = 0; j < 3; ++j)
            term *= tables[i][index[word][j].item<int64_t>()][digits[static_cast<size_t>(j)]].item<double>();
          expected += term;
        }
        REQUIRE(dense[word][place].item<double>() == Approx(expected).epsilon(1e-4).margin(1e-5));
      }
    }
    REQUIRE(dense[-1].equal(dense[0]));  // the same morphemes
    const at::Tensor ids = at::remainder(at::arange(5, at::kLong) * 3, words);
    REQUIRE(weight.rows(ids).equal(dense.index_select(0, ids)));
  }
}

TEST_CASE("exceptions of an embedding are the rows themselves, and the sizes are kept",
          "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Rng rng(seed, "embedding");
    const int64_t vocabulary = between(rng, 60, 140), dim = between(rng, 12, 40);
    const at::Tensor table =
        (random_scale(rng) * normal_matrix(vocabulary, dim, "table", seed)).to(at::kFloat);
    const at::Tensor counts = normal_matrix(1, vocabulary, "counts", seed)[0].abs().mul(1000).to(at::kLong);
    for (const EmbeddingMethod method :
         {EmbeddingMethod::kLowRank, EmbeddingMethod::kTensorTrain, EmbeddingMethod::kWord2KetXs}) {
      EmbeddingOptions options;
      options.method = method;
      options.ratio = 3;
      options.exceptions = between(rng, 1, 9);
      options.sweeps = 2;
      CAPTURE(seed, vocabulary, dim, lcomp::name_of(method), options.exceptions);
      const EmbeddingFit fit = fit_embedding(table, options, counts, nullptr, at::kFloat, seed);
      REQUIRE(3 * fit.weight->parameters() <= table.numel());
      const at::Tensor kept = std::get<1>(counts.sort(0, true)).narrow(0, 0, options.exceptions);
      REQUIRE(relative_difference(fit.weight->rows(kept), table.index_select(0, kept)) < 1e-5);
      const at::Tensor dense = fit.weight->dense();
      REQUIRE(fit.relative_error ==
              Approx(((table - dense).norm() / table.norm()).item<double>()).epsilon(1e-3).margin(1e-4));
      REQUIRE(fit.relative_error < 1);
      // Other rows are those of the part without exceptions.
      const auto& sum = dynamic_cast<const lcomp::SumWeight&>(*fit.weight);
      const at::Tensor changed = (dense - sum.parts()[0]->dense()).ne(0).any(1);
      REQUIRE(changed.sum().item<int64_t>() <= options.exceptions);
      REQUIRE(changed.index_select(0, kept).sum().item<int64_t>() == changed.sum().item<int64_t>());
    }
  }
}

namespace {

/// Weights of every kind, of each other.
class Weights {
 public:
  explicit Weights(uint64_t seed) : rng_(seed, "weights"), seed_(seed) {}

  WeightPtr any(int64_t out, int64_t in, int64_t depth = 2) {
    switch (rng_.below(depth > 0 ? 10 : 7)) {
      case 0:
        return std::make_shared<DenseWeight>(values({out, in}));
      case 1: {
        at::Tensor matrix = values({out, in}).clamp_min(0);
        matrix[0][0] = 1;
        return std::make_shared<lcomp::sparse::SparseWeight>(matrix, lcomp::sparse::SparseFormat::kBitmask);
      }
      case 2:
        return std::make_shared<lcomp::quant::QuantizedWeight>(
            lcomp::quant::rtn(values({out, in}).to(at::kFloat),
                              {.bits = 4, .granularity = lcomp::quant::Granularity::kChannel}));
      case 3:
        return train(out, in);
      case 4: {
        const int64_t order = between(rng_, 1, 3);
        return std::make_shared<KroneckerSumWeight>(
            out, in, values({order, between(rng_, 1, 3), base_of(out, order), base_of(in, order)}));
      }
      case 5:
        return words(out, in);
      case 6: {
        const int64_t kept = between(rng_, 1, out);
        const at::Tensor ids = std::get<0>(order_of(out).narrow(0, 0, kept).sort());
        return std::make_shared<RowPatchWeight>(out, ids, values({kept, in}));
      }
      case 7:
        return FactoredLlama::sum({any(out, in, depth - 1), any(out, in, depth - 1)});
      case 8: {
        const int64_t rank = between(rng_, 1, std::min(out, in));
        return FactoredLlama::product({any(out, rank, depth - 1), any(rank, in, depth - 1)});
      }
      default:
        return out > 1 ? pivoted(out, in, depth) : any(out, in, depth - 1);
    }
  }

 private:
  at::Tensor values(const Sizes& shape) {
    return normal_tensor(shape, "values" + std::to_string(++made_), seed_).to(at::kBFloat16);
  }
  at::Tensor order_of(int64_t count) {
    return normal_matrix(1, count, "order" + std::to_string(++made_), seed_)[0].argsort();
  }
  static int64_t base_of(int64_t n, int64_t order) {
    int64_t base = 1;
    while (std::pow(base, order) < static_cast<double>(n)) ++base;
    return base;
  }

  WeightPtr train(int64_t out, int64_t in) {
    const int64_t d = between(rng_, 1, 3);
    const Sizes rows = padded_shape(out, d), columns = padded_shape(in, d);
    std::vector<at::Tensor> cores;
    int64_t rank = 1;
    for (size_t k = 0; k < rows.size(); ++k) {
      const int64_t next = k + 1 == rows.size() ? 1 : between(rng_, 1, 3);
      cores.push_back(values({rank, rows[k], columns[k], next}));
      rank = next;
    }
    const at::Tensor scale = rng_.below(2) == 0 ? at::Tensor() : values({in});
    return std::make_shared<TensorTrainWeight>(out, in, std::move(cores), scale);
  }

  WeightPtr words(int64_t out, int64_t in) {
    const int64_t order = between(rng_, 1, 3), morphemes = between(rng_, 1, 5);
    at::Tensor index = at::empty({out, order}, at::kInt);
    for (int64_t i = 0; i < index.numel(); ++i)
      index.data_ptr<int32_t>()[i] = static_cast<int32_t>(between(rng_, 0, morphemes - 1));
    return std::make_shared<MorphemeWeight>(values({between(rng_, 1, 3), morphemes, base_of(in, order)}),
                                            index, in);
  }

  WeightPtr pivoted(int64_t out, int64_t in, int64_t depth) {
    const int64_t units = between(rng_, 0, std::min(in, out - 1));
    at::Tensor pivots = at::full({in}, -1, at::kInt);
    pivots.index_copy_(0, order_of(in).narrow(0, 0, units), order_of(out).narrow(0, 0, units).to(at::kInt));
    return std::make_shared<IdentityRowsWeight>(pivots, any(out - units, in, depth - 1));
  }

  Rng rng_;
  uint64_t seed_;
  int made_ = 0;
};

/// Numbers among stored tensors that `Weight::parameters` counts: values and indices of morphemes, not places
/// and scales of codes.
int64_t stored_numbers(const std::map<std::string, at::Tensor>& saved) {
  int64_t sum = 0;
  for (const auto& [name, tensor] : saved) {
    const std::string_view suffix = std::string_view(name).substr(name.rfind('.'));
    if (suffix == ".weight_packed") {
      const at::Tensor& shape = saved.at(name.substr(0, name.rfind('.')) + ".weight_shape");
      sum += shape[0].item<int64_t>() * shape[1].item<int64_t>();
    } else if (suffix == ".weight_morpheme_index" ||
               (tensor.is_floating_point() && suffix != ".weight_scale")) {
      sum += tensor.numel();
    }
  }
  return sum;
}

}  // namespace

TEST_CASE("every weight multiplies, looks up and counts as its matrix and its tensors say",
          "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    Rng rng(seed, "shapes");
    const int64_t out = between(rng, 1, 20), in = between(rng, 1, 20);
    const WeightPtr weight = Weights(seed).any(out, in);
    CAPTURE(seed, out, in, weight->describe());
    const at::Tensor dense = weight->dense();
    REQUIRE(dense.sizes() == at::IntArrayRef({out, in}));
    REQUIRE(weight->out_features() == out);
    REQUIRE(weight->in_features() == in);
    for (const int64_t tokens : {1, 3, 20}) {
      const at::Tensor x = normal_matrix(tokens, in, "x", seed).to(at::kFloat);
      const at::Tensor y = weight->apply(x);
      REQUIRE(y.sizes() == at::IntArrayRef({tokens, out}));
      // As far as float32 goes: terms may cancel.
      const double largest = std::max(1.0, dense.abs().max().item<double>()) * static_cast<double>(in);
      REQUIRE((y - x.mm(dense.t())).abs().max().item<double>() <= 1e-4 * largest);
    }
    const at::Tensor ids = at::remainder(at::arange(7, at::kLong) * 5 + 3, out);
    REQUIRE(at::allclose(weight->rows(ids), dense.index_select(0, ids), 1e-4,
                         1e-4 * std::max(1.0, dense.abs().max().item<double>())));
    REQUIRE(weight->rows(at::empty({0}, at::kLong)).sizes() == at::IntArrayRef({0, in}));
    lcomp::test::TensorMap saved;
    weight->save(saved, "op");
    int64_t bytes = 0;
    for (const auto& [name, tensor] : saved.all) bytes += static_cast<int64_t>(tensor.nbytes());
    REQUIRE(weight->bytes() == bytes);
    REQUIRE(weight->parameters() == stored_numbers(saved.all));
  }
}

TEST_CASE("every weight is read back from a checkpoint bit by bit", "[property][lowrank]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    FactoredLlama llama;
    Weights weights(seed);
    const std::string block = "model.layers.0.";
    for (const auto& [name, out, in] : {std::tuple{"self_attn.q_proj", 16, 16},
                                        {"self_attn.k_proj", 8, 16},
                                        {"self_attn.v_proj", 8, 16},
                                        {"self_attn.o_proj", 16, 16},
                                        {"mlp.gate_proj", 32, 16},
                                        {"mlp.up_proj", 32, 16},
                                        {"mlp.down_proj", 16, 32}})
      llama.store(block + name, weights.any(out, in, 3));
    // The first factor of k is that of q, whatever it is.
    const WeightPtr basis = weights.any(5, 16);
    const std::string query = block + "self_attn.q_proj";
    llama.store(query, FactoredLlama::product({weights.any(16, 5), basis}));
    llama.store(
        block + "self_attn.k_proj",
        FactoredLlama::product({weights.any(8, 5), std::make_shared<lcomp::SharedWeight>(
                                                       lcomp::ProductWeight::factor_name(query, 1), basis)}));
    llama.store("model.embed_tokens", weights.any(8, 16, 3));
    const lcomp::model::Model model = llama.model();
    const lcomp::model::Block loaded = model.load_block(0);
    for (const lcomp::model::LinearOp& op : loaded.ops()) {
      const lcomp::Weight& before = *llama.weights.at(op.info.name);
      CAPTURE(seed, op.info.name, before.describe());
      REQUIRE(op.weight->dense().equal(before.dense()));
      REQUIRE(op.weight->describe() == before.describe());
      REQUIRE(op.weight->bytes() == before.bytes());
      REQUIRE(op.weight->parameters() == before.parameters());
      REQUIRE(op.weight->macs_per_token() == before.macs_per_token());
    }
    if (const WeightPtr& embedding = model.compressed_embedding())
      REQUIRE(embedding->dense().equal(llama.weights.at("model.embed_tokens")->dense()));
  }
}
