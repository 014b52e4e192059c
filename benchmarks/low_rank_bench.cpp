// Two questions. From which share of the multiply-adds on factors are faster than their matrix (`bm_form`
// beside `bm_dense`, 128 tokens, weights from memory), which is where blocks run them as such. And: what the
// solvers of the SVD family cost beside a full LAPACK SVD (`full` is dgesdd with all vectors) at the shapes
// of SmolLM2-135M and of larger models, on one thread, with rank 80 % of what a pair may have, or 32.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/linalg/svd.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/tensor_train.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "model/factor_steps.h"

namespace {

using namespace lcomp;
using lowrank::InputMetric;
using lowrank::Solver;

at::Tensor normal_matrix(int64_t rows, int64_t cols, const char* name) {
  Rng rng(1, name);
  at::Tensor matrix = at::empty({rows, cols}, at::kDouble);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<double>()[i] = rng.normal();
  return matrix;
}

struct Problem {
  at::Tensor weight, moment;
  int64_t rank;
};

Problem problem_of(const benchmark::State& state) {
  const int64_t out = state.range(0), in = state.range(1);
  const at::Tensor x = normal_matrix(2 * in, in, "x");
  const int64_t rank = state.range(2) > 0 ? state.range(2) : 4 * out * in / (5 * (out + in));
  return {normal_matrix(out, in, "w"), x.t().mm(x), rank};
}

/// The truncation as published: Cholesky factor, SVD of W S with all vectors.
void bm_full(benchmark::State& state) {
  const ThreadPool pool(1);
  const Problem p = problem_of(state);
  for (auto _ : state) {
    const InputMetric metric = InputMetric::moment(p.moment);
    benchmark::DoNotOptimize(linalg::truncated_svd(metric.scaled(p.weight)));
  }
}

void bm_solver(benchmark::State& state) {
  const ThreadPool pool(1);
  const Problem p = problem_of(state);
  const auto solver = static_cast<Solver>(state.range(3));
  for (auto _ : state) {
    const InputMetric metric = InputMetric::moment(p.moment);
    benchmark::DoNotOptimize(lowrank::low_rank(p.weight, metric, p.rank, solver));
  }
  state.SetLabel(fmt::format("{}, rank {}", name_of(solver), p.rank));
}

void shapes(benchmark::internal::Benchmark* bench, bool solvers) {
  for (const auto& [out, in] : {std::pair{576, 576}, {192, 576}, {1536, 576}, {576, 1536}, {2048, 2048}}) {
    if (!solvers) bench->Args({out, in, 0});
    for (const int64_t rank : {0, 32}) {
      for (const Solver solver : {Solver::kGram, Solver::kRandomized}) {
        if (solvers) bench->Args({out, in, rank, static_cast<int64_t>(solver)});
      }
    }
  }
}

BENCHMARK(bm_full)->Apply([](auto* bench) { shapes(bench, false); }) -> Unit(benchmark::kMillisecond);
BENCHMARK(bm_solver)->Apply([](auto* bench) { shapes(bench, true); }) -> Unit(benchmark::kMillisecond);

/// Copies of one operator, taken in turn, that exceed the second-level cache as those of a model do.
class Ring {
 public:
  Ring(const Weight& weight, linalg::Precision precision) : steps_(model::factor_steps(weight, precision)) {
    constexpr int64_t kBytes = 64 << 20;
    const auto count = std::max<int64_t>(2, kBytes / (4 * weight.out_features() * weight.in_features()));
    for (int64_t i = 0; i < count; ++i) {
      copies_.emplace_back();
      for (const model::FactorStep& step : steps_)
        copies_.back().emplace_back(std::vector{step.matrix->dense()}, precision);
    }
  }

  void multiply(const at::Tensor& x, at::Tensor& y) {
    const auto& matrices = copies_[next_++ % copies_.size()];
    at::Tensor input = x;
    for (size_t i = 0; i < steps_.size(); ++i) {
      const bool direct = i + 1 == steps_.size() && !steps_[i].is_pivoted();
      at::Tensor product = direct ? y : at::empty({x.size(0), matrices[i].out_features()}, at::kFloat);
      matrices[i].multiply(input.data_ptr<float>(), x.size(0), product.data_ptr<float>(), false, scratch_);
      if (direct) return;
      if (i + 1 == steps_.size()) {
        steps_[i].put(input, product, {y.data_ptr<float>(), y.size(1), false});
      } else {
        input = steps_[i].output(input, product);
      }
    }
  }

 private:
  std::vector<model::FactorStep> steps_;
  std::vector<std::vector<linalg::PackedMatrix>> copies_;
  linalg::Scratch scratch_;
  size_t next_ = 0;
};

void time_ring(benchmark::State& state, const Weight& weight, linalg::Precision precision) {
  const ThreadPool pool(1);
  Ring ring(weight, precision);
  const at::Tensor x = normal_matrix(128, weight.in_features(), "x").to(at::kFloat);
  at::Tensor y = at::empty({128, weight.out_features()}, at::kFloat);
  for (auto _ : state) ring.multiply(x, y);
  state.SetLabel(fmt::format("{:.2f} of the multiply-adds, {}",
                             static_cast<double>(weight.macs_per_token()) /
                                 static_cast<double>(weight.out_features() * weight.in_features()),
                             precision == linalg::Precision::kBf16 ? "bf16" : "f32"));
}

linalg::Precision precision_of(const benchmark::State& state, int at) {
  return state.range(at) == 1 && linalg::has_native_bf16() ? linalg::Precision::kBf16
                                                           : linalg::Precision::kF32;
}

void bm_dense(benchmark::State& state) {
  const at::Tensor weight = normal_matrix(state.range(0), state.range(1), "w").to(at::kFloat);
  time_ring(state, DenseWeight(weight), precision_of(state, 2));
}

/// The same for two cores of `rank`, which have no steps: contracted by `apply`.
void bm_train(benchmark::State& state) {
  const int64_t out = state.range(0), in = state.range(1), rank = state.range(2);
  const lowrank::MatrixShapes shapes = lowrank::paired_shapes(out, in, 2);
  const lowrank::TensorTrainWeight weight(out, in,
                                          {normal_matrix(shapes.rows[0] * shapes.columns[0], rank, "a")
                                               .to(at::kFloat)
                                               .reshape({1, shapes.rows[0], shapes.columns[0], rank}),
                                           normal_matrix(rank, shapes.rows[1] * shapes.columns[1], "b")
                                               .to(at::kFloat)
                                               .reshape({rank, shapes.rows[1], shapes.columns[1], 1})});
  const ThreadPool pool(1);
  const at::Tensor x = normal_matrix(128, in, "x").to(at::kFloat);
  for (auto _ : state) benchmark::DoNotOptimize(weight.apply(x));
  state.SetLabel(fmt::format("{:.3f} of the multiply-adds",
                             static_cast<double>(weight.macs_per_token()) / static_cast<double>(out * in)));
}

/// Percent of the numbers, and the form.
void bm_form(benchmark::State& state) {
  const int64_t out = state.range(0), in = state.range(1);
  const auto form = static_cast<lowrank::Form>(state.range(4));
  const int64_t rank = lowrank::largest_rank(form, out, in, out * in * state.range(3) / 100);
  const lowrank::Factors factors{normal_matrix(out, rank, "a"), normal_matrix(rank, in, "b"), {}};
  const auto store = [](const at::Tensor& values, const Weight*) -> WeightPtr {
    return std::make_shared<DenseWeight>(values.to(at::kFloat));
  };
  time_ring(state, *lowrank::factored_weight(factors, form, store), precision_of(state, 2));
}

void forms(benchmark::internal::Benchmark* bench, bool factored) {
  for (const auto& [out, in] : {std::pair{576, 576}, {1536, 576}, {576, 1536}, {2048, 2048}, {4096, 4096}}) {
    for (const int64_t bf16 : {0, 1}) {
      if (!factored) bench->Args({out, in, bf16});
      for (const int64_t percent : {50, 60, 70, 80, 90, 99}) {
        for (const int64_t form : {0, 1}) {
          if (factored) bench->Args({out, in, bf16, percent, form});
        }
      }
    }
  }
}

void trains(benchmark::internal::Benchmark* bench) {
  for (const auto& [out, in] : {std::pair{576, 576}, {1536, 576}, {2048, 2048}, {4096, 4096}}) {
    for (const int64_t rank : {1, 2, 4, 8, 16}) bench->Args({out, in, rank});
  }
}

BENCHMARK(bm_train)->Apply(trains)->Unit(benchmark::kMicrosecond);
BENCHMARK(bm_dense)->Apply([](auto* bench) { forms(bench, false); }) -> Unit(benchmark::kMicrosecond);
BENCHMARK(bm_form)->Apply([](auto* bench) { forms(bench, true); }) -> Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
