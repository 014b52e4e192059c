#include "calib/loss_head.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "lcomp/calib/differentiable_block.h"
#include "lcomp/core/rng.h"

namespace lcomp::calib {
namespace {

constexpr int64_t kVocabularyTile = 2048;
constexpr int64_t kChunk = linalg::PackedMatrix::kRowChunk;
enum Slot : size_t { kLogits = linalg::kFirstFreeSlot };

at::Tensor final_norm_of(const model::Model& model) {
  const model::Architecture& a = model.architecture();
  return model.read_finite(a.norm_tensors(a.names.prefix + a.names.final_norm).front()).to(at::kFloat);
}

}  // namespace

std::unique_ptr<LossHead> make_loss_head(const model::Model& model, uint64_t seed,
                                         linalg::Precision precision, ThreadPool& pool) {
  if (model.architecture().is_language_model())
    return std::make_unique<LanguageModelHead>(model, precision, pool);
  return std::make_unique<EmbeddingHead>(model.pooling(), seed, pool);
}

at::Tensor embedding_probe(uint64_t seed, int64_t sample, int64_t hidden) {
  Rng rng(seed, fmt::format("embedding probe {}", sample));
  at::Tensor probe = at::empty({hidden}, at::kFloat);
  for (int64_t i = 0; i < hidden; ++i) probe.data_ptr<float>()[i] = static_cast<float>(rng.normal());
  return probe;
}

void EmbeddingHead::replace_by_gradient(std::vector<at::Tensor>& states,
                                        const std::vector<const std::vector<int64_t>*>&, int64_t first_sample,
                                        double scale, double& loss) {
  std::vector<double> losses(states.size());
  pool_.parallel_for(static_cast<int64_t>(states.size()), [&](int64_t i, int) {
    const at::AutoGradMode enabled(true);
    at::Tensor& own = states[static_cast<size_t>(i)];
    const at::Tensor leaf = own.clone().requires_grad_();
    const at::Tensor probe = embedding_probe(seed_, first_sample + i, own.size(1));
    const at::Tensor projection = at::dot(model::sentence_embedding(leaf, pooling_), probe);
    losses[static_cast<size_t>(i)] = projection.item<double>();
    own.copy_(torch::autograd::grad({projection}, {leaf})[0].mul_(scale));
  });
  for (const double of_sample : losses) loss += of_sample;
}

/// What one sample's tokens add up to over the tiles so far; the last token predicts nothing.
struct LanguageModelHead::Sums {
  explicit Sums(const at::Tensor& states)
      : largest(at::full({states.size(0) - 1, 1}, -std::numeric_limits<float>::infinity(), at::kFloat)),
        sum(at::zeros({states.size(0) - 1, 1}, at::kDouble)),
        target(at::zeros({states.size(0) - 1, 1}, at::kFloat)),
        gradient(at::zeros_like(states)) {}

  at::Tensor largest;   // [tokens - 1, 1]
  at::Tensor sum;       // of exp(z - largest), float64
  at::Tensor target;    // logit of the next token
  at::Tensor gradient;  // [tokens, hidden]: sum of exp(z - largest) W_v; the last row stays 0
};

LanguageModelHead::LanguageModelHead(const model::Model& model, linalg::Precision precision, ThreadPool& pool)
    : model_(model), precision_(precision), pool_(pool), norm_(final_norm_of(model)) {
  for (int t = 0; t < pool.size(); ++t) scratch_.emplace_back();
}

void LanguageModelHead::replace_by_gradient(std::vector<at::Tensor>& states,
                                            const std::vector<const std::vector<int64_t>*>& ids, int64_t,
                                            double scale, double& loss) {
  const double eps = model_.architecture().norm_eps;
  const auto count = static_cast<int64_t>(states.size());
  std::vector<Sums> sums;
  std::vector<Chunk> chunks;
  for (size_t i = 0; i < states.size(); ++i) {
    sums.emplace_back(states[i]);
    const int64_t predicting = states[i].size(0) - 1;
    for (int64_t begin = 0; begin < predicting; begin += kChunk)
      chunks.push_back({i, begin, std::min(kChunk, predicting - begin)});
  }
  std::vector<at::Tensor> leaves(states.size());
  std::vector<at::Tensor> normalized(states.size());
  pool_.parallel_for(count, [&](int64_t k, int) {
    const auto i = static_cast<size_t>(k);
    leaves[i] = states[i].clone().requires_grad_();
    normalized[i] = rms_norm(leaves[i], norm_, eps);
  });
  const int64_t vocabulary = model_.architecture().vocab_size;
  for (int64_t first = 0; first < vocabulary; first += kVocabularyTile)
    add_tile(first, std::min(kVocabularyTile, vocabulary - first), chunks, normalized, ids, sums);
  finish(ids, scale, sums, loss);
  pool_.parallel_for(count, [&](int64_t k, int) {
    const auto i = static_cast<size_t>(k);
    states[i].copy_(torch::autograd::grad({normalized[i]}, {leaves[i]}, {sums[i].gradient})[0]);
    normalized[i] = at::Tensor();
  });
}

void LanguageModelHead::add_tile(int64_t first_id, int64_t count, const std::vector<Chunk>& chunks,
                                 const std::vector<at::Tensor>& normalized,
                                 const std::vector<const std::vector<int64_t>*>& ids,
                                 std::vector<Sums>& sums) {
  const at::Tensor rows = model_.head_rows(first_id, count);
  const linalg::PackedMatrix head({rows}, precision_);
  const linalg::PackedMatrix back({rows.t().contiguous()}, precision_);
  pool_.parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t c, int worker) {
    const Chunk& chunk = chunks[static_cast<size_t>(c)];
    Sums& own = sums[chunk.sample];
    linalg::Scratch& scratch = scratch_[static_cast<size_t>(worker)];
    const int64_t end = chunk.begin + chunk.count;
    const int64_t width = rows.size(1);
    float* logits = scratch.floats(kLogits, kChunk * count);
    head.multiply(normalized[chunk.sample].data_ptr<float>() + chunk.begin * width, chunk.count, logits,
                  false, scratch);
    for (int64_t t = 0; t < chunk.count; ++t) {
      const int64_t next = (*ids[chunk.sample])[static_cast<size_t>(chunk.begin + t + 1)] - first_id;
      if (next >= 0 && next < count) own.target.data_ptr<float>()[chunk.begin + t] = logits[t * count + next];
    }
    at::Tensor z = at::from_blob(logits, {chunk.count, count}, at::kFloat);
    at::Tensor largest = own.largest.slice(0, chunk.begin, end);
    at::Tensor sum = own.sum.slice(0, chunk.begin, end);
    const at::Tensor grown = at::maximum(largest, z.amax(1, /*keepdim=*/true));
    const at::Tensor shrink = at::exp(largest - grown);
    largest.copy_(grown);
    z.sub_(grown).exp_();
    sum.mul_(shrink).add_(z.sum(1, /*keepdim=*/true, at::kDouble));
    own.gradient.slice(0, chunk.begin, end).mul_(shrink);
    back.multiply(logits, chunk.count, own.gradient.data_ptr<float>() + chunk.begin * width, true, scratch);
  });
}

/// From the sums over the vocabulary to d loss / d normalized = scale (sum_v p_v W_v - W_next).
void LanguageModelHead::finish(const std::vector<const std::vector<int64_t>*>& ids, double scale,
                               std::vector<Sums>& sums, double& loss) {
  for (size_t i = 0; i < sums.size(); ++i) {
    Sums& own = sums[i];
    const int64_t predicting = own.sum.size(0);
    for (int64_t t = 0; t < predicting; ++t) {
      loss += std::log(own.sum.data_ptr<double>()[t]) + own.largest.data_ptr<float>()[t] -
              own.target.data_ptr<float>()[t];
    }
    at::Tensor gradient = own.gradient.slice(0, 0, predicting);
    gradient.div_(own.sum.to(at::kFloat));
    for (int64_t t = 0; t < predicting; ++t)
      gradient[t].sub_(model_.head_rows((*ids[i])[static_cast<size_t>(t + 1)], 1)[0]);
    gradient.mul_(scale);
  }
}

}  // namespace lcomp::calib
