// Any bytes as model.safetensors.index.json: refused as corrupt, or no listed file leaves the directory.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "io/checkpoint_index.h"
#include "lcomp/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto index = lcomp::io::parse_checkpoint_index({reinterpret_cast<const char*>(data), size}, "fuzz");
    for (const auto& [tensor, file] : index.file_of_tensor) {
      const auto path = ("dir" / std::filesystem::path(file)).lexically_normal();
      if (path.parent_path() != "dir" || !path.has_filename()) std::abort();
    }
  } catch (const lcomp::CorruptFile&) {
  }
  return 0;
}
