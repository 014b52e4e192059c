#include "lcomp/quant/refine.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "quant/panel_refiner.h"

namespace lcomp::quant {
namespace {

void check_arguments(const at::Tensor& target, const at::Tensor& h, const std::vector<double>& added,
                     const QuantizedWeight& start, const at::Tensor& kept) {
  const int64_t out = start.out_features(), in = start.in_features();
  if (target.sizes() != at::IntArrayRef{out, in} || !target.is_floating_point()) {
    throw InvalidArgument(
        "refine", fmt::format("the target must be [{}, {}] of a floating-point type; received [{}] of {}",
                              out, in, fmt::join(target.sizes(), ", "), dtype_name(target.scalar_type())));
  }
  if (h.sizes() != at::IntArrayRef{in, in} ||
      (h.scalar_type() != at::kFloat && h.scalar_type() != at::kDouble)) {
    throw InvalidArgument(
        "refine", fmt::format("the second moment must be [{}, {}] of float32 or float64; received [{}] of {}",
                              in, in, fmt::join(h.sizes(), ", "), dtype_name(h.scalar_type())));
  }
  if (start.scheme().format != NumberFormat::kInt) {
    throw InvalidArgument("refine", fmt::format("the weight must be of integers; its format is {}",
                                                name_of(start.scheme().format)));
  }
  if (kept.defined() && (kept.scalar_type() != at::kBool || kept.sizes() != at::IntArrayRef{out, in})) {
    throw InvalidArgument("refine",
                          fmt::format("the mask must be bool [{}, {}]; received [{}] of {}", out, in,
                                      fmt::join(kept.sizes(), ", "), dtype_name(kept.scalar_type())));
  }
  if (!added.empty() && static_cast<int64_t>(added.size()) != in) {
    throw InvalidArgument("refine",
                          fmt::format("what is added to the diagonal must have {} elements, or none; "
                                      "received {}",
                                      in, added.size()));
  }
}

/// Columns in the order of their groups: empty when they stand in it already.
std::vector<int64_t> order_of_groups(const at::Tensor& group_index) {
  if (!group_index.defined()) return {};
  const at::Tensor index = group_index.to(at::kLong).contiguous();
  const int64_t* group = index.data_ptr<int64_t>();
  std::vector<int64_t> order(static_cast<size_t>(index.numel()));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return group[a] < group[b]; });
  return order;
}

}  // namespace

RefineResult refine(const at::Tensor& target, const at::Tensor& second_moment,
                    const std::vector<double>& added, const QuantizedWeight& start,
                    const RefineOptions& options, ThreadPool* pool, const at::Tensor& kept) {
  check_arguments(target, second_moment, added, start, kept);
  // OpenBLAS must run with one thread, which a pool sees to.
  ThreadPool alone(1);
  if (pool == nullptr) pool = &alone;

  const int64_t out = target.size(0);
  const DampedMoment moment(second_moment, added, order_of_groups(start.group_index()));
  const Grid before{start.scale(), start.zero()};
  Grid grid{start.scale().clone(), start.zero()};
  at::Tensor codes = at::empty_like(start.codes());
  std::vector<RowLosses> rows(static_cast<size_t>(out));
  pool->parallel_for(panel_count(out), [&](int64_t index, int) {
    const int64_t first_row = index * kPanelRows;
    PanelRefiner panel(moment, start.scheme(), start.scale().scalar_type());
    panel.load(target, start.codes(), before, kept, first_row);
    panel.begin(options.refit);
    for (int64_t sweep = 0; sweep < options.sweeps; ++sweep) panel.sweep(options.refit);
    if (options.refit && options.sweeps > 0) panel.refit();
    panel.store(first_row, codes, grid);
    for (int64_t r = 0; r < std::min(kPanelRows, out - first_row); ++r)
      rows[static_cast<size_t>(first_row + r)] = panel.losses(r);
  });

  RefineResult result{{start.scheme(), codes, grid.scale, grid.zero, start.group_index()}};
  for (const RowLosses& row : rows) {
    result.start_loss += row.start;
    result.damped_loss += row.damped;
    result.loss += row.plain;
  }
  // Where H hardly reaches, the difference of two nearly equal numbers may come out below zero.
  result.loss = std::max(result.loss, 0.0);
  return result;
}

}  // namespace lcomp::quant
