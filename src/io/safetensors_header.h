#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/io/stored_tensor.h"

namespace lcomp::io {

/// The reference refuses longer headers.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
/// The one key of the header that is no tensor.
constexpr const char* kMetadataKey = "__metadata__";

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
  bool has_metadata = false;
  uint64_t data_begin = 0;  ///< position of the data buffer in the file
};

/// Length of the JSON that follows the first 8 bytes of a file of `file_size` bytes; `start` is the
/// beginning of the file, at least those 8 bytes if it has them.
uint64_t safetensors_header_length(std::string_view start, uint64_t file_size, const std::string& where);

/// The meaning of the JSON `text` of a file of `file_size` bytes, with every rule of the format checked.
SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t file_size,
                                           const std::string& where);

}  // namespace lcomp::io
