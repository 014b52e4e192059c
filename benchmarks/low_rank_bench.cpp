// What the solvers of the SVD family cost beside a full LAPACK SVD (`full` is dgesdd with all vectors) at the
// shapes of SmolLM2-135M and of larger models, on one thread, with rank 80 % of what a pair may have, or 32.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/svd.h"
#include "lcomp/lowrank/low_rank.h"

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

}  // namespace

BENCHMARK_MAIN();
