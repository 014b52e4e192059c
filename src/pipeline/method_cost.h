#pragma once

#include <string>

#include "lcomp/model/architecture.h"

namespace lcomp::pipeline {

/// What solving one operator takes, for estimates before a run: fitted to runs of the method with its default
/// settings.
struct MethodCost {
  /// Per weight, in products of float32: work that is no product is counted by what the processor would do
  /// of these meanwhile.
  double flops_per_weight = 40'000;
  /// For each out * in^2 of an operator and in^3 of a group: its factorisations and triangular products.
  double cubic = 3;
  /// Memory beyond that of a factorisation, for each element of the largest second moment, and of the largest
  /// operator.
  double moment_bytes = 0;
  double weight_bytes = 0;
};

MethodCost cost_of(const std::string& method);

/// Operations of a method of that cost on all operators of the model.
double solver_flops(const MethodCost& cost, const model::Architecture& architecture);

}  // namespace lcomp::pipeline
