#pragma once

#include <ATen/core/Tensor.h>

#include "lcomp/core/weight.h"

namespace lcomp::lowrank {

/// A matrix `[out, in]` of which some rows are those of the identity: row pivots[i] is the i-th unit vector,
/// or none where pivots[i] is -1. The other rows, in their order, are a weight of any kind. What the first
/// factor of a pivoted product is; where operators share the other factor, each has some of the unit vectors.
/// Saved as `<name>.weight_pivots` (int32 [in]) and the other rows under `<name>.weight_rest`.
class IdentityRowsWeight final : public Weight {
 public:
  /// pivots: integers [in], -1, or different from each other and in [0, out); rest: the other rows, at least
  /// one, which does not round its input. Throws InvalidArgument otherwise.
  IdentityRowsWeight(const at::Tensor& pivots, WeightPtr rest);

  int64_t out_features() const override { return places_.numel(); }
  int64_t in_features() const override { return rest_->in_features(); }
  at::Tensor dense() const override;
  at::Tensor apply(const at::Tensor& x) const override;
  int64_t parameters() const override { return rest_->parameters(); }
  int64_t macs_per_token() const override { return rest_->macs_per_token(); }
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  /// Where each row is in (the unit vectors, rest): int64 [out].
  const at::Tensor& places() const { return places_; }
  const WeightPtr& rest() const { return rest_; }
  static std::string rest_name(const std::string& name) { return name + ".weight_rest"; }

 private:
  at::Tensor pivots_;  // int32 [in]
  at::Tensor places_;
  WeightPtr rest_;
};

}  // namespace lcomp::lowrank
