// Scale searches from statistics, against the naive way: running the calibration tokens through the group of
// operators again for each candidate. Both round the same matrices; shapes are those of a 135M model.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include <limits>

#include "lcomp/core/rng.h"
#include "lcomp/quant/awq.h"
#include "lcomp/quant/rtn.h"

namespace {

using namespace lcomp;

constexpr int64_t kRatios = 4;  // one of them is s = 1

at::Tensor normal_matrix(int64_t rows, int64_t cols, uint64_t seed) {
  Rng rng(seed, "bench");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return matrix;
}

struct Problem {
  explicit Problem(const benchmark::State& state)
      : weight(normal_matrix(state.range(0), state.range(1), 1)),
        x(normal_matrix(state.range(2), state.range(1), 2) * at::linspace(0.1, 3, state.range(1))),
        abs_mean(x.abs().mean(0)) {}

  at::Tensor weight, x, abs_mean;
  quant::QuantScheme scheme{.group_size = 64};
};

void bm_search_from_statistics(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const at::Tensor moment = at::matmul(problem.x.t(), problem.x);
  for (auto _ : state) {
    benchmark::DoNotOptimize(quant::awq_scale({problem.weight}, {problem.scheme}, problem.abs_mean, moment,
                                              {.ratios = kRatios}, {}, &pool));
  }
}

void bm_search_by_replay(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const at::Tensor exact = at::matmul(problem.x, problem.weight.t());
  for (auto _ : state) {
    double least = std::numeric_limits<double>::infinity();
    for (int64_t i = 0; i < kRatios; ++i) {
      at::Tensor s = problem.abs_mean.pow(static_cast<double>(i) / kRatios);
      s = s / (s.max() * s.min()).sqrt();
      const at::Tensor rounded = quant::rtn(problem.weight * s, problem.scheme, &pool).dense() / s;
      const at::Tensor off = at::matmul(problem.x, rounded.t()).sub_(exact);
      least = std::min(least, off.square_().sum(at::kDouble).item<double>());
    }
    benchmark::DoNotOptimize(least);
  }
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"out", "in", "tokens"})->Unit(benchmark::kMillisecond);
  bench->Args({960, 576, 16384})->Args({576, 1536, 16384})->Args({576, 1536, 65536});
}
BENCHMARK(bm_search_from_statistics)->Apply(shapes);
BENCHMARK(bm_search_by_replay)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
