#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "lcomp/core/weight.h"
#include "lcomp/linalg/gemm.h"

namespace lcomp::model {

/// Where outputs go: rows of float32, `stride` apart; added to what is there with `accumulate`.
struct OutputRows {
  float* data = nullptr;
  int64_t stride = 0;
  bool accumulate = false;
};

/// A product on the way through an operator.
struct FactorStep {
  const Weight* matrix = nullptr;
  bool is_applied = false;  ///< by `Weight::apply`; else it is a plain matrix
  bool is_shared = false;   ///< it may be the factor of other operators too
  /// Of a pivoted factor (`lowrank::IdentityRowsWeight`): inputs that are outputs, with the output that each
  /// is, and the output that each result of the product is.
  std::vector<int64_t> kept, kept_at, made_at;

  bool is_pivoted() const { return !made_at.empty(); }
  int64_t out_features() const;
  /// Puts what the step makes of its input and the product, both [tokens, .], into `y`.
  void put(const at::Tensor& input, const at::Tensor& product, const OutputRows& y) const;
  /// The same as a tensor [tokens, out].
  at::Tensor output(const at::Tensor& input, const at::Tensor& product) const;
};

/// Whether a weight must not be laid out as one matrix (`Weight::quantizes_input`), or is faster without:
/// where it takes few enough of the matrix's multiply-adds. How few follows from measurements and is the same
/// on all machines, so that results are (docs/lowrank.md, "Which form runs").
bool runs_by_itself(const Weight& weight, linalg::Precision precision);

/// The steps of an operator, the last factor first; the weight as one matrix where that is how it is run.
/// Empty where only `Weight::apply` runs it. The steps refer to parts of `weight`.
std::vector<FactorStep> factor_steps(const Weight& weight, linalg::Precision precision);

}  // namespace lcomp::model
