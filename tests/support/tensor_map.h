#pragma once

#include <ATen/ATen.h>

#include <map>
#include <string>

#include "lcomp/core/weight.h"

namespace lcomp::test {

/// Keeps what a weight saves.
struct TensorMap final : TensorSink {
  std::map<std::string, at::Tensor> all;
  void add(const std::string& name, const at::Tensor& tensor) override { all[name] = tensor; }
  void add_float8_e4m3(const std::string& name, const at::Tensor& bytes) override { all[name] = bytes; }
};

}  // namespace lcomp::test
