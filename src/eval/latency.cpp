#include "lcomp/eval/latency.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <map>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "lcomp/model/block.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lcomp/sparse/sparsity.h"
#include "model/factor_steps.h"

namespace lcomp::eval {
namespace {

using sparse::SparseFormat;
using sparse::SparseWeight;

constexpr int64_t kMostBytesOfAKind = int64_t{1} << 30;

/// Uniform in [-1, 1).
at::Tensor random_matrix(int64_t rows, int64_t cols) {
  Rng rng(0, "latency");
  at::Tensor matrix = at::empty({rows, cols}, at::kFloat);
  for (int64_t i = 0; i < matrix.numel(); ++i)
    matrix.data_ptr<float>()[i] = static_cast<float>(2 * rng.uniform() - 1);
  return matrix;
}

/// A dense matrix as blocks multiply it; its rows are shared out over the threads.
class PackedRows {
 public:
  PackedRows(const at::Tensor& matrix, linalg::Precision precision, ThreadPool& pool)
      : pool_(pool), scratch_(static_cast<size_t>(pool.size())) {
    const int64_t rows = ceil_div(matrix.size(0), static_cast<int64_t>(pool.size()));
    for (const at::Tensor& part : matrix.split(rows)) parts_.emplace_back(std::vector{part}, precision);
    results_.resize(parts_.size());
  }

  /// The parts of x W^T, [tokens, .] each.
  const std::vector<at::Tensor>& multiply(const at::Tensor& x) {
    pool_.parallel_for(static_cast<int64_t>(parts_.size()), [&](int64_t i, int worker) {
      const linalg::PackedMatrix& part = parts_[static_cast<size_t>(i)];
      at::Tensor& y = results_[static_cast<size_t>(i)];
      if (!y.defined() || y.size(0) != x.size(0)) y = at::empty({x.size(0), part.out_features()}, at::kFloat);
      part.multiply(x.data_ptr<float>(), x.size(0), y.data_ptr<float>(), false,
                    scratch_[static_cast<size_t>(worker)]);
    });
    return results_;
  }

 private:
  ThreadPool& pool_;
  std::vector<linalg::PackedMatrix> parts_;
  std::vector<at::Tensor> results_;
  std::vector<linalg::Scratch> scratch_;
};

/// x W^T the way that a weight is run.
class Product {
 public:
  Product(WeightPtr weight, linalg::Precision precision, ThreadPool& pool)
      : weight_(std::move(weight)), pool_(pool), bytes_(weight_->bytes()) {
    // Packed and sparse matrices are multiplied as they are stored; what is made of factors as blocks run it.
    const bool dense = dynamic_cast<const DenseWeight*>(weight_.get()) != nullptr;
    if (!dense && weight_->macs_per_token() == weight_->out_features() * weight_->in_features()) return;
    steps_ = model::factor_steps(*weight_, precision);
    if (!steps_.empty()) bytes_ = 0;
    for (const model::FactorStep& step : steps_) {
      packed_.emplace_back();
      if (step.is_applied) {
        bytes_ += step.matrix->bytes();
        continue;
      }
      const at::Tensor matrix = step.matrix->dense();
      packed_.back() = std::make_unique<PackedRows>(matrix, precision, pool);
      bytes_ += matrix.numel() * (precision == linalg::Precision::kBf16 ? 2 : 4);
    }
  }

  void multiply(const at::Tensor& x) const {
    if (const auto* pruned = dynamic_cast<const SparseWeight*>(weight_.get())) {
      pruned->apply(x, &pool_);
    } else if (steps_.empty()) {
      weight_->apply(x);
    } else {
      at::Tensor input = x;
      for (size_t i = 0; i < steps_.size(); ++i) {
        const std::vector<at::Tensor> parts =
            packed_[i] ? packed_[i]->multiply(input) : std::vector{steps_[i].matrix->apply(input)};
        if (i + 1 < steps_.size() || steps_[i].is_pivoted())
          input = steps_[i].output(input, parts.size() == 1 ? parts[0] : at::cat(parts, 1));
      }
    }
  }

  int64_t in_features() const { return weight_->in_features(); }
  int64_t bytes() const { return bytes_; }

 private:
  WeightPtr weight_;
  ThreadPool& pool_;
  std::vector<model::FactorStep> steps_;
  std::vector<std::unique_ptr<PackedRows>> packed_;
  int64_t bytes_;
};

WeightPtr densified(const Weight& weight) {
  return std::make_shared<DenseWeight>(weight.dense());
}

void check(const std::vector<int64_t>& tokens) {
  for (const int64_t t : tokens) {
    if (t < 1) throw InvalidArgument("latency", fmt::format("tokens must be from 1 up; received {}", t));
  }
}

TimingOptions timing_of(TimingOptions options, int threads) {
  if (!options.clock) options.clock = clock_for(threads);
  return options;
}

void stop_if_asked(Observer& observer) {
  if (observer.cancelled()) throw Interrupted("latency", "the measurement was asked to stop");
}

/// Operators of one kind of evenly spread blocks, all of them where they fit into the limit.
class Kind {
 public:
  Kind(const model::Model& model, size_t op, bool dense, const LatencyOptions& options, ThreadPool& pool) {
    const auto info = model.architecture().operators(0).at(op);
    const int64_t fit = kMostBytesOfAKind / (4 * info.out_features * info.in_features);
    const int64_t count = std::clamp<int64_t>(fit, 1, model.size());
    for (int64_t i = 0; i < count; ++i) {
      const int64_t block = i * model.size() / count;
      WeightPtr weight = model.load_weight(model.architecture().operators(block).at(op));
      if (i == 0) stored_ = weight->describe();
      products_.emplace_back(dense ? densified(*weight) : std::move(weight), options.precision, pool);
    }
    blocks_each_ = static_cast<double>(model.size()) / static_cast<double>(count);
  }

  /// Inputs for all; blocks may differ in width.
  void take(int64_t tokens) {
    inputs_.clear();
    for (const Product& product : products_) {
      at::Tensor& x = inputs_[product.in_features()];
      if (!x.defined()) x = random_matrix(tokens, product.in_features());
    }
  }
  void multiply() const {
    for (const Product& product : products_) product.multiply(inputs_.at(product.in_features()));
  }

  const std::string& stored() const { return stored_; }
  double blocks_each() const { return blocks_each_; }
  int64_t bytes() const {
    double sum = 0;
    for (const Product& product : products_) sum += static_cast<double>(product.bytes());
    return static_cast<int64_t>(sum * blocks_each_);
  }

 private:
  std::vector<Product> products_;
  std::map<int64_t, at::Tensor> inputs_;
  std::string stored_;
  double blocks_each_ = 1;
};

/// One block at the input of a sample.
class PreparedBlock {
 public:
  PreparedBlock(const model::Model& model, int64_t index, bool dense, const at::Tensor& hidden,
                linalg::Precision precision)
      : block_(model.load_block(index)), input_(hidden), state_{at::empty_like(hidden), {}} {
    for (size_t op = 0; op < block_.ops().size(); ++op) {
      bytes_ += block_.ops()[op].weight->bytes();
      if (dense) block_.replace(op, densified(*block_.ops()[op].weight));
    }
    for (size_t g = 0; g < block_.groups().size(); ++g) block_.prepare(g, precision);
  }

  void forward() {
    state_.hidden.copy_(input_);
    block_.forward(state_, scratch_);
  }
  int64_t bytes() const { return bytes_; }

 private:
  model::Block block_;
  at::Tensor input_;
  model::SampleState state_;
  linalg::Scratch scratch_;
  int64_t bytes_ = 0;
};

int64_t cache_bytes() {
  return std::max<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), int64_t{32} << 20);
}

/// Copies of a matrix, taken in turn, that exceed the caches twice where kMostCopies do.
class Ring {
 public:
  template <class Copy>
  Ring(const Copy& copy, linalg::Precision precision, ThreadPool& pool) {
    constexpr int64_t kMostCopies = 256;
    products_.emplace_back(copy(), precision, pool);
    const int64_t count = std::clamp<int64_t>(ceil_div(2 * cache_bytes(), bytes()), 2, kMostCopies);
    while (static_cast<int64_t>(products_.size()) < count) products_.emplace_back(copy(), precision, pool);
  }

  void multiply(const at::Tensor& x) { products_[next_++ % products_.size()].multiply(x); }
  int64_t bytes() const { return products_.front().bytes(); }

 private:
  std::vector<Product> products_;
  size_t next_ = 0;
};

/// The mask of a random matrix of this storage.
at::Tensor random_mask(const at::Tensor& matrix, double density, SparseFormat format) {
  sparse::Sparsity sparsity{.sparsity = 1 - density};
  if (format == SparseFormat::kTwoOfFour) sparsity.pattern = "2:4";
  if (format != SparseFormat::kBlockedEll) return sparse::select_kept(sparse::magnitude(matrix), sparsity);
  const int64_t rows = ceil_div(matrix.size(0), sparse::kStoredBlockEdge);
  const int64_t columns = ceil_div(matrix.size(1), sparse::kStoredBlockEdge);
  return sparse::select_kept(sparse::magnitude(random_matrix(rows, columns)), sparsity)
      .repeat_interleave(sparse::kStoredBlockEdge, 0)
      .repeat_interleave(sparse::kStoredBlockEdge, 1)
      .slice(0, 0, matrix.size(0))
      .slice(1, 0, matrix.size(1));
}

WeightPtr copy_of(const SparseWeight& weight) {
  sparse::SparseTensors parts = weight.stored();
  for (auto& [suffix, tensor] : parts.parts) tensor = tensor.clone();
  return std::make_shared<SparseWeight>(SparseWeight::from_stored(std::move(parts), weight.format(), "copy"));
}

}  // namespace

std::vector<Latency> operator_latencies(const model::Model& model, const model::Model* rival,
                                        const LatencyOptions& options, ThreadPool& pool, Observer& observer) {
  check(options.tokens);
  const TimingOptions timing = timing_of(options.timing, pool.size());
  std::vector<Latency> rows, sums;
  for (const int64_t tokens : options.tokens) {
    sums.emplace_back();
    sums.back().name = "all operators";
    sums.back().tokens = tokens;
  }
  const auto kinds = model.architecture().operators(0);
  for (size_t op = 0; op < kinds.size(); ++op) {
    observer.progress(
        {"timing operators", static_cast<int64_t>(op), static_cast<int64_t>(kinds.size()), kinds[op].kind});
    Kind mine(model, op, false, options, pool);
    Kind dense(rival == nullptr ? model : *rival, op, true, options, pool);
    for (Latency& sum : sums) {
      stop_if_asked(observer);
      mine.take(sum.tokens);
      dense.take(sum.tokens);
      const auto timings = time_in_turn({[&] { mine.multiply(); }, [&] { dense.multiply(); }}, timing);
      Latency row = sum;
      row.name = kinds[op].kind;
      row.stored = mine.stored();
      row.measured = timings[0];
      row.dense = timings[1];
      row.measured *= mine.blocks_each();
      row.dense *= dense.blocks_each();
      row.bytes = mine.bytes();
      row.dense_bytes = dense.bytes();
      sum.measured += row.measured;
      sum.dense += row.dense;
      sum.bytes += row.bytes;
      sum.dense_bytes += row.dense_bytes;
      rows.push_back(std::move(row));
    }
  }
  rows.insert(rows.end(), sums.begin(), sums.end());
  return rows;
}

Latency block_latency(const model::Model& model, const model::Model* rival, int64_t tokens,
                      const LatencyOptions& options, Observer& observer) {
  check({tokens});
  Latency row;
  row.name = "all blocks";
  row.tokens = tokens;
  const model::Model& dense = rival == nullptr ? model : *rival;
  const TimingOptions timing = timing_of(options.timing, 1);
  const at::Tensor x = random_matrix(tokens, model.architecture().hidden_size);
  const at::Tensor dense_x = random_matrix(tokens, dense.architecture().hidden_size);
  const int64_t blocks = std::max(model.size(), dense.size());
  for (int64_t i = 0; i < blocks; ++i) {
    stop_if_asked(observer);
    observer.progress({"timing blocks", i, blocks, fmt::format("block {}", i)});
    std::vector<std::function<void()>> calls;
    std::vector<std::pair<Timing*, int64_t*>> sums;
    std::vector<std::unique_ptr<PreparedBlock>> prepared;
    const auto add = [&](const model::Model& of, bool decoded, const at::Tensor& input, Timing& sum,
                         int64_t& bytes) {
      if (i >= of.size()) return;
      prepared.push_back(std::make_unique<PreparedBlock>(of, i, decoded, input, options.precision));
      calls.emplace_back([block = prepared.back().get()] { block->forward(); });
      sums.emplace_back(&sum, &bytes);
    };
    add(model, false, x, row.measured, row.bytes);
    add(dense, rival == nullptr, dense_x, row.dense, row.dense_bytes);
    const auto timings = time_in_turn(calls, timing);
    for (size_t c = 0; c < calls.size(); ++c) {
      *sums[c].first += timings[c];
      *sums[c].second += prepared[c]->bytes();
    }
  }
  return row;
}

std::vector<Latency> storage_latencies(int64_t out, int64_t in, double density, SparseFormat format,
                                       const LatencyOptions& options, ThreadPool& pool) {
  check(options.tokens);
  if (out < 1 || in < 1)
    throw InvalidArgument("latency", fmt::format("the shape must be from 1x1 up; received {}x{}", out, in));
  if (!(density > 0 && density <= 1))
    throw InvalidArgument("latency",
                          fmt::format("density must be above 0 and at most 1; received {}", density));
  const at::Tensor matrix = random_matrix(out, in);
  const at::Tensor pruned = (matrix * random_mask(matrix, density, format)).to(at::kBFloat16);
  const SparseWeight weight(pruned, format);
  Ring mine([&] { return copy_of(weight); }, options.precision, pool);
  Ring dense([&] { return std::make_shared<DenseWeight>(pruned); }, options.precision, pool);
  const TimingOptions timing = timing_of(options.timing, pool.size());
  std::vector<Latency> rows;
  for (const int64_t tokens : options.tokens) {
    const at::Tensor x = random_matrix(tokens, in);
    const auto timings = time_in_turn({[&] { mine.multiply(x); }, [&] { dense.multiply(x); }}, timing);
    Latency row;
    row.name = name_of(format);
    row.stored = weight.describe();
    row.density =
        static_cast<double>(pruned.count_nonzero().item<int64_t>()) / static_cast<double>(pruned.numel());
    row.tokens = tokens;
    row.measured = timings[0];
    row.dense = timings[1];
    row.bytes = mine.bytes();
    row.dense_bytes = dense.bytes();
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace lcomp::eval
