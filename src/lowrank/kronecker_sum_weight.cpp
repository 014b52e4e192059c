#include "lcomp/lowrank/kronecker_sum_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "lcomp/core/dtype.h"
#include "lowrank/contraction.h"
#include "lowrank/stored_parts.h"

namespace lcomp::lowrank {
namespace {

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) result *= base;
  return result;
}

/// A side of the leaf for every mode.
std::vector<int64_t> leaf_sides(const at::Tensor& leaf, int64_t dim) {
  return std::vector<int64_t>(static_cast<size_t>(leaf.size(0)), leaf.size(dim));
}

MaybePartFault find_kronecker_fault(const KroneckerParts& parts) {
  if (!is_float_part(parts.leaf, 4)) {
    return PartFault{"kronecker_leaf",
                     "must be [order, rank, rows, columns], not empty, of float32, bfloat16 "
                     "or float16; it is " +
                         part_text(parts.leaf)};
  }
  if (!is_integer_part(parts.shape, 2))
    return PartFault{"kronecker_shape", "must be int64 [2]; it is " + part_text(parts.shape)};
  const std::vector<int64_t> shape = integers_of(parts.shape);
  auto fault = padding_fault(leaf_sides(parts.leaf, 2), shape[0], "rows");
  if (!fault) fault = padding_fault(leaf_sides(parts.leaf, 3), shape[1], "columns");
  return fault ? MaybePartFault(PartFault{"kronecker_shape", *fault}) : MaybePartFault();
}

KroneckerParts checked_kronecker(KroneckerParts parts) {
  require_parts(find_kronecker_fault(parts), "KroneckerSumWeight");
  return parts;
}

}  // namespace

KroneckerSumWeight::KroneckerSumWeight(KroneckerParts parts) : parts_(std::move(parts)) {
  parts_.leaf = parts_.leaf.contiguous();
  parts_.shape = parts_.shape.contiguous();
  const std::vector<int64_t> shape = integers_of(parts_.shape);
  out_ = shape[0];
  in_ = shape[1];
}

KroneckerSumWeight::KroneckerSumWeight(int64_t out, int64_t in, at::Tensor leaf)
    : KroneckerSumWeight(checked_kronecker(KroneckerParts{std::move(leaf), integer_part({out, in})})) {}

KroneckerSumWeight KroneckerSumWeight::from_stored(KroneckerParts parts, const std::string& name) {
  require_stored_parts(find_kronecker_fault(parts), name);
  return KroneckerSumWeight(std::move(parts));
}

at::Tensor KroneckerSumWeight::dense() const {
  return rows(at::arange(out_, at::kLong));
}

at::Tensor KroneckerSumWeight::apply(const at::Tensor& x) const {
  const at::Tensor input = x.to(at::kFloat), leaf = parts_.leaf.to(at::kFloat);
  const int64_t t = leaf.size(2), q = leaf.size(3), tokens = input.size(0);
  const int64_t padded = integer_power(q, order()), all = integer_power(t, order());
  at::Tensor y = at::empty({tokens, out_}, at::kFloat);
  in_pieces(tokens, piece_size(std::max(padded, all)), [&](int64_t begin, int64_t count) {
    const at::Tensor columns =
        at::constant_pad_nd(input.narrow(0, begin, count), {0, padded - in_}).t().contiguous();
    at::Tensor sum = at::zeros({all, count}, at::kFloat);
    for (int64_t k = 0; k < rank(); ++k) {
      at::Tensor state = columns;  // [t^(j-1), q, q^(n-j) x tokens]
      for (int64_t j = 0, done = 1; j < order(); ++j, done *= t)
        state = contract(leaf[j][k], state.reshape({done, q, -1}));
      sum.add_(state.reshape({all, count}));
    }
    y.narrow(0, begin, count).copy_(sum.narrow(0, 0, out_).t());
  });
  return y;
}

at::Tensor KroneckerSumWeight::rows(const at::Tensor& ids) const {
  check_row_ids(ids, out_, "KroneckerSumWeight::rows");
  const at::Tensor& leaf = parts_.leaf;
  const int64_t q = leaf.size(3);
  at::Tensor found = at::empty({ids.numel(), in_}, at::kFloat);
  const int64_t each = integer_power(q, order() - 1) * std::max(q, rank());
  in_pieces(ids.numel(), piece_size(each), [&](int64_t begin, int64_t count) {
    const std::vector<at::Tensor> digits = digits_of(ids.narrow(0, begin, count), leaf_sides(leaf, 2));
    std::vector<at::Tensor> vectors;
    for (size_t j = 0; j < digits.size(); ++j)
      vectors.push_back(
          leaf[static_cast<int64_t>(j)].index_select(1, digits[j]).to(at::kFloat).transpose(0, 1));
    found.narrow(0, begin, count).copy_(kronecker_rows(vectors).narrow(1, 0, in_));
  });
  return found;
}

int64_t KroneckerSumWeight::macs_per_token() const {
  const int64_t t = parts_.leaf.size(2), q = parts_.leaf.size(3);
  int64_t sum = 0;
  for (int64_t j = 1; j <= order(); ++j) sum += integer_power(t, j) * integer_power(q, order() - j + 1);
  return rank() * sum;
}

int64_t KroneckerSumWeight::bytes() const {
  return part_bytes(parts_.leaf) + part_bytes(parts_.shape);
}

std::string KroneckerSumWeight::describe() const {
  return fmt::format("Kronecker products of order {}, rank {}, {}x{} ({})", order(), rank(),
                     parts_.leaf.size(2), parts_.leaf.size(3), dtype_name(parts_.leaf.scalar_type()));
}

void KroneckerSumWeight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight_kronecker_leaf", parts_.leaf);
  sink.add(name + ".weight_kronecker_shape", parts_.shape);
}

}  // namespace lcomp::lowrank
