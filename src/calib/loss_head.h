#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"

namespace lcomp::calib {

/// What a gradient sweep differentiates, and where its backward half begins.
class LossHead {
 public:
  virtual ~LossHead() = default;

  /// states[i] `[tokens_i, hidden]`, what the last block gives for sample `first_sample + i` of the ids
  /// ids[i], becomes the derivative of scale times the sample's loss by it; the losses are added to `loss` in
  /// the order given.
  virtual void replace_by_gradient(std::vector<at::Tensor>& states,
                                   const std::vector<const std::vector<int64_t>*>& ids, int64_t first_sample,
                                   double scale, double& loss) = 0;
};

/// That of the language model, or, for encoders, that of the embeddings, whose probes are drawn from `seed`.
std::unique_ptr<LossHead> make_loss_head(const model::Model& model, uint64_t seed,
                                         linalg::Precision precision, ThreadPool& pool);

/// The probe r_s of a sample's embedding: `hidden` standard normal numbers, float32, the same in every run.
at::Tensor embedding_probe(uint64_t seed, int64_t sample, int64_t hidden);

/// The loss of sample s is <r_s, e_s>: e_s the embedding of the sentence (`model::sentence_embedding`), r_s
/// `embedding_probe`. Its gradient is J_s^T r_s, with the embedding's Jacobian J_s; the mean of (J_s^T r_s)^2
/// over r_s is the diagonal of J_s^T J_s, the Gauss-Newton matrix of half the squared error of the embedding
/// and the Fisher information of a unit Gaussian around it (Martens, "New insights and perspectives on the
/// natural gradient method", 2020, sections 8 and 9).
class EmbeddingHead : public LossHead {
 public:
  EmbeddingHead(model::Pooling pooling, uint64_t seed, ThreadPool& pool)
      : pooling_(pooling), seed_(seed), pool_(pool) {}

  void replace_by_gradient(std::vector<at::Tensor>& states,
                           const std::vector<const std::vector<int64_t>*>& ids, int64_t first_sample,
                           double scale, double& loss) override;

 private:
  model::Pooling pooling_;
  uint64_t seed_;
  ThreadPool& pool_;
};

/// The language-model loss of a sample is the sum over its predicted tokens of -log p(ids[t + 1] | ids[..t]).
///
/// The vocabulary passes in tiles, once: with z the logits of a tile, m their running maximum and
/// W its rows of the head, sum_v exp(z_v - m) and sum_v exp(z_v - m) W_v are carried along and rescaled when
/// m grows (online softmax), so that no logits of more than a tile and a chunk of tokens exist.
class LanguageModelHead : public LossHead {
 public:
  LanguageModelHead(const model::Model& model, linalg::Precision precision, ThreadPool& pool);

  void replace_by_gradient(std::vector<at::Tensor>& states,
                           const std::vector<const std::vector<int64_t>*>& ids, int64_t first_sample,
                           double scale, double& loss) override;

 private:
  /// Up to a kernel's chunk of consecutive predicting positions of one sample.
  struct Chunk {
    size_t sample = 0;
    int64_t begin = 0;
    int64_t count = 0;
  };
  struct Sums;

  void add_tile(int64_t first_id, int64_t count, const std::vector<Chunk>& chunks,
                const std::vector<at::Tensor>& normalized,
                const std::vector<const std::vector<int64_t>*>& ids, std::vector<Sums>& sums);
  void finish(const std::vector<const std::vector<int64_t>*>& ids, double scale, std::vector<Sums>& sums,
              double& loss);

  const model::Model& model_;
  linalg::Precision precision_;
  ThreadPool& pool_;
  at::Tensor norm_;
  std::vector<linalg::Scratch> scratch_;  // per thread
};

}  // namespace lcomp::calib
