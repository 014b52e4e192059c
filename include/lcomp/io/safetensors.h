#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lcomp/io/stored_tensor.h"

namespace lcomp::io {

/// A safetensors file, open for reading.
///
/// Layout: 8 bytes length N of the header (little endian), N bytes of JSON, then the tensors back to back.
/// The constructor reads the header only and checks every rule of the format before anything of a tensor's
/// size is allocated. It is stricter than the reference implementation (safetensors 0.8) in three points,
/// each of which the format's text forbids or which no tensor library can hold: duplicate keys, white space
/// before the first brace, and shapes whose non-zero dimensions multiply to 2^63 or more.
///
/// Everything is read with pread and nothing mapped: nothing of the file stays in the process's resident
/// memory, and a disk that fails or a file that shrinks meanwhile gives an exception instead of a signal. No
/// alignment of tensors in the file is assumed. All methods are const and may be called from several threads.
///
/// Errors: `CorruptFile` for a breach of the format, `ResourceError` when the system refuses.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::filesystem::path& path);
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;

  const std::filesystem::path& path() const;
  /// Size of the whole file.
  uint64_t file_bytes() const;
  /// The strings under `__metadata__`; empty when it is absent.
  const std::map<std::string, std::string>& metadata() const;

  /// All tensors in the order of their bytes.
  const std::vector<TensorInfo>& tensors() const;
  bool contains(const std::string& name) const;
  /// Throws `CorruptFile` when the file has no such tensor; so do all methods below.
  const TensorInfo& info(const std::string& name) const;

  /// A copy of the tensor. Types: BOOL U8 I8 I16 I32 I64 F16 BF16 F32 F64 C64, `Unsupported` for others.
  at::Tensor read(const std::string& name) const;
  /// A float32 copy, also of the 8-bit floats and unsigned integers (see `decode_as_float`).
  at::Tensor read_as_float(const std::string& name) const;
  /// Copies bytes [offset, offset + out.size()) of the tensor, which must exist.
  void read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lcomp::io
