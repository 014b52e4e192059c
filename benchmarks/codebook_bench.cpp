// Matrix-vector products from code books beside dense ones, at shapes from SmolLM2-135M to 7B models,
// single-threaded; the solvers of code books; and decoding. "B/s" counts the weight's stored bytes, "items"
// its elements.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <vector>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/quant/codebook_weight.h"
#include "lcomp/quant/kmeans1d.h"

namespace {

using namespace lcomp;

at::Tensor normal_matrix(int64_t rows, int64_t cols) {
  Rng rng(1, "bench");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return matrix;
}

quant::CodebookWeight some_weight(int64_t bits, int64_t out, int64_t in) {
  Rng rng(2, "codes");
  at::Tensor codes = at::empty({out, in}, at::kByte);
  for (int64_t i = 0; i < codes.numel(); ++i)
    codes.data_ptr<uint8_t>()[i] = static_cast<uint8_t>(rng.below(uint64_t{1} << bits));
  return {bits, codes, normal_matrix(out, int64_t{1} << bits).to(at::kHalf)};
}

void count(benchmark::State& state, int64_t elements, int64_t bytes) {
  state.SetItemsProcessed(state.iterations() * elements);
  state.SetBytesProcessed(state.iterations() * bytes);
}

void bm_dense_product(benchmark::State& state) {
  const ThreadPool pool(1);
  const auto out = static_cast<int>(state.range(0)), in = static_cast<int>(state.range(1));
  const at::Tensor w = normal_matrix(out, in), x = normal_matrix(1, in);
  at::Tensor y = at::empty({out}, at::kFloat);
  for (auto _ : state) {
    cblas_sgemv(CblasRowMajor, CblasNoTrans, out, in, 1, w.data_ptr<float>(), in, x.data_ptr<float>(), 1, 0,
                y.data_ptr<float>(), 1);
    benchmark::DoNotOptimize(y.data_ptr());
  }
  count(state, w.numel(), w.numel() * 4);
}
BENCHMARK(bm_dense_product)
    ->ArgNames({"out", "in"})
    ->ArgsProduct({{1536}, {576}})
    ->ArgsProduct({{4096}, {4096}})
    ->Unit(benchmark::kMicrosecond);

void bm_codebook_product(benchmark::State& state) {
  const ThreadPool pool(1);
  const quant::CodebookWeight w = some_weight(state.range(2), state.range(0), state.range(1));
  const at::Tensor x = normal_matrix(state.range(3), state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(w.apply(x));
  count(state, state.range(0) * state.range(1), w.bytes());
}
BENCHMARK(bm_codebook_product)
    ->ArgNames({"out", "in", "bits", "tokens"})
    ->ArgsProduct({{1536}, {576}, {3, 4}, {1, 4, 16}})
    ->ArgsProduct({{4096}, {4096}, {3, 4, 5}, {1, 4, 16}})
    ->Unit(benchmark::kMicrosecond);

void bm_codebook_decode(benchmark::State& state) {
  const ThreadPool pool(1);
  const quant::CodebookWeight w = some_weight(state.range(0), 4096, 4096);
  for (auto _ : state) benchmark::DoNotOptimize(w.dense());
  count(state, 4096 * 4096, w.bytes());
}
BENCHMARK(bm_codebook_decode)->ArgName("bits")->Arg(3)->Arg(4)->Unit(benchmark::kMillisecond);

/// One row: the exact solver against Lloyd's iterations from quantiles.
void bm_kmeans(benchmark::State& state) {
  const int64_t n = state.range(0), k = state.range(1);
  Rng rng(3, "row");
  std::vector<double> x, f;
  for (int64_t i = 0; i < n; ++i) {
    x.push_back(rng.normal());
    f.push_back(std::exp(2 * rng.normal()));
  }
  for (auto _ : state) {
    if (state.range(2) != 0) {
      benchmark::DoNotOptimize(quant::kmeans_exact(x, f, k));
    } else {
      benchmark::DoNotOptimize(quant::kmeans_lloyd(x, f, quant::quantile_centers(x, f, k), 50));
    }
  }
  state.SetItemsProcessed(state.iterations() * n);
}
BENCHMARK(bm_kmeans)
    ->ArgNames({"n", "k", "exact"})
    ->ArgsProduct({{576, 4096}, {8, 16}, {0, 1}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
