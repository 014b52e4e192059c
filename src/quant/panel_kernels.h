#pragma once

#include <cstdint>

namespace lcomp::quant {

/// Rows of a panel: the unit of work of the methods that go column by column. A panel holds `kPanelRows` rows
/// of a weight matrix in float64, column after column (element (r, j) at j kPanelRows + r), so that every
/// operation on a column runs over contiguous rows. Panels always have this many rows, zeros in the unused
/// ones: a row's arithmetic then never depends on how many rows it shares a panel or a matrix with. 96 is a
/// multiple of every vector length and GEMM tile in use, and divides the usual widths (576, 1536, 3072 ...).
inline constexpr int64_t kPanelRows = 96;

/// The vectorised inner loops, chosen for the processor at run time.
/// `columns` points at `count` consecutive columns of a panel; the other arrays have `kPanelRows` elements.
namespace kernels {

/// Smallest and largest element of every row.
void row_range(const double* columns, int64_t count, double* lowest, double* highest);

/// error[r] = sum over the columns of |w^ - w|^exponent, w^ being w on the grid (scale[r], zero[r]).
void row_error(const double* columns, int64_t count, const double* scale, const double* zero,
               double lowest_code, double highest_code, double exponent, double* error);

/// error[r] = sum over the columns of weight[j] (w^ - w)^2.
void row_weighted_error(const double* columns, const double* weight, int64_t count, const double* scale,
                        const double* zero, double lowest_code, double highest_code, double* error);

/// codes = clamp(round(values / scale) + zero), decoded = (codes - zero) scale; halves round to even.
void encode_column(const double* values, const double* scale, const double* zero, double lowest_code,
                   double highest_code, int8_t* codes, double* decoded);

/// values -= sum_k u[k stride] columns[k], k ascending.
void subtract_products(const double* columns, int64_t count, const double* u, int64_t stride, double* values);

/// values <- e = (values - decoded) / divisor; row_loss += e^2.
void scaled_error(const double* decoded, double divisor, double* values, double* row_loss);

}  // namespace kernels
}  // namespace lcomp::quant
