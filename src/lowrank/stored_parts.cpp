#include "lowrank/stored_parts.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp::lowrank {
namespace {

/// Rows or columns of a matrix with padding: far beyond any model, far below what overflows.
constexpr uint64_t kMostRows = uint64_t{1} << 31;
constexpr size_t kMostFactors = 16;

bool is_float_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

}  // namespace

std::string part_text(const at::Tensor& tensor) {
  if (!tensor.defined()) return "missing";
  return fmt::format("{} [{}]", dtype_name(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

bool is_float_part(const at::Tensor& tensor, int64_t dimensions) {
  return tensor.defined() && is_float_type(tensor.scalar_type()) && tensor.dim() == dimensions &&
         tensor.numel() > 0;
}

bool is_integer_part(const at::Tensor& tensor, int64_t count) {
  return tensor.defined() && tensor.scalar_type() == at::kLong && tensor.dim() == 1 &&
         tensor.numel() == count;
}

std::vector<int64_t> integers_of(const at::Tensor& vector) {
  const at::Tensor v = vector.contiguous();
  return {v.data_ptr<int64_t>(), v.data_ptr<int64_t>() + v.numel()};
}

at::Tensor integer_part(const std::vector<int64_t>& numbers) {
  return at::tensor(numbers, at::kLong);
}

std::optional<std::string> padding_fault(const std::vector<int64_t>& factors, int64_t logical,
                                         const char* what) {
  uint64_t product = 1;
  bool fits = factors.size() <= kMostFactors && logical >= 1;
  for (const int64_t factor : factors) {
    fits = fits && factor >= 1;
    if (!fits) break;
    const auto next = checked_mul(product, static_cast<uint64_t>(factor));
    fits = next && *next <= kMostRows;
    if (fits) product = *next;
  }
  const auto rows = static_cast<uint64_t>(logical);
  if (fits && rows <= product && product >> factors.size() <= rows) return {};
  return fmt::format("must have a product of {} factors ({}) of at least {} {} and at most 2^{} times that",
                     factors.size(), fmt::join(factors, " x "), logical, what, factors.size());
}

void require_parts(const MaybePartFault& fault, const char* where) {
  if (fault) throw InvalidArgument(where, fmt::format("the {} {}", fault->part, fault->text));
}

void require_stored_parts(const MaybePartFault& fault, const std::string& name) {
  if (fault) throw CorruptFile(fmt::format("{}.weight_{}", name, fault->part), fault->text);
}

void check_row_ids(const at::Tensor& ids, int64_t rows, const char* where) {
  if (ids.scalar_type() != at::kLong || ids.dim() != 1)
    throw InvalidArgument(where, fmt::format("ids must be an int64 vector; they are {}", part_text(ids)));
  if (ids.numel() == 0) return;
  const int64_t least = ids.min().item<int64_t>(), most = ids.max().item<int64_t>();
  if (least >= 0 && most < rows) return;
  throw InvalidArgument(where,
                        fmt::format("ids must lie in [0, {}); one is {}", rows, least < 0 ? least : most));
}

void check_part_type(at::ScalarType type, const char* where) {
  if (is_float_type(type)) return;
  throw InvalidArgument(
      where, fmt::format("the type must be float32, bfloat16 or float16; it is {}", dtype_name(type)));
}

}  // namespace lcomp::lowrank
