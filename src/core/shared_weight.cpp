#include "lcomp/core/shared_weight.h"

#include <ATen/ATen.h>

#include <cstring>

#include "lcomp/core/error.h"

namespace lcomp {

SharedWeight::SharedWeight(std::string owner, WeightPtr weight, SharedBy by)
    : owner_(std::move(owner)), weight_(std::move(weight)), by_(by) {
  if (owner_.empty()) throw InvalidArgument("SharedWeight", "the owner must be named; the name is empty");
}

void SharedWeight::save(TensorSink& sink, const std::string& name) const {
  at::Tensor text = at::empty({static_cast<int64_t>(owner_.size())}, at::kByte);
  std::memcpy(text.data_ptr<uint8_t>(), owner_.data(), owner_.size());
  sink.add(name + ".weight_shared_with", text);
}

}  // namespace lcomp
