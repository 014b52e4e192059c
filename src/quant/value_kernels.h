#pragma once

#include <cstdint>

#include "lcomp/quant/number_format.h"
#include "quant/panel_kernels.h"

/// The inner loops of panel_kernels.h for the number formats that are not integers: w^ = v(code) scale.
namespace lcomp::quant::kernels {

/// codes[r] = that of the value nearest to values[r] / scale[r] (E4M3 saturates), decoded = value times
/// scale.
void encode_values(NumberFormat format, const double* values, const double* scale, int8_t* codes,
                   double* decoded);

/// error[r] = sum over the columns of |w^ - w|^exponent, or of importance[j] (w^ - w)^2 unless that is null.
void row_value_error(NumberFormat format, const double* columns, const double* importance, int64_t count,
                     const double* scale, double exponent, double* error);

}  // namespace lcomp::quant::kernels
