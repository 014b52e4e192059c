#include "model/factor_steps.h"

#include <ATen/ATen.h>

#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"

namespace lcomp::model {
namespace {

FactorStep step_of(const Weight& weight) {
  if (const auto* pivoted = dynamic_cast<const lowrank::IdentityRowsWeight*>(&weight))
    return {pivoted->rest().get(), pivoted->places(), {}};
  if (const auto* shared = dynamic_cast<const SharedWeight*>(&weight))
    return {shared->weight().get(), {}, shared->owner()};
  return {&weight, {}, {}};
}

}  // namespace

at::Tensor FactorStep::output(const at::Tensor& input, const at::Tensor& product) const {
  if (!places.defined()) return product;
  const int64_t tokens = input.size(0), kept = input.size(1), made = product.size(1), out = places.numel();
  at::Tensor both = at::empty({tokens, out}, at::kFloat);
  const int64_t* from = places.data_ptr<int64_t>();
  for (int64_t t = 0; t < tokens; ++t) {
    const float* x = input.data_ptr<float>() + t * kept;
    const float* made_here = product.data_ptr<float>() + t * made - kept;
    float* y = both.data_ptr<float>() + t * out;
    for (int64_t j = 0; j < out; ++j) y[j] = (from[j] < kept ? x : made_here)[from[j]];
  }
  return both;
}

bool runs_by_itself(const Weight& weight) {
  return weight.quantizes_input() || weight.macs_per_token() < weight.out_features() * weight.in_features();
}

std::vector<FactorStep> factor_steps(const Weight& weight) {
  if (!runs_by_itself(weight)) return {{&weight, {}, {}}};
  const auto* product = dynamic_cast<const ProductWeight*>(&weight);
  if (product == nullptr) return {};
  std::vector<FactorStep> steps;
  const std::vector<WeightPtr>& factors = product->factors();
  for (size_t i = factors.size(); i > 0; --i) {
    steps.push_back(step_of(*factors[i - 1]));
    if (runs_by_itself(*steps.back().matrix)) return {};
  }
  return steps;
}

}  // namespace lcomp::model
