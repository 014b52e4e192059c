#pragma once

#include <string>

#include "lcomp/core/weight.h"

namespace lcomp {

/// What those who share a weight have in common.
enum class SharedBy {
  kInput,  ///< they read one input, as q, k and v do: models multiply by it once for all
  kModel,  ///< nothing but the weight: each multiplies by it
};

/// A weight that is stored once, as a part of another operator: the factor that q, k and v have in common, or
/// a basis of all blocks. Saved as `<name>.weight_shared_with` (uint8: the name under which the weight itself
/// is saved). It counts with its owner: it has no parameters.
class SharedWeight final : public Weight {
 public:
  /// owner: "model.layers.0.self_attn.q_proj.weight_factor1". Throws InvalidArgument when it is empty.
  SharedWeight(std::string owner, WeightPtr weight, SharedBy by = SharedBy::kInput);

  int64_t out_features() const override { return weight_->out_features(); }
  int64_t in_features() const override { return weight_->in_features(); }
  at::Tensor dense() const override { return weight_->dense(); }
  at::Tensor apply(const at::Tensor& x) const override { return weight_->apply(x); }
  at::Tensor rows(const at::Tensor& ids) const override { return weight_->rows(ids); }
  bool quantizes_input() const override { return weight_->quantizes_input(); }
  int64_t parameters() const override { return 0; }
  int64_t macs_per_token() const override { return by_ == SharedBy::kInput ? 0 : weight_->macs_per_token(); }
  int64_t bytes() const override { return static_cast<int64_t>(owner_.size()); }
  std::string describe() const override { return "shared " + weight_->describe(); }
  void save(TensorSink& sink, const std::string& name) const override;

  const std::string& owner() const { return owner_; }
  const WeightPtr& weight() const { return weight_; }

 private:
  std::string owner_;
  WeightPtr weight_;
  SharedBy by_;
};

}  // namespace lcomp
