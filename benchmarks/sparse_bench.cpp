// Products from sparse storage at the shapes of SmolLM2-135M and of 7B models, single-threaded, and what
// bounds them at one token: reading memory. "B/s" counts the weight's stored bytes. Matrices are taken in
// turn, more than fit into the caches. `lcomp bench --shape` compares with dense products.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <vector>

#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lcomp/sparse/sparsity.h"

namespace {

using namespace lcomp;
using sparse::SparseFormat;

constexpr int64_t kBytesInTurn = 128 << 20;

at::Tensor normal_matrix(int64_t rows, int64_t cols) {
  Rng rng(1, "bench");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return matrix;
}

/// Copies of a pruned matrix; of Blocked-ELL the left blocks are kept.
std::vector<sparse::SparseWeight> copies(int64_t out, int64_t in, double density, SparseFormat format) {
  at::Tensor w = normal_matrix(out, in);
  sparse::Sparsity sparsity{.sparsity = 1 - density};
  if (format == SparseFormat::kTwoOfFour) sparsity.pattern = "2:4";
  if (format == SparseFormat::kBlockedEll) {
    w.slice(1, std::max<int64_t>(64, static_cast<int64_t>(density * static_cast<double>(in)) / 64 * 64))
        .zero_();
  } else {
    w *= sparse::select_kept(sparse::magnitude(w), sparsity);
  }
  std::vector<sparse::SparseWeight> weights;
  do {
    weights.emplace_back(w.to(at::kBFloat16), format);
  } while (static_cast<int64_t>(weights.size()) * weights.front().bytes() < kBytesInTurn &&
           weights.size() < 200);
  return weights;
}

void bm_product(benchmark::State& state) {
  const ThreadPool pool(1);
  const auto format = static_cast<SparseFormat>(state.range(2));
  const auto weights =
      copies(state.range(0), state.range(1), static_cast<double>(state.range(3)) / 100, format);
  const at::Tensor x = normal_matrix(state.range(4), state.range(1));
  size_t next = 0;
  for (auto _ : state) benchmark::DoNotOptimize(weights[next++ % weights.size()].apply(x));
  state.SetBytesProcessed(state.iterations() * weights.front().bytes());
  state.SetLabel(std::string(name_of(format)));
}

const std::vector<int64_t> kStorages = {
    static_cast<int64_t>(SparseFormat::kBitmask), static_cast<int64_t>(SparseFormat::kCsr),
    static_cast<int64_t>(SparseFormat::kTwoOfFour), static_cast<int64_t>(SparseFormat::kBlockedEll),
    static_cast<int64_t>(SparseFormat::kTiledCsl)};

BENCHMARK(bm_product)
    ->ArgNames({"out", "in", "storage", "percent", "tokens"})
    ->ArgsProduct({{1536}, {576}, kStorages, {50, 10}, {1, 8, 64}})
    ->ArgsProduct({{4096}, {4096}, kStorages, {50, 10}, {1, 8, 64}})
    ->Unit(benchmark::kMicrosecond);

/// The bound of a product of one token: the bytes of its weight at this speed.
void bm_read_memory(benchmark::State& state) {
  const at::Tensor bytes = at::ones({kBytesInTurn / 4}, at::kFloat);
  for (auto _ : state) benchmark::DoNotOptimize(at::sum(bytes));
  state.SetBytesProcessed(state.iterations() * kBytesInTurn);
}
BENCHMARK(bm_read_memory)->Unit(benchmark::kMillisecond);

}  // namespace

BENCHMARK_MAIN();
