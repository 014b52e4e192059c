// Speed of round-to-nearest, the damped factor and GPTQ at the shapes of SmolLM2-135M, beside the machine's
// own double-precision GEMM peak (bm_gemm_peak), single-threaded. GFLOP/s counts 2 out in^2 for GPTQ and 4/3
// in^3 for the factor.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <vector>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/cholesky.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/rtn.h"

namespace {

using namespace lcomp;

at::Tensor normal_matrix(int64_t rows, int64_t cols) {
  Rng rng(1, "bench");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return matrix;
}

at::Tensor moment(int64_t in) {
  const at::Tensor x = normal_matrix(2 * in, in);
  return at::matmul(x.t(), x);
}

void set_flops(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

void bm_gemm_peak(benchmark::State& state) {
  const ThreadPool pool(1);
  const int n = 768;
  std::vector<double> a(n * n, 1.0), b(n * n, 2.0), c(n * n);
  for (auto _ : state) {
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, n, n, n, 1.0, a.data(), n, b.data(), n, 0.0,
                c.data(), n);
    benchmark::DoNotOptimize(c.data());
  }
  set_flops(state, 2.0 * n * n * n);
}
BENCHMARK(bm_gemm_peak)->Unit(benchmark::kMillisecond);

void bm_rtn(benchmark::State& state) {
  ThreadPool pool(1);
  const at::Tensor weight = normal_matrix(state.range(0), state.range(1));
  quant::QuantScheme scheme{.group_size = 64};
  scheme.range = state.range(2) != 0 ? quant::RangeRule::kMse : quant::RangeRule::kMinMax;
  for (auto _ : state) benchmark::DoNotOptimize(quant::rtn(weight, scheme, &pool));
  state.SetItemsProcessed(state.iterations() * weight.numel());
}
BENCHMARK(bm_rtn)
    ->ArgNames({"out", "in", "mse"})
    ->Args({1536, 576, 0})
    ->Args({1536, 576, 1})
    ->Unit(benchmark::kMillisecond);

void bm_factor(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t in = state.range(0);
  const at::Tensor second_moment = moment(in);
  for (auto _ : state) benchmark::DoNotOptimize(linalg::damped_inverse(second_moment, 0.01, {}, &pool));
  set_flops(state, 4.0 / 3 * static_cast<double>(in) * static_cast<double>(in) * static_cast<double>(in) / 2);
}
BENCHMARK(bm_factor)->ArgName("in")->Arg(576)->Arg(1536)->Unit(benchmark::kMillisecond);

void bm_gptq(benchmark::State& state) {
  ThreadPool pool(1);
  const int64_t out = state.range(0), in = state.range(1);
  const at::Tensor weight = normal_matrix(out, in);
  const quant::QuantScheme scheme{.group_size = 64};
  quant::GptqOptions options;
  options.fallback_to_rtn = state.range(2) != 0;
  const quant::GptqFactor factor = quant::gptq_factor(moment(in), scheme, options, &pool);
  for (auto _ : state) benchmark::DoNotOptimize(quant::gptq(weight, factor, scheme, options, &pool));
  const double rounds = options.fallback_to_rtn ? 2 : 1;
  set_flops(state, rounds * static_cast<double>(out) * static_cast<double>(in) * static_cast<double>(in));
}
BENCHMARK(bm_gptq)
    ->ArgNames({"out", "in", "fallback"})
    ->Args({1536, 576, 0})
    ->Args({1536, 576, 1})
    ->Args({576, 1536, 0})
    ->Args({576, 1536, 1})
    ->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
