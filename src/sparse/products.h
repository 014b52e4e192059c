#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/sparse/formats.h"

/// Products straight from the stored elements.
namespace lcomp::sparse {

/// The most tokens for which `sparse_product` is worth it; for more the matrix is decoded first.
int64_t direct_tokens(SparseFormat format);

/// x [tokens, in] -> x W^T [tokens, out], float32. Single-threaded.
at::Tensor sparse_product(const SparseTensors& stored, SparseFormat format, const at::Tensor& x);

}  // namespace lcomp::sparse
