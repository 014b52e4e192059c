#include "pipeline/passes/model_loss.h"

#include <ATen/ATen.h>

#include "lcomp/core/weight_error.h"

namespace lcomp::pipeline {
namespace {

/// Squared gradients of an operator's outputs over those of all outputs of its group.
at::Tensor shares(const at::Tensor& of_operator, const std::vector<at::Tensor>& of_group) {
  double sum = 0;
  for (const at::Tensor& squares : of_group) {
    if (squares.defined()) sum += squares.sum(at::kDouble).item<double>();
  }
  return of_operator.to(at::kDouble) / (sum > 0 ? sum : 1.0);
}

/// 1 / |Y|^2 for every row: losses become shares of the operator's outputs.
at::Tensor relative_weights(const at::Tensor& weight, const at::Tensor& second_moment, ThreadPool* pool) {
  const double energy = activation_energy(weight.to(at::kDouble), second_moment, pool);
  return at::full({weight.size(0)}, energy > 0 ? 1 / energy : 0.0, at::kDouble);
}

}  // namespace

calib::Needs needs_of(Sensitivity sensitivity) {
  return {.second_moment = true, .gradient_moments = sensitivity == Sensitivity::kModelLoss};
}

LossWeights loss_weights(Sensitivity sensitivity, const at::Tensor& weight, const calib::InputStats& stats,
                         size_t k, ThreadPool* pool) {
  if (sensitivity == Sensitivity::kModelLoss)
    return {stats.gradient_moment, shares(stats.output_gradients[k], stats.output_gradients)};
  return {stats.second_moment, relative_weights(weight, stats.second_moment, pool)};
}

}  // namespace lcomp::pipeline
