// The dense forward of one block through the streaming code, and the accumulation of second moments, over
// samples of 2048 tokens, as shares of what the best GEMM of this machine reaches at the same shapes in the
// same process (oneDNN's by way of PackedMatrix, or OpenBLAS's in float32, whichever is faster at a shape).
// Shapes are those of SmolLM2-135M (hidden 576) and of a 1B model (hidden 2048).
//
// Each iteration runs all of them in turn, and the medians are compared. GFLOP are counted as in the report's
// roofline: 2 out in per token and operator, causal attention, and n^2 per token of a second moment, which is
// symmetric. GFLOP/s are per processor second, so that waiting for other programs does not count; with
// several threads that is the speed of one of them. `wall_share` is the share by elapsed time, idle threads
// included.
#include <ATen/ATen.h>
#include <benchmark/benchmark.h>
#include <cblas.h>

#include <algorithm>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/stopwatch.h"
#include "lcomp/calib/sample_runner.h"
#include "lcomp/core/checked.h"
#include "lcomp/core/rng.h"
#include "lcomp/core/threads.h"
#include "lcomp/model/model.h"

namespace {

using namespace lcomp;

constexpr int64_t kTokens = 2048;

at::Tensor normal_matrix(int64_t rows, int64_t cols, double deviation = 1) {
  Rng rng(1, "bench");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i)
    matrix.data_ptr<float>()[i] = static_cast<float>(deviation * rng.normal());
  return matrix;
}

struct Shape {
  int64_t hidden, inner, heads, kv_heads;
};

Shape shape_of(int64_t hidden) {
  return hidden == 576 ? Shape{576, 1536, 9, 3} : Shape{2048, 8192, 32, 8};
}

/// A llama of one block.
model::Model synthetic_llama(const Shape& shape) {
  constexpr int64_t kHeadDim = 64, kVocabulary = 64;
  const nlohmann::json config = {{"model_type", "llama"},
                                 {"hidden_size", shape.hidden},
                                 {"intermediate_size", shape.inner},
                                 {"num_hidden_layers", 1},
                                 {"num_attention_heads", shape.heads},
                                 {"num_key_value_heads", shape.kv_heads},
                                 {"head_dim", kHeadDim},
                                 {"vocab_size", kVocabulary},
                                 {"max_position_embeddings", kTokens},
                                 {"tie_word_embeddings", true}};
  const std::string block = "model.layers.0.";
  const int64_t q = shape.heads * kHeadDim, kv = shape.kv_heads * kHeadDim;
  std::map<std::string, at::Tensor> tensors;
  const auto add = [&](const std::string& name, int64_t out, int64_t in) {
    tensors[name + ".weight"] = normal_matrix(out, in, 0.02);
  };
  add("model.embed_tokens", kVocabulary, shape.hidden);
  add(block + "self_attn.q_proj", q, shape.hidden);
  add(block + "self_attn.k_proj", kv, shape.hidden);
  add(block + "self_attn.v_proj", kv, shape.hidden);
  add(block + "self_attn.o_proj", shape.hidden, q);
  add(block + "mlp.gate_proj", shape.inner, shape.hidden);
  add(block + "mlp.up_proj", shape.inner, shape.hidden);
  add(block + "mlp.down_proj", shape.hidden, shape.inner);
  for (const std::string& norm :
       {block + "input_layernorm", block + "post_attention_layernorm", std::string("model.norm")})
    tensors[norm + ".weight"] = at::ones({shape.hidden});
  return {config.dump(), std::make_shared<io::MemoryCheckpoint>(tensors), "synthetic"};
}

/// Times of repetitions of one piece of work.
class Times {
 public:
  template <class Work>
  void measure(const Work& work) {
    double processor = 0;
    const Stopwatch watch;
    {
      const CpuTimer timer(processor);
      work();
    }
    wall_.push_back(watch.seconds());
    processor_.push_back(processor);
  }
  bool empty() const { return wall_.empty(); }
  double last_wall() const { return wall_.back(); }
  double wall() const { return median(wall_); }
  double processor() const { return median(processor_); }

 private:
  static double median(std::vector<double> seconds) {
    const auto middle = seconds.begin() + static_cast<int64_t>(seconds.size() / 2);
    std::nth_element(seconds.begin(), middle, seconds.end());
    return *middle;
  }

  std::vector<double> wall_, processor_;
};

/// y `[rows, out]` = x `[rows, in]` W^T, the rows shared out evenly over the pool.
class Product {
 public:
  Product(ThreadPool& pool, int64_t rows, int64_t out, int64_t in, linalg::Precision precision)
      : pool_(pool),
        rows_(rows),
        out_(out),
        in_(in),
        precision_(precision),
        weight_(normal_matrix(out, in)),
        x_(normal_matrix(rows, in)),
        y_(at::ones({rows, out}, at::kFloat)),
        packed_({weight_}, precision),
        scratch_(static_cast<size_t>(pool.size())) {}

  void measure() {
    onednn_.measure([&] {
      share_out([&](int64_t begin, int64_t count, int worker) {
        packed_.multiply(x_.data_ptr<float>() + begin * in_, count, y_.data_ptr<float>() + begin * out_,
                         false, scratch_[static_cast<size_t>(worker)]);
      });
    });
    if (precision_ != linalg::Precision::kF32) return;
    const auto out = static_cast<int>(out_), in = static_cast<int>(in_);
    openblas_.measure([&] {
      share_out([&](int64_t begin, int64_t count, int) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(count), out, in, 1.0F,
                    x_.data_ptr<float>() + begin * in_, in, weight_.data_ptr<float>(), in, 0.0F,
                    y_.data_ptr<float>() + begin * out_, out);
      });
    });
  }

  double flops() const {
    return 2.0 * static_cast<double>(rows_) * static_cast<double>(out_) * static_cast<double>(in_);
  }
  double processor() const {
    return openblas_.empty() ? onednn_.processor() : std::min(onednn_.processor(), openblas_.processor());
  }
  double wall() const {
    return openblas_.empty() ? onednn_.wall() : std::min(onednn_.wall(), openblas_.wall());
  }

 private:
  template <class Piece>
  void share_out(const Piece& piece) {
    const int64_t each = ceil_div(rows_, pool_.size());
    pool_.parallel_for(pool_.size(), [&](int64_t k, int worker) {
      piece(k * each, std::min(each, rows_ - k * each), worker);
    });
  }

  ThreadPool& pool_;
  int64_t rows_, out_, in_;
  linalg::Precision precision_;
  at::Tensor weight_, x_, y_;
  linalg::PackedMatrix packed_;
  std::vector<linalg::Scratch> scratch_;
  Times onednn_, openblas_;
};

void report(benchmark::State& state, double flops, const Times& times, const std::vector<Product>& products) {
  double product_flops = 0, processor = 0, wall = 0;
  for (const Product& product : products) {
    product_flops += product.flops();
    processor += product.processor();
    wall += product.wall();
  }
  const double speed = flops / times.processor(), best = product_flops / processor;
  state.counters["GFLOP"] = 1e-9 * flops;
  state.counters["GFLOP/s"] = 1e-9 * speed;
  state.counters["GEMM_GFLOP/s"] = 1e-9 * best;
  state.counters["share"] = speed / best;
  state.counters["wall_share"] = flops / times.wall() / (product_flops / wall);
}

void forward(benchmark::State& state, linalg::Precision precision) {
  ThreadPool pool(static_cast<int>(state.range(1)));
  const model::Model model = synthetic_llama(shape_of(state.range(0)));
  const int64_t hidden = model.architecture().hidden_size;
  model::Block block = model.load_block(0);

  // One sample per thread.
  const std::vector<int64_t> lengths(static_cast<size_t>(pool.size()), kTokens);
  calib::ActivationCache samples(lengths, hidden, calib::ActivationCache::Storage::kMemory);
  for (int64_t i = 0; i < samples.samples(); ++i) samples.store(i, normal_matrix(kTokens, hidden));
  calib::SampleRunner runner(pool, model.architecture(), samples, nullptr, kTokens);

  std::vector<Product> products;
  for (size_t g = 0; g < block.groups().size(); ++g) {
    block.prepare(g, precision);
    int64_t out = 0, in = 0;
    for (const size_t op : block.groups()[g].operators) {
      out += block.ops()[op].info.out_features;
      in = block.ops()[op].info.in_features;
    }
    products.emplace_back(pool, kTokens * pool.size(), out, in, precision);
  }

  runner.forward(block);  // buffers and kernels are made
  const double before = runner.work_count().forward_flops;
  Times times;
  for (auto _ : state) {
    times.measure([&] { runner.forward(block); });
    state.SetIterationTime(times.last_wall());
    for (Product& product : products) product.measure();
  }
  const double flops = runner.work_count().forward_flops - before;
  report(state, flops / static_cast<double>(state.iterations()), times, products);
}

void bm_forward_f32(benchmark::State& state) {
  forward(state, linalg::Precision::kF32);
}

void bm_forward_bf16(benchmark::State& state) {
  if (!linalg::has_native_bf16()) return state.SkipWithError("no native bfloat16");
  forward(state, linalg::Precision::kBf16);
}

/// Always in float32, whatever the forward computes in. What comes once per statistic and not once per batch
/// (the zeros before, the mirroring after) is left out.
void bm_second_moments(benchmark::State& state) {
  ThreadPool pool(static_cast<int>(state.range(1)));
  const Shape shape = shape_of(state.range(0));
  std::vector<at::Tensor> inputs;
  std::vector<calib::StatsAccumulator> statistics;
  std::vector<Product> products;
  double flops = 0;
  for (const int64_t width : {shape.hidden, shape.hidden, shape.hidden, shape.inner}) {
    inputs.push_back(normal_matrix(kTokens, width));
    statistics.emplace_back(width, calib::Needs{.second_moment = true});
    products.emplace_back(pool, width, width, kTokens, linalg::Precision::kF32);
    flops += static_cast<double>(kTokens) * static_cast<double>(width) * static_cast<double>(width);
  }
  const auto add_all = [&] {
    for (size_t g = 0; g < inputs.size(); ++g) statistics[g].add(&pool, inputs[g].data_ptr<float>(), kTokens);
  };
  add_all();
  Times times;
  for (auto _ : state) {
    times.measure(add_all);
    state.SetIterationTime(times.last_wall());
    for (Product& product : products) product.measure();
  }
  report(state, flops, times, products);
}

/// threads:0 are all that there are.
void cases(benchmark::internal::Benchmark* bench) {
  constexpr int64_t kRepetitions = 7;
  bench->ArgNames({"hidden", "threads"})->ArgsProduct({{576, 2048}, {1, 0}});
  bench->Iterations(kRepetitions)->UseManualTime()->Unit(benchmark::kMillisecond);
}

BENCHMARK(bm_forward_f32)->Apply(cases);
BENCHMARK(bm_forward_bf16)->Apply(cases);
BENCHMARK(bm_second_moments)->Apply(cases);

}  // namespace

BENCHMARK_MAIN();
