// What a look-up in a compressed embedding costs beside one in the plain table: shapes of SmolLM2-135M, 49152
// x 576 in bfloat16, at the ratios of docs/lowrank.md, one thread. Arguments: ratio, tokens looked up at
// once.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include "lcomp/core/product_weight.h"
#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"

namespace {

using namespace lcomp;

constexpr int64_t kRows = 49152, kColumns = 576;

/// Uniform in [-1, 1), bfloat16.
at::Tensor random_part(at::IntArrayRef shape) {
  Rng rng(1, "embedding");
  at::Tensor part = at::empty(shape, at::kFloat);
  for (int64_t i = 0; i < part.numel(); ++i)
    part.data_ptr<float>()[i] = static_cast<float>(2 * rng.uniform() - 1);
  return part.to(at::kBFloat16);
}

at::Tensor random_ids(int64_t count, int64_t below, const char* stream) {
  Rng rng(1, stream);
  at::Tensor ids = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i)
    ids.data_ptr<int64_t>()[i] = static_cast<int64_t>(rng.below(static_cast<uint64_t>(below)));
  return ids;
}

WeightPtr dense(int64_t) {
  return std::make_shared<DenseWeight>(random_part({kRows, kColumns}));
}

WeightPtr low_rank(int64_t numbers) {
  const int64_t rank = numbers / (kRows + kColumns);
  return std::make_shared<ProductWeight>(
      std::vector<WeightPtr>{std::make_shared<DenseWeight>(random_part({kRows, rank})),
                             std::make_shared<DenseWeight>(random_part({rank, kColumns}))});
}

/// Rows 30 x 40 x 41, columns 9 x 8 x 8.
WeightPtr tensor_train(int64_t numbers) {
  int64_t rank = 1;
  const auto size = [](int64_t r) { return 30 * 9 * r + r * 40 * 8 * r + r * 41 * 8; };
  while (size(rank + 1) <= numbers) ++rank;
  return std::make_shared<lowrank::TensorTrainWeight>(
      kRows, kColumns,
      std::vector<at::Tensor>{random_part({1, 30, 9, rank}), random_part({rank, 40, 8, rank}),
                              random_part({rank, 41, 8, 1})});
}

WeightPtr word2ketxs(int64_t numbers) {
  return std::make_shared<lowrank::KroneckerSumWeight>(kRows, kColumns,
                                                       random_part({2, numbers / (2 * 222 * 24), 222, 24}));
}

WeightPtr morphte(int64_t numbers) {
  constexpr int64_t kMorphemes = 27648, kOrder = 3, kWidth = 9;
  const int64_t rank = (numbers - kRows * kOrder) / (kMorphemes * kWidth);
  return std::make_shared<lowrank::MorphemeWeight>(
      random_part({rank, kMorphemes, kWidth}),
      random_ids(kRows * kOrder, kMorphemes, "morphemes").reshape({kRows, kOrder}).to(at::kInt), kColumns);
}

void bm_rows(benchmark::State& state, WeightPtr (*make)(int64_t)) {
  const ThreadPool pool(1);
  const WeightPtr table = make(kRows * kColumns / state.range(0));
  const at::Tensor ids = random_ids(state.range(1), kRows, "ids");
  for (auto _ : state) benchmark::DoNotOptimize(table->rows(ids));
  state.SetLabel(fmt::format("{:.1f} MB", static_cast<double>(table->bytes()) / 1e6));
}

void ratios(benchmark::internal::Benchmark* bench) {
  for (const int64_t ratio : {5, 10, 20}) {
    for (const int64_t tokens : {1, 512}) bench->Args({ratio, tokens});
  }
}

BENCHMARK_CAPTURE(bm_rows, dense, dense)->Args({1, 1})->Args({1, 512})->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(bm_rows, low_rank, low_rank)->Apply(ratios)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(bm_rows, tensor_train, tensor_train)->Apply(ratios)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(bm_rows, word2ketxs, word2ketxs)->Apply(ratios)->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(bm_rows, morphte, morphte)->Apply(ratios)->Unit(benchmark::kMicrosecond);

}  // namespace

BENCHMARK_MAIN();
