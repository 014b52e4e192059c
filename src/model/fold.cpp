#include "lcomp/model/fold.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/sparse/sparse_weight.h"

namespace lcomp::model {
namespace {

constexpr const char* kFoldInputScale = "fold_input_scale";

/// Position of the operator `name` in the block, or its number of operators when it is a norm.
size_t position_of(const Block& block, const std::string& name) {
  size_t op = 0;
  while (op < block.ops().size() && block.ops()[op].info.name != name) ++op;
  return op;
}

void check_scale(const Block& block, size_t group, const at::Tensor& scale, const at::Tensor& rows,
                 const at::Tensor& by_row) {
  const GroupInfo& info = block.groups()[group];
  const int64_t in = block.ops()[info.operators[0]].info.in_features;
  if (scale.dim() != 1 || scale.size(0) != in) {
    throw InvalidArgument(kFoldInputScale, fmt::format("the scale of '{}' must be [{}]; received {} values",
                                                       info.name, in, scale.numel()));
  }
  if (!at::isfinite(scale).all().item<bool>() || !(scale > 0).all().item<bool>()) {
    throw InvalidArgument(kFoldInputScale,
                          fmt::format("the scale of '{}' must be positive and finite; received {}", info.name,
                                      scale.min().item<double>()));
  }
  if (!by_row.index_select(0, rows).equal(scale)) {
    throw InvalidArgument(kFoldInputScale,
                          fmt::format("input channels of '{}' that come from one row of '{}' must have "
                                      "one scale; received different ones",
                                      info.name, info.absorber));
  }
}

/// The scale per value that dividing `values` and rounding to `type` really applies; `otherwise` where that
/// is no use. `values` becomes the rounded quotient.
at::Tensor applied_scale(at::Tensor& values, const at::Tensor& scale, at::ScalarType type,
                         const at::Tensor& otherwise) {
  const at::Tensor divided = (values / scale).to(type).to(at::kDouble);
  const at::Tensor quotient = values / divided;
  const at::Tensor good = at::logical_and(at::isfinite(quotient), quotient > 0);
  at::Tensor applied = at::where(good, quotient, otherwise);
  values = at::where(good, divided, (values / applied).to(type).to(at::kDouble));
  return applied;
}

/// Divides a norm; returns the scale per channel that was applied.
at::Tensor divide_norm(Block& block, const std::string& name, const at::Tensor& scale) {
  const std::string weight = name + ".weight";
  at::Tensor values = block.vector(weight).to(at::kDouble);
  at::Tensor applied = applied_scale(values, scale, block.stored_type(weight), at::ones_like(scale));
  block.set_vector(weight, values);
  return applied;
}

/// Divides the rows and the bias of an operator; returns the scale per row that was applied.
at::Tensor divide_rows(Block& block, size_t op, const at::Tensor& scale) {
  at::Tensor applied = scale;
  const std::string bias = block.ops()[op].info.name + ".bias";
  if (block.ops()[op].bias.defined()) {
    at::Tensor values = block.vector(bias).to(at::kDouble);
    applied = applied_scale(values, scale, block.stored_type(bias), scale);
    block.set_vector(bias, values);
  }
  const at::Tensor rows = block.ops()[op].weight->dense().to(at::kDouble) / applied.unsqueeze(1);
  block.replace(op, sparse::replaced_matrix(*block.ops()[op].weight, rows.to(at::kFloat)));
  return applied;
}

}  // namespace

at::Tensor absorber_rows(const Block& block, size_t group) {
  const GroupInfo& info = block.groups().at(group);
  if (info.absorber.empty()) return {};
  at::Tensor channels = at::arange(block.ops()[info.operators[0]].info.in_features, at::kLong);
  if (info.heads_per_source == 1) return channels;
  const at::Tensor head = channels.div(info.head_width * info.heads_per_source, "floor");
  return head * info.head_width + channels.remainder(info.head_width);
}

at::Tensor fold_input_scale(Block& block, size_t group, const at::Tensor& scale) {
  const at::Tensor rows = absorber_rows(block, group);
  const GroupInfo info = block.groups()[group];
  if (!rows.defined()) {
    throw InvalidArgument(
        kFoldInputScale,
        fmt::format("the group '{}' must have a norm or operator in front that can take a scale; it has none",
                    info.name));
  }
  at::Tensor by_row = at::ones({rows.max().item<int64_t>() + 1}, at::kDouble);
  const at::Tensor wanted = scale.to(at::kDouble).contiguous();
  if (wanted.sizes() == rows.sizes()) by_row.index_put_({rows}, wanted);
  check_scale(block, group, wanted, rows, by_row);

  const size_t producer = position_of(block, info.absorber);
  const at::Tensor applied_by_row = producer < block.ops().size() ? divide_rows(block, producer, by_row)
                                                                  : divide_norm(block, info.absorber, by_row);
  at::Tensor applied = applied_by_row.index_select(0, rows);
  for (const size_t op : info.operators) {
    const at::Tensor columns = block.ops()[op].weight->dense().to(at::kDouble) * applied.unsqueeze(0);
    block.replace(op, sparse::replaced_matrix(*block.ops()[op].weight, columns.to(at::kFloat)));
  }
  block.multiply_input_scale(group, applied);
  return applied;
}

}  // namespace lcomp::model
