// Scale searches from statistics, against the naive way: running the calibration tokens through the group of
// operators again for each candidate. Both round the same matrices; shapes are those of a 135M model.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include <limits>

#include "lcomp/core/rng.h"
#include "lcomp/quant/awq.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/rtn.h"
#include "lcomp/quant/sensitivity.h"
#include "lcomp/quant/smooth.h"

namespace {

using namespace lcomp;

constexpr int64_t kRatios = 4;  // one of them is s = 1
constexpr quant::QuantScheme kInt8{.bits = 8, .granularity = quant::Granularity::kChannel};
const std::vector<int64_t> kWidths = {2, 3, 4, 5, 6, 7, 8};

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

/// SmoothQuant's alpha by 256 tokens, which is what the pass does.
void bm_alpha_from_samples(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const at::Tensor largest = std::get<0>(problem.x.abs().max(0));
  const at::Tensor samples = problem.x.slice(0, 0, problem.x.size(0), problem.x.size(0) / 256).contiguous();
  for (auto _ : state) {
    benchmark::DoNotOptimize(quant::smooth_search({problem.weight}, {kInt8}, quant::ActivationScheme{},
                                                  largest, samples, {}, &pool));
  }
}

/// The same objective over all tokens.
void bm_alpha_by_replay(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const at::Tensor largest = std::get<0>(problem.x.abs().max(0));
  for (auto _ : state) {
    benchmark::DoNotOptimize(quant::smooth_search({problem.weight}, {kInt8}, quant::ActivationScheme{},
                                                  largest, problem.x, {}, &pool));
  }
}

/// The losses of an operator at 2 to 8 bits, by 64 of its rows and the second moment, as mixed precision
/// takes them.
void bm_widths_from_statistics(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const quant::GptqFactor factor =
      quant::gptq_factor(at::matmul(problem.x.t(), problem.x), problem.scheme, {}, &pool);
  for (auto _ : state) {
    benchmark::DoNotOptimize(
        quant::losses_by_bits(problem.weight, factor, problem.scheme, kWidths, {}, 64, {}, {}, &pool));
  }
}

/// Every width quantized whole, and the tokens run through it.
void bm_widths_by_replay(benchmark::State& state) {
  ThreadPool pool(1);
  const Problem problem(state);
  const quant::GptqFactor factor =
      quant::gptq_factor(at::matmul(problem.x.t(), problem.x), problem.scheme, {}, &pool);
  const at::Tensor exact = at::matmul(problem.x, problem.weight.t());
  for (auto _ : state) {
    for (const int64_t bits : kWidths) {
      quant::QuantScheme scheme = problem.scheme;
      scheme.bits = bits;
      const at::Tensor rounded = quant::gptq(problem.weight, factor, scheme, {}, &pool).weight.dense();
      const at::Tensor off = at::matmul(problem.x, rounded.t()).sub_(exact);
      benchmark::DoNotOptimize(off.square_().sum(at::kDouble).item<double>());
    }
  }
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"out", "in", "tokens"})->Unit(benchmark::kMillisecond);
  bench->Args({960, 576, 16384})->Args({576, 1536, 16384})->Args({576, 1536, 65536});
}
BENCHMARK(bm_search_from_statistics)->Apply(shapes);
BENCHMARK(bm_search_by_replay)->Apply(shapes);
BENCHMARK(bm_alpha_from_samples)->Apply(shapes);
BENCHMARK(bm_alpha_by_replay)->Apply(shapes);
BENCHMARK(bm_widths_from_statistics)->Apply(shapes);
BENCHMARK(bm_widths_by_replay)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
