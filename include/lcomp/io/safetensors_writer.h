#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/io/files.h"
#include "lcomp/io/stored_tensor.h"

namespace lcomp::io {

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
using Metadata = std::map<std::string, std::string>;

/// Writes a safetensors file piece by piece: the descriptions first, then the bytes, so that a file may be
/// larger than memory. The file appears under its name in `finish`, whole.
///
/// The bytes written are those of the reference implementation (safetensors `serialize`): tensors ordered by
/// type, widest first, then by name; header padded with spaces so that the data begins at a multiple of 8.
/// `__metadata__` always has `format`, "pt" unless given: transformers 4 refuses metadata without it.
class SafetensorsWriter {
 public:
  /// `tensors`: names, types and shapes; `begin` and `end` are not looked at. Throws `InvalidArgument` for
  /// names that are not unique UTF-8 or are "__metadata__", for sizes that overflow, and for a header longer
  /// than the format allows.
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                    Metadata metadata = {});

  /// The tensors in the order in which `append` wants them.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  /// The next bytes of the tensor at hand, which must be called `name`; in one or more pieces.
  void append(const std::string& name, std::span<const std::byte> bytes);
  /// A whole tensor, which must have the type and shape announced.
  void append(const std::string& name, const at::Tensor& tensor);

  /// Puts the file under its name. All bytes of all tensors must be there.
  FileRecord finish();

 private:
  void skip_finished();

  std::vector<TensorInfo> tensors_;
  AtomicFile file_;
  std::string where_;
  size_t current_ = 0;     ///< the tensor whose bytes come next
  uint64_t appended_ = 0;  ///< bytes of it that are written
};

/// All of `tensors` as one file; strided tensors are made contiguous one at a time.
FileRecord write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                             Metadata metadata = {});

}  // namespace lcomp::io
