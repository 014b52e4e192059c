#pragma once

#include <cstdint>
#include <vector>

#include "lcomp/quant/gptq.h"

namespace lcomp::quant {

/// The order of the columns for a diagonal of H; empty for the plain order. Sorts are stable.
std::vector<int64_t> gptq_order(const std::vector<double>& diagonal, ActOrder act_order,
                                int64_t columns_per_group);

}  // namespace lcomp::quant
