#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lcomp/model/architecture.h"
#include "lcomp/model/block.h"

namespace lcomp::calib {

/// The values that a block computes with, as tensors that may take part in automatic differentiation. All are
/// of one floating-point type, which is that of the computation: float32, or float64 as a reference.
struct BlockValues {
  std::vector<at::Tensor> weights;          ///< `[out, in]`, in the order of the block's operators
  std::vector<at::Tensor> biases;           ///< `[out]`, undefined where an operator has none
  std::map<std::string, at::Tensor> norms;  ///< by full tensor name
  /// Factors of the attention heads' contexts `[heads]` and of the feed-forward channels `[intermediate]`;
  /// undefined means 1. Derivatives with respect to them say what a head or a channel is worth.
  at::Tensor head_mask;
  at::Tensor channel_mask;
  /// `[tokens, out]` per operator, added to its output: derivatives with respect to them are those by the
  /// outputs. Empty means 0.
  std::vector<at::Tensor> output_offsets;
  /// When set, `forward` leaves here what each operator reads, `[tokens, in]`, without its history.
  std::shared_ptr<std::vector<at::Tensor>> inputs;
};

/// The values of a loaded block, converted to `type`; no masks. Shares memory where no conversion is needed.
BlockValues values_of(const model::Block& block, at::ScalarType type);

/// x * rsqrt(mean(x^2) + eps) * weight over the last dimension.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

/// One transformer block as ordinary tensor operations: the same function as `model::Block::forward`, which
/// is several times faster but cannot be differentiated. For training and for gradients of a loss.
///
/// Attention goes through tiles of queries that skip the keys a tile cannot see, so a sample of T tokens
/// keeps about heads T^2 / 2 probabilities for its backward pass and no T x T matrix. Safe to call from
/// several threads at once.
class DifferentiableBlock {
 public:
  DifferentiableBlock(const model::Architecture& architecture, int64_t index);
  ~DifferentiableBlock();
  DifferentiableBlock(DifferentiableBlock&&) noexcept;

  /// hidden `[tokens, hidden_size]` of one sequence -> the block's output of the same shape and type.
  at::Tensor forward(const BlockValues& values, const at::Tensor& hidden) const;

 private:
  struct Angles;

  at::Tensor attention(const BlockValues& values, const at::Tensor& input) const;
  at::Tensor project(const BlockValues& values, model::OperatorRole role, const at::Tensor& input) const;
  at::Tensor heads_of(const BlockValues& values, model::OperatorRole role, const char* norm,
                      const at::Tensor& input) const;
  at::Tensor rotated(const at::Tensor& heads) const;
  at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;
  at::Tensor feed_forward(const BlockValues& values, const at::Tensor& input) const;
  at::Tensor normalized(const BlockValues& values, const std::string& name, const at::Tensor& x) const;
  const at::Tensor& norm(const BlockValues& values, const std::string& suffix) const;

  const model::Architecture* architecture_;
  int64_t index_;
  std::unique_ptr<Angles> angles_;
};

}  // namespace lcomp::calib
