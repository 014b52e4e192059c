#include "quant/panel.h"

#include <ATen/ATen.h>
#include <cblas.h>

#include <algorithm>
#include <limits>

#include "quant/range.h"

namespace lcomp::quant {

void load_panel(const at::Tensor& weight, int64_t first_row, const std::vector<int64_t>& order,
                double* panel) {
  const int64_t rows = std::min(kPanelRows, weight.size(0) - first_row), in = weight.size(1);
  const at::Tensor block = weight.narrow(0, first_row, rows).to(at::kDouble).contiguous();
  const double* from = block.data_ptr<double>();
  for (int64_t j = 0; j < in; ++j) {
    const double* column = from + (order.empty() ? j : order[static_cast<size_t>(j)]);
    double* to = panel + j * kPanelRows;
    for (int64_t r = 0; r < rows; ++r) to[r] = column[r * in];
    std::fill(to + rows, to + kPanelRows, 0.0);
  }
}

void store_codes(const std::vector<int8_t>& panel, int64_t first_row, const std::vector<int64_t>& order,
                 at::Tensor& codes) {
  const int64_t rows = std::min(kPanelRows, codes.size(0) - first_row), in = codes.size(1);
  int8_t* to = codes.data_ptr<int8_t>() + first_row * in;
  for (int64_t j = 0; j < in; ++j) {
    const int8_t* column = panel.data() + j * kPanelRows;
    int8_t* target = to + (order.empty() ? j : order[static_cast<size_t>(j)]);
    for (int64_t r = 0; r < rows; ++r) target[r * in] = column[r];
  }
}

PanelGrid::PanelGrid(const QuantScheme& scheme, at::ScalarType scale_type, int64_t groups)
    : scheme_(scheme),
      scale_type_(scale_type),
      groups_(groups),
      scale_(static_cast<size_t>(groups * kPanelRows), 1.0),
      zero_(static_cast<size_t>(groups * kPanelRows), 0.0) {}

namespace {

/// error[r] = d H d^T of row r of a panel of differences d.
void quadratic_error(const std::vector<double>& d, int64_t count, const Importance& h, double* error) {
  const int rows = static_cast<int>(kPanelRows), n = static_cast<int>(count);
  std::vector<double> product(d.size());
  // The panel is column-major, and H symmetric.
  cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, n, n, 1.0, d.data(), rows, h.matrix,
              static_cast<int>(h.stride), 0.0, product.data(), rows);
  std::fill(error, error + kPanelRows, 0.0);
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const auto at = static_cast<size_t>(j * kPanelRows + r);
      error[r] += d[at] * product[at];
    }
  }
}

}  // namespace

void grid_error(const QuantScheme& scheme, const double* columns, int64_t count, const double* scale,
                const double* zero, const Importance& importance, double* error) {
  const bool integers = scheme.format == NumberFormat::kInt;
  const double lowest = scheme.lowest_code(), highest = scheme.highest_code();
  if (importance.matrix != nullptr) {
    std::vector<double> d(static_cast<size_t>(count * kPanelRows));
    int8_t codes[kPanelRows];
    for (int64_t j = 0; j < count; ++j) {
      double* decoded = d.data() + j * kPanelRows;
      encode_on(scheme, columns + j * kPanelRows, scale, zero, codes, decoded);
      for (int64_t r = 0; r < kPanelRows; ++r) decoded[r] -= columns[j * kPanelRows + r];
    }
    quadratic_error(d, count, importance, error);
  } else if (!integers) {
    kernels::row_value_error(scheme.format, columns, importance.diagonal, count, scale, scheme.mse_exponent,
                             error);
  } else if (importance.diagonal != nullptr) {
    kernels::row_weighted_error(columns, importance.diagonal, count, scale, zero, lowest, highest, error);
  } else {
    kernels::row_error(columns, count, scale, zero, lowest, highest, scheme.mse_exponent, error);
  }
}

void PanelGrid::fit(int64_t group, const double* columns, int64_t count, const Importance& importance) {
  double lowest[kPanelRows], highest[kPanelRows];
  kernels::row_range(columns, count, lowest, highest);
  double* scale = scale_.data() + group * kPanelRows;
  double* zero = zero_.data() + group * kPanelRows;
  GroupRange ranges[kPanelRows];
  for (int64_t r = 0; r < kPanelRows; ++r) {
    ranges[r] = convention_range(scheme_, lowest[r], highest[r]);
    grid_point(scheme_, scale_type_, ranges[r], 1.0, scale[r], zero[r]);
  }
  if (scheme_.range == RangeRule::kMinMax) return;
  const Importance weights = scheme_.range == RangeRule::kHessian ? importance : Importance{};

  double tried_scale[kPanelRows], tried_zero[kPanelRows], error[kPanelRows], least[kPanelRows];
  std::fill(least, least + kPanelRows, std::numeric_limits<double>::infinity());
  for_each_tried_range(scheme_, [&](double factor) {
    for (int64_t r = 0; r < kPanelRows; ++r) {
      grid_point(scheme_, scale_type_, ranges[r], factor, tried_scale[r], tried_zero[r]);
    }
    grid_error(scheme_, columns, count, tried_scale, tried_zero, weights, error);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      if (!(error[r] < least[r])) continue;
      least[r] = error[r];
      scale[r] = tried_scale[r];
      zero[r] = tried_zero[r];
    }
  });
}

void PanelGrid::load(const Grid& grid, int64_t first_row) {
  const at::Tensor scale = grid.scale.to(at::kDouble).contiguous();
  const at::Tensor zero =
      grid.zero.defined() ? grid.zero.to(at::kDouble).contiguous() : at::zeros_like(scale);
  const int64_t last_row = scale.size(0) - 1;  // one row serves all when the scale is per tensor
  const int64_t rows_left = last_row == 0 ? kPanelRows : std::min(kPanelRows, last_row + 1 - first_row);
  for (int64_t group = 0; group < groups_; ++group) {
    for (int64_t r = 0; r < rows_left; ++r) {
      const int64_t from = std::min(first_row + r, last_row) * groups_ + group;
      scale_[static_cast<size_t>(group * kPanelRows + r)] = scale.data_ptr<double>()[from];
      zero_[static_cast<size_t>(group * kPanelRows + r)] = zero.data_ptr<double>()[from];
    }
  }
}

void PanelGrid::store(int64_t first_row, Grid& grid) const {
  const int64_t rows = std::min(kPanelRows, grid.scale.size(0) - first_row);
  const auto options = at::TensorOptions(at::kDouble);
  const auto rows_of = [&](const std::vector<double>& values) {
    return at::from_blob(const_cast<double*>(values.data()), {groups_, kPanelRows}, options)
        .t()
        .narrow(0, 0, rows);
  };
  grid.scale.narrow(0, first_row, rows).copy_(rows_of(scale_));
  if (grid.zero.defined()) grid.zero.narrow(0, first_row, rows).copy_(rows_of(zero_));
}

}  // namespace lcomp::quant
