#include "lcomp/core/weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "core/one_thread.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp {

at::Tensor Weight::apply(const at::Tensor& x) const {
  return one_thread_product(x, dense().t());
}

at::Tensor Weight::rows(const at::Tensor& ids) const {
  return dense().index_select(0, ids);
}

DenseWeight::DenseWeight(at::Tensor weight) : weight_(std::move(weight)) {
  if (weight_.dim() != 2 || !weight_.is_floating_point()) {
    throw InvalidArgument(
        "DenseWeight",
        fmt::format("weight must be a floating-point matrix [out, in]; received {} dimensions of {}",
                    weight_.dim(), dtype_name(weight_.scalar_type())));
  }
}

int64_t DenseWeight::out_features() const {
  return weight_.size(0);
}
int64_t DenseWeight::in_features() const {
  return weight_.size(1);
}
at::Tensor DenseWeight::dense() const {
  return weight_.to(at::kFloat);
}
at::Tensor DenseWeight::rows(const at::Tensor& ids) const {
  return weight_.index_select(0, ids).to(at::kFloat);
}
int64_t DenseWeight::bytes() const {
  return weight_.numel() * weight_.element_size();
}

std::string DenseWeight::describe() const {
  return "dense " + dtype_name(weight_.scalar_type());
}

void DenseWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight", weight_);
}

}  // namespace lcomp
