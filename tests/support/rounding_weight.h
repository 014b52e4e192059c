#pragma once

#include <ATen/ATen.h>

#include <memory>

#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/rtn.h"
#include "support/matrices.h"

namespace lcomp::test {

/// A random matrix [out, in] of 8 bits that rounds its inputs.
inline WeightPtr rounding_weight(int64_t out, int64_t in) {
  const at::Tensor matrix = normal_matrix(out, in, "rounding").to(at::kFloat);
  return std::make_shared<quant::QuantizedInputWeight>(
      quant::rtn(matrix, {.bits = 8, .granularity = quant::Granularity::kChannel}),
      quant::ActivationScheme());
}

}  // namespace lcomp::test
