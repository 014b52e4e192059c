#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>

namespace lcomp::io {

/// `model.safetensors.index.json`: which shard holds which tensor.
struct CheckpointIndex {
  std::map<std::string, std::string> file_of_tensor;
  std::optional<uint64_t> total_size;  ///< as the file says, which may be wrong
};

/// The name of a file in a directory: nothing that leads out of it.
bool is_plain_name(const std::string& name);

/// Throws `CorruptFile` for anything that is not an index, or that names a file outside the directory.
CheckpointIndex parse_checkpoint_index(std::string_view text, const std::string& where);

}  // namespace lcomp::io
