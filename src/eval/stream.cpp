#include "eval/stream.h"

#include <ATen/ATen.h>

namespace lcomp::eval {
namespace {

std::vector<int64_t> lengths_of(const std::vector<std::vector<int64_t>>& sequences) {
  std::vector<int64_t> lengths;
  lengths.reserve(sequences.size());
  for (const auto& ids : sequences) lengths.push_back(static_cast<int64_t>(ids.size()));
  return lengths;
}

/// Tokens whose inputs the runner may gather; nothing is gathered here.
constexpr int64_t kBatchTokens = 2048;

}  // namespace

Stream::Stream(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences,
               ThreadPool& pool)
    : model_(model),
      hidden_(lengths_of(sequences), model.architecture().hidden_size,
              calib::ActivationCache::Storage::kMemory),
      runner_(pool, model.architecture(), hidden_, nullptr, kBatchTokens) {
  for (size_t i = 0; i < sequences.size(); ++i)
    hidden_.store(static_cast<int64_t>(i), model.embed(sequences[i]));
}

void Stream::pass_block(int64_t i, linalg::Precision precision) {
  model::Block block = model_.load_block(i);
  for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, precision);
  runner_.forward(block);
}

void Stream::final_norm() {
  for (int64_t i = 0; i < hidden_.samples(); ++i) {
    at::Tensor states = hidden_.load(i, hidden_.width());
    model_.final_norm(states);
    hidden_.store(i, states);
  }
}

at::Tensor Stream::embeddings(ThreadPool& pool) const {
  at::Tensor all = at::empty({sequences(), hidden_.width()}, at::kFloat);
  pool.parallel_for(sequences(), [&](int64_t s, int) {
    all[s].copy_(model::sentence_embedding(hidden_.load(s, hidden_.width()), model_.pooling()));
  });
  return all;
}

double drift(const Stream& model, const Stream& reference, ThreadPool& pool) {
  struct Squares {
    double difference = 0;
    double reference = 0;
  };
  std::vector<Squares> of_sequence(static_cast<size_t>(model.sequences()));
  pool.parallel_for(model.sequences(), [&](int64_t s, int) {
    const float* ours = model.states(s);
    const float* dense = reference.states(s);
    Squares sum;
    for (int64_t i = 0; i < model.values_of(s); ++i) {
      const double difference = double{dense[i]} - double{ours[i]};
      sum.difference += difference * difference;
      sum.reference += double{dense[i]} * double{dense[i]};
    }
    of_sequence[static_cast<size_t>(s)] = sum;
  });
  Squares sum;
  for (const Squares& sequence : of_sequence) {
    sum.difference += sequence.difference;
    sum.reference += sequence.reference;
  }
  return std::sqrt(sum.difference / sum.reference);
}

bool same_shape(const model::Model& a, const model::Model& b) {
  return a.size() == b.size() && a.architecture().hidden_size == b.architecture().hidden_size;
}

}  // namespace lcomp::eval
