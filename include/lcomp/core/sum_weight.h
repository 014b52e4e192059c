#pragma once

#include <vector>

#include "lcomp/core/weight.h"

namespace lcomp {

/// The sum of several weights of one shape: sparse and more sparse, quantized and low rank. Saved as
/// `<name>.weight_parts` (int64 [1]: their number) and each part under `<name>.weight_part<i>`.
class SumWeight final : public Weight {
 public:
  /// At least two parts of one shape, none of which rounds its input; throws InvalidArgument otherwise.
  explicit SumWeight(std::vector<WeightPtr> parts);

  int64_t out_features() const override { return parts_.front()->out_features(); }
  int64_t in_features() const override { return parts_.front()->in_features(); }
  at::Tensor dense() const override;
  at::Tensor apply(const at::Tensor& x) const override;
  at::Tensor rows(const at::Tensor& ids) const override;
  int64_t parameters() const override;
  int64_t macs_per_token() const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const std::vector<WeightPtr>& parts() const { return parts_; }
  /// Where part i of the operator `name` is saved.
  static std::string part_name(const std::string& name, size_t i);

 private:
  std::vector<WeightPtr> parts_;
};

}  // namespace lcomp
