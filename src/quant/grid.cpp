#include "lcomp/quant/grid.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "quant/panel.h"
#include "quant/range.h"

namespace lcomp::quant {

Grid empty_grid(const at::Tensor& weight, const QuantScheme& scheme) {
  const std::vector<int64_t> shape = {scheme.scale_rows(weight.size(0)), scheme.groups(weight.size(1))};
  Grid grid;
  grid.format = scheme.format;
  grid.scale = at::empty(shape, at::TensorOptions(scheme.scale_type(weight.scalar_type())));
  if (!scheme.symmetric) grid.zero = at::empty(shape, at::kChar);
  return grid;
}

namespace {

/// Refuses an importance that range kHessian cannot use; float64 and contiguous otherwise.
at::Tensor checked_importance(const at::Tensor& importance, const QuantScheme& scheme, int64_t in,
                              std::string_view where) {
  if (scheme.range != RangeRule::kHessian) return {};
  const bool per_tensor = scheme.granularity == Granularity::kTensor;
  const bool fits = importance.defined() && importance.is_floating_point() &&
                    (importance.sizes() == at::IntArrayRef{in} ||
                     (importance.sizes() == at::IntArrayRef{in, in} && !per_tensor));
  if (fits) return importance.to(at::kDouble).contiguous();
  throw InvalidArgument(
      std::string(where),
      fmt::format("range hessian must have an importance [{}]{}; received {}", in,
                  per_tensor ? "" : fmt::format(" or [{}, {}]", in, in),
                  importance.defined() ? fmt::format("[{}] of {}", fmt::join(importance.sizes(), ", "),
                                                     dtype_name(importance.scalar_type()))
                                       : std::string("none")));
}

/// The part of columns [first, ...) of an importance that was checked.
Importance part_of(const at::Tensor& importance, int64_t first) {
  if (!importance.defined()) return {};
  const double* data = importance.data_ptr<double>();
  if (importance.dim() == 1) return {.diagonal = data + first};
  const int64_t in = importance.size(1);
  return {.matrix = data + first * in + first, .stride = in};
}

/// What the range rule minimises over the matrix when one (scale, zero) serves all of it; rows in order.
double tensor_error(const at::Tensor& weight, const QuantScheme& scheme, double scale, double zero,
                    const at::Tensor& importance, std::vector<double>& panel) {
  const std::vector<double> scales(kPanelRows, scale), zeros(kPanelRows, zero);
  double error[kPanelRows], total = 0;
  for (int64_t first = 0; first < weight.size(0); first += kPanelRows) {
    load_panel(weight, first, {}, panel.data());
    const Importance weights{.diagonal = importance.defined() ? importance.data_ptr<double>() : nullptr};
    grid_error(scheme, panel.data(), weight.size(1), scales.data(), zeros.data(), weights, error);
    const int64_t rows = std::min(kPanelRows, weight.size(0) - first);
    for (int64_t r = 0; r < rows; ++r) total += error[r];
  }
  return total;
}

/// Rounds the scales to what a reader makes of their stored form.
Grid with_stored_scales(Grid grid, const QuantScheme& scheme) {
  if (!scheme.double_quant) return grid;
  grid.nested = nest_scales(grid.scale);
  grid.scale = unnest_scales(grid.nested);
  return grid;
}

/// One scale for the whole matrix.
Grid fit_tensor(const at::Tensor& weight, const QuantScheme& scheme, const at::Tensor& importance) {
  Grid grid = empty_grid(weight, scheme);
  const at::ScalarType type = grid.scale.scalar_type();
  const GroupRange range = convention_range(scheme, weight.min().to(at::kDouble).item<double>(),
                                            weight.max().to(at::kDouble).item<double>());
  double scale = 0, zero = 0;
  grid_point(scheme, type, range, 1.0, scale, zero);
  if (scheme.range != RangeRule::kMinMax) {
    std::vector<double> panel(static_cast<size_t>(weight.size(1) * kPanelRows));
    double least = std::numeric_limits<double>::infinity();
    for_each_tried_range(scheme, [&](double factor) {
      double tried_scale = 0, tried_zero = 0;
      grid_point(scheme, type, range, factor, tried_scale, tried_zero);
      const double error = tensor_error(weight, scheme, tried_scale, tried_zero, importance, panel);
      if (!(error < least)) return;
      least = error;
      scale = tried_scale;
      zero = tried_zero;
    });
  }
  grid.scale.fill_(scale);
  if (grid.zero.defined()) grid.zero.fill_(zero);
  return grid;
}

}  // namespace

void check_finite(const at::Tensor& weight, std::string_view where) {
  // A sum meets every element and is finite only if they all are (or overflows, which the slow way settles).
  if (std::isfinite(weight.sum(at::kDouble).item<double>())) return;
  const at::Tensor bad = at::isfinite(weight).logical_not();
  if (!bad.any().item<bool>()) return;
  const int64_t index = bad.flatten().to(at::kByte).argmax().item<int64_t>(), in = weight.size(1);
  throw InvalidArgument(
      std::string(where),
      fmt::format("the weight must be finite; received {} at [{}, {}]",
                  weight[index / in][index % in].to(at::kDouble).item<double>(), index / in, index % in));
}

Grid fit_grid(const at::Tensor& weight, const QuantScheme& scheme, std::string_view where, ThreadPool* pool,
              const at::Tensor& importance) {
  scheme.validate(weight.sizes(), where);
  if (!weight.is_floating_point()) {
    throw InvalidArgument(std::string(where),
                          fmt::format("the weight must be of a floating-point type; received {}",
                                      dtype_name(weight.scalar_type())));
  }
  check_finite(weight, where);
  const at::Tensor weights = checked_importance(importance, scheme, weight.size(1), where);
  if (scheme.granularity == Granularity::kTensor)
    return with_stored_scales(fit_tensor(weight, scheme, weights), scheme);

  Grid grid = empty_grid(weight, scheme);
  const int64_t in = weight.size(1), groups = scheme.groups(in), width = scheme.columns_per_group(in);
  parallel_for(pool, panel_count(weight.size(0)), [&](int64_t index, int) {
    std::vector<double> panel(static_cast<size_t>(in * kPanelRows));
    load_panel(weight, index * kPanelRows, {}, panel.data());
    PanelGrid fitted(scheme, grid.scale.scalar_type(), groups);
    for (int64_t g = 0; g < groups; ++g) {
      fitted.fit(g, panel.data() + g * width * kPanelRows, width, part_of(weights, g * width));
    }
    fitted.store(index * kPanelRows, grid);
  });
  return with_stored_scales(std::move(grid), scheme);
}

at::Tensor quantize(const at::Tensor& weight, const Grid& grid, const QuantScheme& scheme, ThreadPool* pool) {
  at::Tensor codes = at::empty(weight.sizes(), at::kChar);
  const int64_t in = weight.size(1), width = scheme.columns_per_group(in);
  parallel_for(pool, panel_count(weight.size(0)), [&](int64_t index, int) {
    std::vector<double> panel(static_cast<size_t>(in * kPanelRows)), decoded(kPanelRows);
    std::vector<int8_t> panel_codes(static_cast<size_t>(in * kPanelRows));
    load_panel(weight, index * kPanelRows, {}, panel.data());
    PanelGrid rows(scheme, grid.scale.scalar_type(), scheme.groups(in));
    rows.load(grid, index * kPanelRows);
    for (int64_t j = 0; j < in; ++j) {
      rows.encode(j / width, panel.data() + j * kPanelRows, panel_codes.data() + j * kPanelRows,
                  decoded.data());
    }
    store_codes(panel_codes, index * kPanelRows, {}, codes);
  });
  return codes;
}

at::Tensor dequantize(const at::Tensor& codes, const Grid& grid) {
  const int64_t out = codes.size(0), in = codes.size(1), groups = grid.scale.size(1);
  at::Tensor q = code_values(codes, grid.format, at::kDouble).reshape({out, groups, in / groups});
  if (grid.zero.defined()) q.sub_(grid.zero.to(at::kDouble).unsqueeze(2));
  return q.mul_(grid.scale.to(at::kDouble).unsqueeze(2)).reshape({out, in});
}

}  // namespace lcomp::quant
