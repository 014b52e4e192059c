#pragma once

#include <ATen/core/Tensor.h>

#include "lcomp/core/threads.h"

namespace lcomp::lowrank {

/// Runs `work` with one OpenBLAS thread, whoever calls: the sums of a product depend on the number of
/// threads.
template <class Work>
void on_one_blas_thread(Work work) {
  parallel_for(nullptr, 1, [&](int64_t, int) { work(); });
}

/// a b, on one thread.
inline at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  at::Tensor result;
  on_one_blas_thread([&] { result = a.mm(b); });
  return result;
}

}  // namespace lcomp::lowrank
