#include "lcomp/core/product_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/one_thread.h"
#include "lcomp/core/error.h"

namespace lcomp {
namespace {

constexpr int64_t kCountBytes = 8;

}  // namespace

ProductWeight::ProductWeight(std::vector<WeightPtr> factors) : factors_(std::move(factors)) {
  if (factors_.size() < 2) {
    throw InvalidArgument("ProductWeight",
                          fmt::format("at least two factors must be given; there are {}", factors_.size()));
  }
  for (size_t i = 0; i < factors_.size(); ++i) {
    if (factors_[i]->quantizes_input())
      throw InvalidArgument("ProductWeight", "no factor may round its input; one does");
    if (i == 0 || factors_[i]->out_features() == factors_[i - 1]->in_features()) continue;
    throw InvalidArgument("ProductWeight",
                          fmt::format("factor {} must have as many rows as the one before has columns, {}; "
                                      "it has {}",
                                      i, factors_[i - 1]->in_features(), factors_[i]->out_features()));
  }
}

at::Tensor ProductWeight::dense() const {
  at::Tensor product = factors_.back()->dense();
  for (size_t i = factors_.size() - 1; i > 0; --i)
    product = one_thread_product(factors_[i - 1]->dense(), product);
  return product;
}

at::Tensor ProductWeight::apply(const at::Tensor& x) const {
  at::Tensor y = x;
  for (size_t i = factors_.size(); i > 0; --i) y = factors_[i - 1]->apply(y);
  return y;
}

at::Tensor ProductWeight::rows(const at::Tensor& ids) const {
  at::Tensor found = factors_.front()->rows(ids);
  for (size_t i = 1; i < factors_.size(); ++i) found = one_thread_product(found, factors_[i]->dense());
  return found;
}

int64_t ProductWeight::parameters() const {
  int64_t sum = 0;
  for (const WeightPtr& factor : factors_) sum += factor->parameters();
  return sum;
}

int64_t ProductWeight::macs_per_token() const {
  int64_t sum = 0;
  for (const WeightPtr& factor : factors_) sum += factor->macs_per_token();
  return sum;
}

int64_t ProductWeight::bytes() const {
  int64_t sum = kCountBytes;
  for (const WeightPtr& factor : factors_) sum += factor->bytes();
  return sum;
}

std::string ProductWeight::describe() const {
  std::string text = fmt::format("rank {}", factors_.front()->in_features());
  for (size_t i = 0; i < factors_.size(); ++i) text += (i == 0 ? ": " : " x ") + factors_[i]->describe();
  return text;
}

void ProductWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_factors",
           at::tensor(std::vector<int64_t>{static_cast<int64_t>(factors_.size())}, at::kLong));
  for (size_t i = 0; i < factors_.size(); ++i) factors_[i]->save(sink, factor_name(name, i));
}

std::string ProductWeight::factor_name(const std::string& name, size_t i) {
  return fmt::format("{}.weight_factor{}", name, i);
}

}  // namespace lcomp
