#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/model.h"

namespace lcomp::eval {

/// How the sentence embeddings of an encoder compare with those of the dense model.
struct EmbeddingScores {
  double cosine_mean = 0;  ///< over the sentences: cosine of the two models' embeddings of it
  double cosine_min = 0;
  int64_t pairs = 0;  ///< of sentences
  /// Spearman's rank correlation, over all pairs of sentences, of the two models' cosine similarities: what
  /// is left of the order in which a search would rank. Undefined when all similarities of a model are equal.
  std::optional<double> rank_correlation;
};

/// Rows are embeddings of length 1, `[sentences, hidden]`, of the model and of the dense one. Sums in double.
/// Throws InvalidArgument for two shapes and NumericalError when embeddings are not finite.
EmbeddingScores compare_embeddings(const at::Tensor& embeddings, const at::Tensor& dense);

/// Embeddings of sentences that are given as token ids, special tokens included, float32 `[sentences,
/// hidden]` with rows of length 1. The model is streamed: one block is in memory at a time.
at::Tensor embed_sentences(const model::Model& model, const std::vector<std::vector<int64_t>>& sentences,
                           linalg::Precision precision, ThreadPool& pool);

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs. Nothing when
/// one of the two has no two different values. Both of one length (InvalidArgument).
std::optional<double> rank_correlation(std::span<const double> a, std::span<const double> b);

}  // namespace lcomp::eval
