#include "lcomp/lowrank/morpheme_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "lcomp/core/dtype.h"
#include "lowrank/contraction.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

constexpr int64_t kMostRowsAtATime = 4096;

MaybePartFault find_index_fault(const at::Tensor& index, int64_t morphemes) {
  const bool fits =
      index.defined() && index.scalar_type() == at::kInt && index.dim() == 2 && index.numel() > 0;
  if (!fits) {
    return PartFault{"morpheme_index",
                     "must be int32 [vocabulary, order], not empty; it is " + part_text(index)};
  }
  const auto least = index.min().item<int64_t>(), most = index.max().item<int64_t>();
  if (least >= 0 && most < morphemes) return {};
  return PartFault{"morpheme_index", fmt::format("must lie in [0, {}), the morphemes; one is {}", morphemes,
                                                 least < 0 ? least : most)};
}

MaybePartFault find_morpheme_fault(const MorphemeParts& parts) {
  if (!is_float_part(parts.tables, 3)) {
    return PartFault{"morpheme_tables",
                     "must be [rank, morphemes, columns], not empty, of float32, bfloat16 "
                     "or float16; it is " +
                         part_text(parts.tables)};
  }
  if (MaybePartFault fault = find_index_fault(parts.index, parts.tables.size(1))) return fault;
  if (!is_integer_part(parts.shape, 2))
    return PartFault{"morpheme_shape", "must be int64 [2]; it is " + part_text(parts.shape)};
  const std::vector<int64_t> shape = integers_of(parts.shape);
  if (shape[0] != parts.index.size(0)) {
    return PartFault{"morpheme_shape", fmt::format("must have as many rows as the index, {}; it has {}",
                                                   parts.index.size(0), shape[0])};
  }
  const std::vector<int64_t> columns(static_cast<size_t>(parts.index.size(1)), parts.tables.size(2));
  if (const auto fault = padding_fault(columns, shape[1], "columns"))
    return PartFault{"morpheme_shape", *fault};
  return {};
}

int64_t words_of(const at::Tensor& index) {
  return index.defined() && index.dim() > 0 ? index.size(0) : 0;
}

MorphemeParts checked_morpheme(MorphemeParts parts) {
  require_parts(find_morpheme_fault(parts), "MorphemeWeight");
  return parts;
}

}  // namespace

MorphemeWeight::MorphemeWeight(MorphemeParts parts) : parts_(std::move(parts)) {
  for (at::Tensor* part : {&parts_.tables, &parts_.index, &parts_.shape}) *part = part->contiguous();
  in_ = integers_of(parts_.shape)[1];
}

MorphemeWeight::MorphemeWeight(at::Tensor tables, const at::Tensor& index, int64_t in)
    : MorphemeWeight(
          checked_morpheme(MorphemeParts{std::move(tables), index, integer_part({words_of(index), in})})) {}

MorphemeWeight MorphemeWeight::from_stored(MorphemeParts parts, const std::string& name) {
  require_stored_parts(find_morpheme_fault(parts), name);
  return MorphemeWeight(std::move(parts));
}

int64_t MorphemeWeight::rows_at_a_time() const {
  const int64_t order = parts_.index.size(1), q = parts_.tables.size(2), rank = parts_.tables.size(0);
  int64_t left = rank * q;  // elements of a row that is not summed over the rank yet
  for (int64_t j = 2; j < order; ++j) left *= q;
  return std::min(kMostRowsAtATime, piece_size(std::max(left, left / rank * q)));
}

at::Tensor MorphemeWeight::composed(const at::Tensor& index) const {
  std::vector<at::Tensor> vectors;
  for (int64_t j = 0; j < index.size(1); ++j) {
    const at::Tensor found = parts_.tables.index_select(1, index.select(1, j).contiguous());
    vectors.push_back(found.transpose(0, 1).to(at::kFloat).contiguous());
  }
  return kronecker_rows(vectors).narrow(1, 0, in_);
}

at::Tensor MorphemeWeight::rows(const at::Tensor& ids) const {
  check_row_ids(ids, out_features(), "MorphemeWeight::rows");
  at::Tensor found = at::empty({ids.numel(), in_}, at::kFloat);
  in_pieces(ids.numel(), rows_at_a_time(), [&](int64_t begin, int64_t count) {
    const at::Tensor index = parts_.index.index_select(0, ids.narrow(0, begin, count));
    found.narrow(0, begin, count).copy_(composed(index));
  });
  return found;
}

at::Tensor MorphemeWeight::dense() const {
  return rows(at::arange(out_features(), at::kLong));
}

at::Tensor MorphemeWeight::apply(const at::Tensor& x) const {
  const at::Tensor input = x.to(at::kFloat);
  at::Tensor y = at::empty({input.size(0), out_features()}, at::kFloat);
  in_pieces(out_features(), rows_at_a_time(), [&](int64_t begin, int64_t count) {
    const at::Tensor tile = composed(parts_.index.narrow(0, begin, count));
    y.narrow(1, begin, count).copy_(input.mm(tile.t()));
  });
  return y;
}

int64_t MorphemeWeight::row_macs() const {
  const int64_t q = parts_.tables.size(2);
  int64_t sum = 0, power = q;
  for (int64_t j = 2; j <= parts_.index.size(1); ++j) sum += power *= q;
  return parts_.tables.size(0) * sum;
}

int64_t MorphemeWeight::bytes() const {
  return part_bytes(parts_.tables) + part_bytes(parts_.index) + part_bytes(parts_.shape);
}

std::string MorphemeWeight::describe() const {
  return fmt::format("{} morphemes, order {}, rank {}, vectors of {} ({})", parts_.tables.size(1),
                     parts_.index.size(1), parts_.tables.size(0), parts_.tables.size(2),
                     dtype_name(parts_.tables.scalar_type()));
}

void MorphemeWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_morpheme_tables", parts_.tables);
  sink.add(name + ".weight_morpheme_index", parts_.index);
  sink.add(name + ".weight_morpheme_shape", parts_.shape);
}

}  // namespace lcomp::lowrank
