#include "lcomp/quant/rtn.h"

#include "lcomp/quant/grid.h"

namespace lcomp::quant {

QuantizedWeight rtn(const at::Tensor& weight, const QuantScheme& scheme, ThreadPool* pool,
                    const at::Tensor& importance) {
  const Grid grid = fit_grid(weight, scheme, "rtn", pool, importance);
  return {scheme, quantize(weight, grid, scheme, pool), grid};
}

}  // namespace lcomp::quant
