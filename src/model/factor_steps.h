#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "lcomp/core/weight.h"

namespace lcomp::model {

/// A product with a plain matrix on the way through an operator.
struct FactorStep {
  const Weight* matrix = nullptr;
  /// Of a pivoted factor (`lowrank::IdentityRowsWeight`): where each output is in (input, product).
  at::Tensor places;

  /// What the step makes of its input and the product, both [tokens, .].
  at::Tensor output(const at::Tensor& input, const at::Tensor& product) const;
};

/// Whether a weight must not (`Weight::quantizes_input`), or need not, be laid out as one matrix.
bool runs_by_itself(const Weight& weight);

/// The steps of an operator, the last factor first; the weight as one matrix where that is how it is run.
/// Empty where only `Weight::apply` can run it. The steps refer to parts of `weight`.
std::vector<FactorStep> factor_steps(const Weight& weight);

}  // namespace lcomp::model
