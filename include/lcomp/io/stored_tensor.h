#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"

namespace lcomp::io {

/// The element types of safetensors, in the order of the reference (`safetensors/src/tensor.rs`), which also
/// orders tensors in a file. More than LibTorch 1.13 knows: the others can be carried as bytes.
enum class StoredDtype {
  kBool,
  kF4,
  kF6E2M3,
  kF6E3M2,
  kU8,
  kI8,
  kF8E5M2,
  kF8E4M3,
  kF8E8M0,
  kF8E4M3Fnuz,
  kF8E5M2Fnuz,
  kI16,
  kU16,
  kF16,
  kBF16,
  kI32,
  kU32,
  kF32,
  kC64,
  kF64,
  kI64,
  kU64,
};

/// Bits of one element.
int bits_of(StoredDtype dtype);

/// The type called `name` ("BF16"), or nothing.
std::optional<StoredDtype> find_stored_dtype(std::string_view name);

/// The LibTorch type with the same elements, or nothing.
std::optional<at::ScalarType> scalar_type_of(StoredDtype dtype);

/// The inverse. Throws `Unsupported` for types that safetensors does not have.
StoredDtype stored_dtype_of(at::ScalarType type);

/// One tensor of a file.
struct TensorInfo {
  std::string name;
  StoredDtype dtype = StoredDtype::kF32;
  std::vector<int64_t> shape;
  /// Its bytes are [begin, end) of the file's data buffer: row major, little endian, no strides.
  uint64_t begin = 0;
  uint64_t end = 0;

  uint64_t bytes() const { return end - begin; }
  /// Number of elements; 1 for the shape [].
  int64_t elements() const;
};

/// "BF16 [2, 3]"
std::string describe(const TensorInfo& info);

/// Bytes that a tensor of this type and shape takes, or nothing when the number overflows 64 bits, a
/// dimension is negative or the bits do not fill bytes (4-bit and 6-bit types).
std::optional<uint64_t> stored_bytes(StoredDtype dtype, std::span<const int64_t> shape);

/// The description of a tensor as it would be stored; `begin` is 0.
TensorInfo info_of(std::string name, const at::Tensor& tensor);

/// The bytes of a tensor as they would be stored. `tensor` must be contiguous and on the CPU.
std::span<const std::byte> bytes_of(const at::Tensor& tensor);

/// Fills a buffer with the stored bytes of a tensor.
using ByteSource = std::function<void(std::span<std::byte> out)>;

/// A tensor made of its `info.bytes()` stored bytes. `where` names the file in errors.
/// Throws `Unsupported`, before the source is asked, for a type that LibTorch does not have, and
/// `CorruptFile` for a BOOL other than 0 and 1.
at::Tensor decode(const TensorInfo& info, const ByteSource& source, const std::string& where);

/// The same as float32, also for the 8-bit floating-point types (OCP 8-bit floating point, revision 1.0;
/// the FNUZ variants; E8M0 = 2^(code-127)) and for unsigned integers. Integers are rounded to float32.
/// Throws `Unsupported` for F4, F6 and C64.
at::Tensor decode_as_float(const TensorInfo& info, const ByteSource& source, const std::string& where);

}  // namespace lcomp::io

namespace lcomp {

template <>
struct EnumNames<io::StoredDtype> {
  static constexpr std::array names = {
      std::string_view("BOOL"),        std::string_view("F4"),          std::string_view("F6_E2M3"),
      std::string_view("F6_E3M2"),     std::string_view("U8"),          std::string_view("I8"),
      std::string_view("F8_E5M2"),     std::string_view("F8_E4M3"),     std::string_view("F8_E8M0"),
      std::string_view("F8_E4M3FNUZ"), std::string_view("F8_E5M2FNUZ"), std::string_view("I16"),
      std::string_view("U16"),         std::string_view("F16"),         std::string_view("BF16"),
      std::string_view("I32"),         std::string_view("U32"),         std::string_view("F32"),
      std::string_view("C64"),         std::string_view("F64"),         std::string_view("I64"),
      std::string_view("U64")};
};

}  // namespace lcomp
