#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/core/threads.h"
#include "lcomp/sparse/formats.h"

/// Products straight from the stored elements.
namespace lcomp::sparse {

/// The most tokens for which `sparse_product` is worth it; for more the matrix is decoded first.
int64_t direct_tokens(SparseFormat format);

/// x [tokens, in] -> x W^T [tokens, out], float32. Pieces of fixed rows are shared out over the pool, so that
/// the result does not depend on the number of threads.
at::Tensor sparse_product(const SparseTensors& stored, SparseFormat format, const at::Tensor& x,
                          ThreadPool* pool = nullptr);

}  // namespace lcomp::sparse
