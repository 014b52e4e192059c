#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/core/weight.h"
#include "lcomp/lowrank/morphemes.h"

namespace lcomp::lowrank {

enum class EmbeddingMethod {
  kLowRank,      ///< two factors (`low_rank`, rows weighed by how often they are looked up)
  kTensorTrain,  ///< a train over digits of the token's number (`tt_matrix`)
  kWord2KetXs,   ///< a sum of Kronecker products (`fit_word2ketxs`)
  kMorphTe,      ///< rows composed of the vectors of morphemes (`fit_morphte`)
};

struct EmbeddingOptions {
  EmbeddingMethod method = EmbeddingMethod::kLowRank;
  double ratio = 10;
  int64_t order = 0;
  int64_t exceptions = 0;
  double frequency_power = 0.5;
  int64_t sweeps = 20;
  std::string segments;

  void visit(FieldVisitor& v);
  /// counts: whether tokens are counted in a text.
  std::vector<IdleSetting> idle(bool counts) const;

  /// `order`, or where that is 0, what measures best (docs/lowrank.md).
  int64_t settled_order() const;
};

/// A table [vocabulary, dim] in fewer numbers.
struct EmbeddingFit {
  WeightPtr weight;
  double relative_error = 0;  ///< ||E - E^|| / ||E||, all rows alike, as stored
};

/// How many numbers `fit_embedding` will store for a table of this shape, before there is one. Throws
/// InvalidArgument as it would: for an order or exceptions that cannot be, or a ratio that leaves room for
/// nothing. counted: whether there are counts of tokens. morphemes: for kMorphTe.
int64_t embedding_numbers(const EmbeddingOptions& options, int64_t vocabulary, int64_t dim, bool counted,
                          const MorphemeIndex* morphemes);

/// Bytes that `fit_embedding` works in for a table [vocabulary, dim], about.
int64_t embedding_fit_bytes(const EmbeddingOptions& options, int64_t vocabulary, int64_t dim);

/// Fits a table to at most 1 / ratio of its numbers. counts: int64 [vocabulary], how often each token was
/// seen, or undefined; rows weigh (count + 1)^frequency_power (a train has no weights). To the
/// `exceptions` most frequent rows the difference is added, rounded to `type` (`RowPatchWeight`); its
/// elements count among the numbers. morphemes: of every token, for kMorphTe; its index counts among the
/// numbers, as the paper counts. Stored in `type`. Throws InvalidArgument when the ratio leaves room for
/// nothing, else as the fits do.
EmbeddingFit fit_embedding(const at::Tensor& table, const EmbeddingOptions& options, const at::Tensor& counts,
                           const MorphemeIndex* morphemes, at::ScalarType type, uint64_t seed = 0,
                           ThreadPool* pool = nullptr, Observer* observer = nullptr);

}  // namespace lcomp::lowrank

namespace lcomp {
template <>
struct EnumNames<lowrank::EmbeddingMethod> {
  static constexpr std::array<std::string_view, 4> names = {"low_rank", "tensor_train", "word2ketxs",
                                                            "morphte"};
};
}  // namespace lcomp
