#pragma once

#include <ATen/core/Tensor.h>

#include "lcomp/core/threads.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::quant {

/// Round to nearest: every element goes to the nearest point of the grid that its group's range asks for
/// (`fit_grid`). Needs no data; the baseline of every other method, good from 8 bits down to about 5.
///
/// weight: [out, in], any floating-point type; not changed. Cost O(out in).
/// importance: of the inputs, for range kHessian, as in `fit_grid`.
/// The result is the same at any number of threads. Throws as `fit_grid` does, with "[rtn] ...".
QuantizedWeight rtn(const at::Tensor& weight, const QuantScheme& scheme, ThreadPool* pool = nullptr,
                    const at::Tensor& importance = {});

}  // namespace lcomp::quant
