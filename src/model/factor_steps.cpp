#include "model/factor_steps.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "model/kernels.h"

namespace lcomp::model {
namespace {

/// Of the multiply-adds of the matrix, up to which a weight is faster without it.
double largest_share(const Weight& weight, linalg::Precision precision) {
  constexpr double kPair = 0.9, kPivoted = 0.85, kApplied = 0.2, kAppliedBesideBf16 = 0.08;
  if (const auto* product = dynamic_cast<const ProductWeight*>(&weight)) {
    const auto is_pivoted = [](const WeightPtr& factor) {
      return dynamic_cast<const lowrank::IdentityRowsWeight*>(factor.get()) != nullptr;
    };
    const std::vector<WeightPtr>& factors = product->factors();
    return std::any_of(factors.begin(), factors.end(), is_pivoted) ? kPivoted : kPair;
  }
  return precision == linalg::Precision::kBf16 ? kAppliedBesideBf16 : kApplied;
}

FactorStep pivoted_step(const lowrank::IdentityRowsWeight& pivoted, linalg::Precision precision) {
  FactorStep step;
  step.matrix = pivoted.rest().get();
  step.is_applied = runs_by_itself(*step.matrix, precision);
  const at::Tensor& places = pivoted.places();
  for (int64_t j = 0; j < places.numel(); ++j) {
    const int64_t from = places.data_ptr<int64_t>()[j];
    if (from < pivoted.in_features()) {
      step.kept.push_back(from);
      step.kept_at.push_back(j);
    } else {
      step.made_at.push_back(j);  // places count the other rows in their order
    }
  }
  return step;
}

FactorStep step_of(const Weight& weight, linalg::Precision precision) {
  if (const auto* pivoted = dynamic_cast<const lowrank::IdentityRowsWeight*>(&weight))
    return pivoted_step(*pivoted, precision);
  FactorStep step;
  const auto* shared = dynamic_cast<const SharedWeight*>(&weight);
  step.matrix = shared != nullptr ? shared->weight().get() : &weight;
  step.is_shared = shared != nullptr;
  step.is_applied = runs_by_itself(*step.matrix, precision);
  return step;
}

}  // namespace

int64_t FactorStep::out_features() const {
  return is_pivoted() ? static_cast<int64_t>(kept.size() + made_at.size()) : matrix->out_features();
}

void FactorStep::put(const at::Tensor& input, const at::Tensor& product, const OutputRows& y) const {
  const int64_t tokens = input.size(0), read = input.size(1), made = product.size(1);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = input.data_ptr<float>() + t * read;
    const float* made_here = product.data_ptr<float>() + t * made;
    float* row = y.data + t * y.stride;
    if (is_pivoted()) {
      const auto put_at = [&](float* to, float value) { *to = y.accumulate ? *to + value : value; };
      for (size_t i = 0; i < kept.size(); ++i) put_at(row + kept_at[i], x[kept[i]]);
      for (size_t i = 0; i < made_at.size(); ++i) put_at(row + made_at[i], made_here[i]);
    } else if (y.accumulate) {
      kernels::add(made_here, made, row);
    } else {
      std::copy_n(made_here, made, row);
    }
  }
}

at::Tensor FactorStep::output(const at::Tensor& input, const at::Tensor& product) const {
  if (!is_pivoted()) return product;
  at::Tensor out = at::empty({input.size(0), out_features()}, at::kFloat);
  put(input, product, {out.data_ptr<float>(), out.size(1), false});
  return out;
}

bool runs_by_itself(const Weight& weight, linalg::Precision precision) {
  if (weight.quantizes_input()) return true;
  const auto all = static_cast<double>(weight.out_features() * weight.in_features());
  return static_cast<double>(weight.macs_per_token()) <= largest_share(weight, precision) * all;
}

std::vector<FactorStep> factor_steps(const Weight& weight, linalg::Precision precision) {
  std::vector<FactorStep> steps;
  if (!runs_by_itself(weight, precision)) {
    steps.emplace_back().matrix = &weight;
  } else if (const auto* product = dynamic_cast<const ProductWeight*>(&weight)) {
    for (size_t i = product->factors().size(); i > 0; --i)
      steps.push_back(step_of(*product->factors()[i - 1], precision));
  }
  return steps;
}

}  // namespace lcomp::model
