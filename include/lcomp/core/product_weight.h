#pragma once

#include <vector>

#include "lcomp/core/weight.h"

namespace lcomp {

/// The product of several weights, W = F_0 F_1 ... F_k: two factors of low rank, or a basis, a core and
/// another basis. Each factor may be of any kind, such as codes of 4 bits. Saved as `<name>.weight_factors`
/// (int64 [1]: their number) and each factor under `<name>.weight_factor<i>`.
class ProductWeight final : public Weight {
 public:
  /// At least two factors, each [r_i, r_i+1], none of which rounds its input; throws InvalidArgument
  /// otherwise.
  explicit ProductWeight(std::vector<WeightPtr> factors);

  int64_t out_features() const override { return factors_.front()->out_features(); }
  int64_t in_features() const override { return factors_.back()->in_features(); }
  at::Tensor dense() const override;
  /// From the last factor to the first; the matrix is never formed.
  at::Tensor apply(const at::Tensor& x) const override;
  at::Tensor rows(const at::Tensor& ids) const override;
  int64_t bytes() const override;
  int64_t parameters() const override;
  int64_t macs_per_token() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const std::vector<WeightPtr>& factors() const { return factors_; }
  /// Where factor i of the operator `name` is saved.
  static std::string factor_name(const std::string& name, size_t i);

 private:
  std::vector<WeightPtr> factors_;
};

}  // namespace lcomp
