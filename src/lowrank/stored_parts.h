#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lcomp::lowrank {

/// What is wrong with the tensors that a weight is stored as: the part at fault ("tt_core0") and what must
/// hold of it.
struct PartFault {
  std::string part;
  std::string text;
};

using MaybePartFault = std::optional<PartFault>;

/// "float32 [2, 3]", or "missing".
std::string part_text(const at::Tensor& tensor);

/// Whether a tensor is there and of float32, bfloat16 or float16, of `dimensions` none of which is 0.
bool is_float_part(const at::Tensor& tensor, int64_t dimensions);

/// Whether a tensor is there and int64 [count].
bool is_integer_part(const at::Tensor& tensor, int64_t count);

/// The numbers of an int64 vector.
std::vector<int64_t> integers_of(const at::Tensor& vector);

/// int64 [n].
at::Tensor integer_part(const std::vector<int64_t>& numbers);

/// Nothing when a matrix of `logical` rows (or columns) fits into the product of `factors`, and that is not
/// more than 2^(number of factors) times as many; else what must hold. Guards every later product of sizes:
/// factors come from files.
std::optional<std::string> padding_fault(const std::vector<int64_t>& factors, int64_t logical,
                                         const char* what);

/// Throws InvalidArgument("where", "the part must ...") when there is a fault.
void require_parts(const MaybePartFault& fault, const char* where);

/// Throws CorruptFile("<name>.weight_part", "must ...") when there is a fault.
void require_stored_parts(const MaybePartFault& fault, const std::string& name);

/// Throws InvalidArgument unless ids is an int64 vector of numbers in [0, rows).
void check_row_ids(const at::Tensor& ids, int64_t rows, const char* where);

/// Throws InvalidArgument unless the type is float32, bfloat16 or float16.
void check_part_type(at::ScalarType type, const char* where);

/// Bytes of a tensor's elements.
inline int64_t part_bytes(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

}  // namespace lcomp::lowrank
