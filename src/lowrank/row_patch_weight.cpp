#include "lcomp/lowrank/row_patch_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/dtype.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

MaybePartFault find_order_of_rows_fault(const at::Tensor& rows, int64_t out) {
  int64_t before = -1;
  for (const int64_t row : integers_of(rows)) {
    if (row <= before || row >= out) {
      return PartFault{"patch_rows",
                       fmt::format("must ascend and lie in [0, {}); {} comes after {}", out, row, before)};
    }
    before = row;
  }
  return {};
}

MaybePartFault find_patch_fault(const RowPatchParts& parts) {
  if (!is_float_part(parts.values, 2)) {
    return PartFault{
        "patch_values",
        "must be [count, in], not empty, of float32, bfloat16 or float16; it is " + part_text(parts.values)};
  }
  if (!is_integer_part(parts.rows, parts.values.size(0))) {
    return PartFault{"patch_rows", fmt::format("must be int64 [{}]; it is {}", parts.values.size(0),
                                               part_text(parts.rows))};
  }
  if (!is_integer_part(parts.shape, 2))
    return PartFault{"patch_shape", "must be int64 [2]; it is " + part_text(parts.shape)};
  const std::vector<int64_t> shape = integers_of(parts.shape);
  constexpr int64_t kMostRows = int64_t{1} << 31;
  if (shape[0] < parts.values.size(0) || shape[0] > kMostRows || shape[1] != parts.values.size(1)) {
    return PartFault{"patch_shape",
                     fmt::format("must have {} to {} rows and {} columns; it is [{}, {}]",
                                 parts.values.size(0), kMostRows, parts.values.size(1), shape[0], shape[1])};
  }
  return find_order_of_rows_fault(parts.rows, shape[0]);
}

int64_t columns_of(const at::Tensor& values) {
  return values.defined() && values.dim() == 2 ? values.size(1) : 0;
}

RowPatchParts checked_patch(RowPatchParts parts) {
  require_parts(find_patch_fault(parts), "RowPatchWeight");
  return parts;
}

}  // namespace

RowPatchWeight::RowPatchWeight(RowPatchParts parts) : parts_(std::move(parts)) {
  for (at::Tensor* part : {&parts_.rows, &parts_.values, &parts_.shape}) *part = part->contiguous();
  out_ = integers_of(parts_.shape)[0];
}

RowPatchWeight::RowPatchWeight(int64_t out, at::Tensor rows, const at::Tensor& values)
    : RowPatchWeight(
          checked_patch(RowPatchParts{std::move(rows), values, integer_part({out, columns_of(values)})})) {}

RowPatchWeight RowPatchWeight::from_stored(RowPatchParts parts, const std::string& name) {
  require_stored_parts(find_patch_fault(parts), name);
  return RowPatchWeight(std::move(parts));
}

at::Tensor RowPatchWeight::dense() const {
  at::Tensor matrix = at::zeros({out_, in_features()}, at::kFloat);
  return matrix.index_copy_(0, parts_.rows, parts_.values.to(at::kFloat));
}

at::Tensor RowPatchWeight::apply(const at::Tensor& x) const {
  const at::Tensor products = at::matmul(x.to(at::kFloat), parts_.values.to(at::kFloat).t());
  return at::zeros({x.size(0), out_}, at::kFloat).index_copy_(1, parts_.rows, products);
}

at::Tensor RowPatchWeight::rows(const at::Tensor& ids) const {
  check_row_ids(ids, out_, "RowPatchWeight::rows");
  const at::Tensor place = at::searchsorted(parts_.rows, ids).clamp_max(parts_.rows.size(0) - 1);
  const at::Tensor kept = parts_.rows.index_select(0, place).eq(ids).unsqueeze(1);
  const at::Tensor found = parts_.values.index_select(0, place).to(at::kFloat);
  return at::where(kept, found, at::zeros_like(found));
}

int64_t RowPatchWeight::bytes() const {
  return part_bytes(parts_.rows) + part_bytes(parts_.values) + part_bytes(parts_.shape);
}

std::string RowPatchWeight::describe() const {
  return fmt::format("{} rows ({})", parts_.rows.size(0), dtype_name(parts_.values.scalar_type()));
}

void RowPatchWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_patch_rows", parts_.rows);
  sink.add(name + ".weight_patch_values", parts_.values);
  sink.add(name + ".weight_patch_shape", parts_.shape);
}

}  // namespace lcomp::lowrank
