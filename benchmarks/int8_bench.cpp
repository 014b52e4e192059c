// The int8 product against the float32 and bfloat16 ones at the shapes of SmolLM2-135M, on one thread and
// 2048 tokens: bare (codes in, integers out), and as an operator (rounding the input, product, scaling), with
// and without outlier columns. GFLOP/s counts 2 tokens out in for all of them.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/int8_product.h"
#include "lcomp/quant/llm_int8.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/rtn.h"

namespace {

using namespace lcomp;

constexpr int64_t kTokens = 2048;

at::Tensor normal_matrix(int64_t rows, int64_t cols, const char* stream) {
  Rng rng(1, stream);
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return matrix;
}

/// With two outlier columns.
at::Tensor input(int64_t in) {
  at::Tensor x = normal_matrix(kTokens, in, "input").clamp(-5, 5);
  x.select(1, 3).mul_(10);
  x.select(1, in / 2).mul_(10);
  return x;
}

void set_flops(benchmark::State& state) {
  const double flops =
      2.0 * kTokens * static_cast<double>(state.range(0)) * static_cast<double>(state.range(1));
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

quant::QuantizedWeight eight_bits(int64_t out, int64_t in, bool symmetric = true) {
  return quant::rtn(normal_matrix(out, in, "weight"),
                    {.bits = 8, .symmetric = symmetric, .granularity = quant::Granularity::kChannel});
}

void packed_product(benchmark::State& state, linalg::Precision precision) {
  const ThreadPool pool(1);
  const int64_t out = state.range(0), in = state.range(1);
  const linalg::PackedMatrix matrix({normal_matrix(out, in, "weight")}, precision);
  const at::Tensor x = input(in);
  at::Tensor y = at::zeros({kTokens, out}, at::kFloat);
  linalg::Scratch scratch;
  for (auto _ : state) matrix.multiply(x.data_ptr<float>(), kTokens, y.data_ptr<float>(), false, scratch);
  set_flops(state);
}

void bm_f32(benchmark::State& state) {
  packed_product(state, linalg::Precision::kF32);
}

void bm_bf16(benchmark::State& state) {
  if (!linalg::has_native_bf16()) return state.SkipWithError("no native bfloat16");
  packed_product(state, linalg::Precision::kBf16);
}

void int8_product(benchmark::State& state, linalg::Int8Way way) {
  const ThreadPool pool(1);
  const int64_t out = state.range(0), in = state.range(1);
  const linalg::Int8Matrix matrix(eight_bits(out, in).codes(), way);
  const at::Tensor x = quant::quantize_activations(input(in), {}).codes;
  at::Tensor y = at::zeros({kTokens, out}, at::kInt);
  linalg::Scratch scratch;
  for (auto _ : state) matrix.multiply(x.data_ptr<int8_t>(), kTokens, y.data_ptr<int32_t>(), scratch);
  set_flops(state);
}

void bm_int8(benchmark::State& state) {
  int8_product(state, linalg::Int8Way::kBest);
}

void bm_int8_split(benchmark::State& state) {
  int8_product(state, linalg::Int8Way::kSplit);
}

void apply_product(benchmark::State& state, const Weight& weight) {
  const at::Tensor x = input(state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(weight.apply(x));
  set_flops(state);
}

void bm_w8a8(benchmark::State& state) {
  const ThreadPool pool(1);
  apply_product(state, quant::QuantizedInputWeight(eight_bits(state.range(0), state.range(1)), {}));
}

void bm_w8a8_zero_points(benchmark::State& state) {
  const ThreadPool pool(1);
  quant::ActivationScheme asymmetric;
  asymmetric.symmetric = false;
  apply_product(state,
                quant::QuantizedInputWeight(eight_bits(state.range(0), state.range(1), false), asymmetric));
}

void bm_llm_int8(benchmark::State& state) {
  const ThreadPool pool(1);
  quant::LlmInt8Options options;
  options.outlier_weights = quant::OutlierWeights::kDequantized;
  apply_product(state, quant::llm_int8(normal_matrix(state.range(0), state.range(1), "weight"), options));
}

void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"out", "in"})->Args({576, 576})->Args({960, 576})->Args({3072, 576})->Args({576, 1536});
  bench->Unit(benchmark::kMillisecond);
}

BENCHMARK(bm_f32)->Apply(shapes);
BENCHMARK(bm_bf16)->Apply(shapes);
BENCHMARK(bm_int8)->Apply(shapes);
BENCHMARK(bm_int8_split)->Apply(shapes);
BENCHMARK(bm_w8a8)->Apply(shapes);
BENCHMARK(bm_w8a8_zero_points)->Apply(shapes);
BENCHMARK(bm_llm_int8)->Apply(shapes);

}  // namespace

BENCHMARK_MAIN();
