#pragma once

#include <ATen/ATen.h>

#include "lcomp/core/threads.h"

namespace lcomp {

/// Runs `work` with one OpenBLAS thread, whoever calls: the sums of a product depend on how many it has.
template <class Work>
void on_one_blas_thread(Work work) {
  parallel_for(nullptr, 1, [&](int64_t, int) { work(); });
}

/// a b, the same wherever it is computed.
inline at::Tensor one_thread_product(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor result;
  on_one_blas_thread([&] { result = at::matmul(a, b); });
  return result;
}

}  // namespace lcomp
