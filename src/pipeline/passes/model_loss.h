#pragma once

#include "lcomp/calib/input_stats.h"
#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"

namespace lcomp::pipeline {

/// By what the loss of an operator is compared with that of others.
enum class Sensitivity {
  kModelLoss,  ///< by what its outputs mean to the model's loss: squared gradients, from a sweep of their own
  kOutputs,    ///< by |Y - Y^|^2 / |Y|^2 of its outputs: no gradients, but blind to which operators matter
};

/// What a survey must know to estimate losses so.
calib::Needs needs_of(Sensitivity sensitivity);

/// Errors d of row o of a matrix count s_o (d M d^T) (`quant::losses_by_bits`).
struct LossWeights {
  at::Tensor moment;       ///< M, [in, in]
  at::Tensor row_weights;  ///< s, [out]
};

/// For the operator at position `k` of a group.
LossWeights loss_weights(Sensitivity sensitivity, const at::Tensor& weight, const calib::InputStats& stats,
                         size_t k, ThreadPool* pool);

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::Sensitivity> {
  static constexpr std::array<std::string_view, 2> names = {"model_loss", "outputs"};
};
}  // namespace lcomp
