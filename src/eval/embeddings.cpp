#include "lcomp/eval/embeddings.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "eval/stream.h"
#include "lcomp/core/error.h"

namespace lcomp::eval {
namespace {

/// Of each value its place in ascending order; equal values share the mean of their places.
std::vector<double> ranks_of(std::span<const double> values) {
  std::vector<uint32_t> order(values.size());
  std::iota(order.begin(), order.end(), 0U);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return values[a] < values[b]; });
  std::vector<double> ranks(values.size());
  for (size_t begin = 0; begin < order.size();) {
    size_t end = begin + 1;
    while (end < order.size() && values[order[end]] == values[order[begin]]) ++end;
    for (size_t i = begin; i < end; ++i) ranks[order[i]] = static_cast<double>(begin + end - 1) / 2;
    begin = end;
  }
  return ranks;
}

/// Cosines of rows i < j, in the order of (i, j).
std::vector<double> similarities(const at::Tensor& embeddings) {
  const at::Tensor exact = embeddings.to(at::kDouble);
  const at::Tensor all = at::matmul(exact, exact.t());
  const int64_t count = exact.size(0);
  std::vector<double> out;
  out.reserve(static_cast<size_t>(count * (count - 1) / 2));
  for (int64_t i = 0; i < count; ++i) {
    const double* row = all.data_ptr<double>() + i * count;
    out.insert(out.end(), row + i + 1, row + count);
  }
  return out;
}

}  // namespace

std::optional<double> rank_correlation(std::span<const double> a, std::span<const double> b) {
  if (a.size() != b.size()) {
    throw InvalidArgument(
        "rank_correlation",
        fmt::format("both must be of one length; they have {} and {} values", a.size(), b.size()));
  }
  const std::vector<double> of_a = ranks_of(a), of_b = ranks_of(b);
  const double mean = (static_cast<double>(a.size()) - 1) / 2;
  double product = 0, squares_a = 0, squares_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    product += (of_a[i] - mean) * (of_b[i] - mean);
    squares_a += (of_a[i] - mean) * (of_a[i] - mean);
    squares_b += (of_b[i] - mean) * (of_b[i] - mean);
  }
  if (squares_a == 0 || squares_b == 0) return std::nullopt;
  return product / std::sqrt(squares_a * squares_b);
}

EmbeddingScores compare_embeddings(const at::Tensor& embeddings, const at::Tensor& dense) {
  if (embeddings.sizes() != dense.sizes()) {
    throw InvalidArgument("compare_embeddings", fmt::format("both must be of one shape; they are {} and {}",
                                                            embeddings.sizes(), dense.sizes()));
  }
  const at::Tensor cosines = (embeddings.to(at::kDouble) * dense.to(at::kDouble)).sum(1);
  const std::vector<double> ours = similarities(embeddings), theirs = similarities(dense);
  EmbeddingScores scores;
  scores.cosine_mean = cosines.mean().item<double>();
  scores.cosine_min = cosines.min().item<double>();
  scores.pairs = static_cast<int64_t>(ours.size());
  scores.rank_correlation = rank_correlation(ours, theirs);
  if (!std::isfinite(scores.cosine_mean)) {
    throw NumericalError(
        "compare_embeddings",
        fmt::format("embeddings must be finite; their mean cosine is {}", scores.cosine_mean));
  }
  return scores;
}

at::Tensor embed_sentences(const model::Model& model, const std::vector<std::vector<int64_t>>& sentences,
                           linalg::Precision precision, ThreadPool& pool) {
  Stream stream(model, sentences, pool);
  for (int64_t i = 0; i < model.size(); ++i) stream.pass_block(i, precision);
  return stream.embeddings(pool);
}

}  // namespace lcomp::eval
