#include "lcomp/core/sum_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/error.h"

namespace lcomp {
namespace {

constexpr int64_t kCountBytes = 8;

}  // namespace

SumWeight::SumWeight(std::vector<WeightPtr> parts) : parts_(std::move(parts)) {
  if (parts_.size() < 2)
    throw InvalidArgument("SumWeight",
                          fmt::format("at least two parts must be given; there are {}", parts_.size()));
  for (const WeightPtr& part : parts_) {
    if (part->out_features() != out_features() || part->in_features() != in_features()) {
      throw InvalidArgument("SumWeight",
                            fmt::format("all parts must be [{}, {}]; one is [{}, {}]", out_features(),
                                        in_features(), part->out_features(), part->in_features()));
    }
    if (part->quantizes_input()) throw InvalidArgument("SumWeight", "no part may round its input; one does");
  }
}

at::Tensor SumWeight::dense() const {
  at::Tensor sum = parts_.front()->dense().clone();
  for (size_t i = 1; i < parts_.size(); ++i) sum.add_(parts_[i]->dense());
  return sum;
}

at::Tensor SumWeight::apply(const at::Tensor& x) const {
  at::Tensor sum = parts_.front()->apply(x);
  for (size_t i = 1; i < parts_.size(); ++i) sum = sum + parts_[i]->apply(x);
  return sum;
}

at::Tensor SumWeight::rows(const at::Tensor& ids) const {
  at::Tensor sum = parts_.front()->rows(ids);
  for (size_t i = 1; i < parts_.size(); ++i) sum = sum + parts_[i]->rows(ids);
  return sum;
}

int64_t SumWeight::parameters() const {
  int64_t sum = 0;
  for (const WeightPtr& part : parts_) sum += part->parameters();
  return sum;
}

int64_t SumWeight::macs_per_token() const {
  int64_t sum = 0;
  for (const WeightPtr& part : parts_) sum += part->macs_per_token();
  return sum;
}

int64_t SumWeight::bytes() const {
  int64_t sum = kCountBytes;
  for (const WeightPtr& part : parts_) sum += part->bytes();
  return sum;
}

std::string SumWeight::describe() const {
  std::string text = parts_.front()->describe();
  for (size_t i = 1; i < parts_.size(); ++i) text += " + " + parts_[i]->describe();
  return text;
}

void SumWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_parts",
           at::tensor(std::vector<int64_t>{static_cast<int64_t>(parts_.size())}, at::kLong));
  for (size_t i = 0; i < parts_.size(); ++i) parts_[i]->save(sink, part_name(name, i));
}

std::string SumWeight::part_name(const std::string& name, size_t i) {
  return fmt::format("{}.weight_part{}", name, i);
}

}  // namespace lcomp
