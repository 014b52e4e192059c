#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "lcomp/core/weight.h"
#include "lcomp/quant/nested_scales.h"
#include "lcomp/quant/quantized_weight.h"

/// NF4 weights as bitsandbytes stores them: the matrix row after row, cut into blocks that share a scale (the
/// largest magnitude), two codes to a byte.
namespace lcomp::quant {

/// The tensors and the facts of one stored weight.
struct Nf4Tensors {
  int64_t out = 0;
  int64_t in = 0;
  int64_t block_size = 64;
  at::Tensor packed;    ///< uint8, ceil(out in / 2) of them: the first code of a pair in the upper four bits
  at::Tensor absmax;    ///< float32, one per block; undefined when they are nested
  NestedScales nested;  ///< codes flat, one per block
};

/// A `QuantizedWeight` where no block reaches from one row into the next, else the decoded matrix as a
/// `DenseWeight`. Throws CorruptFile naming the tensor `<name>.weight...` that disagrees.
WeightPtr from_nf4(const Nf4Tensors& tensors, const std::string& name);

/// `<name>.weight` [ceil(out in / 2), 1], `.weight.absmax`, `.weight.quant_map` (the 16 values) and
/// `.weight.quant_state.bitsandbytes__nf4` (a JSON text, padded with spaces to 256 bytes so that its length
/// does not depend on the numbers in it); under double quantization `.weight.absmax` holds codes, and
/// `.weight.nested_absmax`, `.weight.nested_quant_map` come with it.
void save_nf4(const QuantizedWeight& weight, TensorSink& sink, const std::string& name);

/// The exact size of what `save_nf4` stores for a matrix [out, in].
int64_t nf4_bytes(const QuantScheme& scheme, int64_t out, int64_t in);

}  // namespace lcomp::quant
