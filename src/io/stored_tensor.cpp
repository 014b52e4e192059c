#include "lcomp/io/stored_tensor.h"

#include <fmt/ranges.h>

#include <cmath>
#include <limits>

#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

constexpr std::array kScalarTypes = {
    std::pair{StoredDtype::kBool, at::kBool},        std::pair{StoredDtype::kU8, at::kByte},
    std::pair{StoredDtype::kI8, at::kChar},          std::pair{StoredDtype::kI16, at::kShort},
    std::pair{StoredDtype::kI32, at::kInt},          std::pair{StoredDtype::kI64, at::kLong},
    std::pair{StoredDtype::kF16, at::kHalf},         std::pair{StoredDtype::kBF16, at::kBFloat16},
    std::pair{StoredDtype::kF32, at::kFloat},        std::pair{StoredDtype::kF64, at::kDouble},
    std::pair{StoredDtype::kC64, at::kComplexFloat},
};

std::string place_of(const TensorInfo& info, const std::string& where) {
  return fmt::format("{}: {}", where, info.name);
}

std::string known_dtypes() {
  std::vector<std::string_view> names;
  names.reserve(std::size(kScalarTypes));
  for (const auto& [stored, scalar] : kScalarTypes) names.push_back(name_of(stored));
  return fmt::format("{}", fmt::join(names, ", "));
}

/// What the codes with all exponent bits set mean, and the code of minus zero.
enum class Specials {
  kFn,    ///< all bits set is NaN, there is no infinity
  kIeee,  ///< as in IEEE 754
  kFnuz,  ///< minus zero is NaN, there is no infinity
};

/// Value of an 8-bit float: sign, exponent, `mantissa_bits` of mantissa, from the top.
float minifloat(int code, int mantissa_bits, int bias, Specials specials) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float sign = (code & 0x80) != 0 ? -1.0F : 1.0F;
  const int top_exponent = (1 << (7 - mantissa_bits)) - 1;
  const int exponent = (code & 0x7F) >> mantissa_bits;
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  if (specials == Specials::kFn && (code & 0x7F) == 0x7F) return nan;
  if (specials == Specials::kFnuz && code == 0x80) return nan;
  if (specials == Specials::kIeee && exponent == top_exponent)
    return mantissa != 0 ? nan : sign * std::numeric_limits<float>::infinity();
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
  const int significand = mantissa + (1 << mantissa_bits);
  return sign * std::ldexp(static_cast<float>(significand), exponent - bias - mantissa_bits);
}

/// Value of an 8-bit code, or nothing when `dtype` is not an 8-bit float.
std::optional<float> float_of_code(StoredDtype dtype, int code) {
  switch (dtype) {
    case StoredDtype::kF8E4M3:
      return minifloat(code, 3, 7, Specials::kFn);
    case StoredDtype::kF8E5M2:
      return minifloat(code, 2, 15, Specials::kIeee);
    case StoredDtype::kF8E4M3Fnuz:
      return minifloat(code, 3, 8, Specials::kFnuz);
    case StoredDtype::kF8E5M2Fnuz:
      return minifloat(code, 2, 16, Specials::kFnuz);
    case StoredDtype::kF8E8M0:
      return code == 0xFF ? std::numeric_limits<float>::quiet_NaN() : std::ldexp(1.0F, code - 127);
    default:
      return std::nullopt;
  }
}

std::span<std::byte> writable_bytes_of(at::Tensor& tensor) {
  return {static_cast<std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

/// The stored integers or codes as `T`, through `value`.
template <class T, class Value>
at::Tensor floats_through(const TensorInfo& info, const ByteSource& source, const Value& value) {
  std::vector<T> stored(static_cast<size_t>(info.elements()));
  source(std::as_writable_bytes(std::span(stored)));
  at::Tensor out = at::empty(info.shape, at::kFloat);
  std::transform(stored.begin(), stored.end(), out.data_ptr<float>(), value);
  return out;
}

at::Tensor floats_of_codes(const TensorInfo& info, const ByteSource& source) {
  std::array<float, 256> table{};
  for (int code = 0; code < 256; ++code) table[static_cast<size_t>(code)] = *float_of_code(info.dtype, code);
  return floats_through<uint8_t>(info, source, [&](uint8_t code) { return table[code]; });
}

}  // namespace

int bits_of(StoredDtype dtype) {
  switch (dtype) {
    case StoredDtype::kF4:
      return 4;
    case StoredDtype::kF6E2M3:
    case StoredDtype::kF6E3M2:
      return 6;
    case StoredDtype::kI16:
    case StoredDtype::kU16:
    case StoredDtype::kF16:
    case StoredDtype::kBF16:
      return 16;
    case StoredDtype::kI32:
    case StoredDtype::kU32:
    case StoredDtype::kF32:
      return 32;
    case StoredDtype::kC64:
    case StoredDtype::kF64:
    case StoredDtype::kI64:
    case StoredDtype::kU64:
      return 64;
    default:
      return 8;
  }
}

std::optional<StoredDtype> find_stored_dtype(std::string_view name) {
  const auto& names = EnumNames<StoredDtype>::names;
  const auto* const found = std::find(names.begin(), names.end(), name);
  if (found == names.end()) return std::nullopt;
  return static_cast<StoredDtype>(found - names.begin());
}

std::optional<at::ScalarType> scalar_type_of(StoredDtype dtype) {
  for (const auto& [stored, scalar] : kScalarTypes) {
    if (stored == dtype) return scalar;
  }
  return std::nullopt;
}

StoredDtype stored_dtype_of(at::ScalarType type) {
  for (const auto& [stored, scalar] : kScalarTypes) {
    if (scalar == type) return stored;
  }
  throw Unsupported("stored_dtype_of", fmt::format("a tensor to store must be one of {}; it is {}",
                                                   known_dtypes(), dtype_name(type)));
}

int64_t TensorInfo::elements() const {
  int64_t count = 1;
  for (const int64_t dim : shape) count *= dim;
  return count;
}

std::string describe(const TensorInfo& info) {
  return fmt::format("{} [{}]", name_of(info.dtype), fmt::join(info.shape, ", "));
}

std::optional<uint64_t> stored_bytes(StoredDtype dtype, std::span<const int64_t> shape) {
  std::optional<uint64_t> bits = static_cast<uint64_t>(bits_of(dtype));
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    bits = checked_mul(*bits, static_cast<uint64_t>(dim));
    if (!bits) return std::nullopt;
  }
  if (*bits % 8 != 0) return std::nullopt;
  return *bits / 8;
}

TensorInfo info_of(std::string name, const at::Tensor& tensor) {
  const StoredDtype dtype = stored_dtype_of(tensor.scalar_type());
  return {.name = std::move(name),
          .dtype = dtype,
          .shape = tensor.sizes().vec(),
          .begin = 0,
          .end = tensor.nbytes()};
}

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  if (!tensor.is_contiguous() || !tensor.is_cpu())
    throw InvalidArgument("bytes_of", "the tensor must be contiguous and on the CPU; it is not");
  return {static_cast<const std::byte*>(tensor.data_ptr()), tensor.nbytes()};
}

at::Tensor decode(const TensorInfo& info, const ByteSource& source, const std::string& where) {
  const auto scalar = scalar_type_of(info.dtype);
  if (!scalar)
    throw Unsupported(place_of(info, where), fmt::format("the tensor must be one of {} to be read; it is {}",
                                                         known_dtypes(), name_of(info.dtype)));
  at::Tensor out = at::empty(info.shape, *scalar);
  const std::span<std::byte> bytes = writable_bytes_of(out);
  source(bytes);
  if (info.dtype == StoredDtype::kBool) {
    // LibTorch's arithmetic on other bytes is undefined.
    const auto bad = std::find_if(bytes.begin(), bytes.end(), [](std::byte b) { return b > std::byte{1}; });
    if (bad != bytes.end())
      throw CorruptFile(place_of(info, where), fmt::format("a BOOL must be 0 or 1; byte {} is {}",
                                                           bad - bytes.begin(), std::to_integer<int>(*bad)));
  }
  return out;
}

at::Tensor decode_as_float(const TensorInfo& info, const ByteSource& source, const std::string& where) {
  if (float_of_code(info.dtype, 0)) return floats_of_codes(info, source);
  const auto rounded = [](auto integer) { return static_cast<float>(integer); };
  switch (info.dtype) {
    case StoredDtype::kU16:
      return floats_through<uint16_t>(info, source, rounded);
    case StoredDtype::kU32:
      return floats_through<uint32_t>(info, source, rounded);
    case StoredDtype::kU64:
      return floats_through<uint64_t>(info, source, rounded);
    case StoredDtype::kC64:
    case StoredDtype::kF4:
    case StoredDtype::kF6E2M3:
    case StoredDtype::kF6E3M2:
      throw Unsupported(
          place_of(info, where),
          fmt::format("a tensor read as float32 must be real and at least 8 bits wide; it is {}",
                      name_of(info.dtype)));
    default:
      return decode(info, source, where).to(at::kFloat);
  }
}

}  // namespace lcomp::io
