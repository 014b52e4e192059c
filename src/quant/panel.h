#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/quant/grid.h"
#include "lcomp/quant/scheme.h"
#include "quant/panel_kernels.h"
#include "quant/value_kernels.h"

namespace lcomp::quant {

/// A grid for `weight` with nothing in it yet.
Grid empty_grid(const at::Tensor& weight, const QuantScheme& scheme);

/// Number of panels that hold `rows` rows.
inline int64_t panel_count(int64_t rows) {
  return (rows + kPanelRows - 1) / kPanelRows;
}

/// Rows [first_row, first_row + kPanelRows) of `weight` as a panel: column j of the panel is column order[j]
/// of the weight (or j when `order` is empty). `panel` holds in x kPanelRows elements.
void load_panel(const at::Tensor& weight, int64_t first_row, const std::vector<int64_t>& order,
                double* panel);

/// The inverse for codes: panel column j goes to column order[j] of `codes`, an int8 matrix [out, in].
void store_codes(const std::vector<int8_t>& panel, int64_t first_row, const std::vector<int64_t>& order,
                 at::Tensor& codes);

/// What range kHessian weighs the columns of a group with; both point at the group's part.
struct Importance {
  const double* diagonal = nullptr;  ///< one per column
  const double* matrix = nullptr;    ///< or row-major [columns, columns] with rows of `stride` elements
  int64_t stride = 0;
};

/// What the range rule minimises over `count` columns of a panel, for one scale and zero point per row.
void grid_error(const QuantScheme& scheme, const double* columns, int64_t count, const double* scale,
                const double* zero, const Importance& importance, double* error);

/// Codes and decoded values of one column on the grid (scale[r], zero[r]).
inline void encode_on(const QuantScheme& scheme, const double* values, const double* scale,
                      const double* zero, int8_t* codes, double* decoded) {
  if (scheme.format == NumberFormat::kInt) {
    kernels::encode_column(values, scale, zero, scheme.lowest_code(), scheme.highest_code(), codes, decoded);
  } else {
    kernels::encode_values(scheme.format, values, scale, codes, decoded);
  }
}

/// The code of 0 on a grid that has it; `zero` is the zero point.
inline int8_t zero_code(const QuantScheme& scheme, double zero) {
  constexpr int8_t kNf4Zero = 7;
  return scheme.format == NumberFormat::kNf4 ? kNf4Zero : static_cast<int8_t>(zero);
}

/// Scales and zero points of the rows of one panel, group after group.
class PanelGrid {
 public:
  /// `scale_type` is the storage type that scales are rounded to.
  PanelGrid(const QuantScheme& scheme, at::ScalarType scale_type, int64_t groups);

  /// Fits every row of `group` on `count` columns of a panel. `importance` is for range kHessian.
  void fit(int64_t group, const double* columns, int64_t count, const Importance& importance = {});

  /// Copies rows [first_row, first_row + kPanelRows) of a grid that exists.
  void load(const Grid& grid, int64_t first_row);
  /// Writes the rows to a grid [out, groups].
  void store(int64_t first_row, Grid& grid) const;

  void encode(int64_t group, const double* values, int8_t* codes, double* decoded) const {
    encode_on(scheme_, values, scale(group), zero(group), codes, decoded);
  }

  const QuantScheme& scheme() const { return scheme_; }
  double* scale(int64_t group) { return scale_.data() + group * kPanelRows; }
  const double* scale(int64_t group) const { return scale_.data() + group * kPanelRows; }
  const double* zero(int64_t group) const { return zero_.data() + group * kPanelRows; }

 private:
  QuantScheme scheme_;
  at::ScalarType scale_type_;
  int64_t groups_;
  std::vector<double> scale_;
  std::vector<double> zero_;
};

}  // namespace lcomp::quant
