#pragma once

#include <filesystem>
#include <functional>

#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"

namespace lcomp::test {

/// Lets `edit` change the tensors of the model in a directory.
inline void edit_tensors(const std::filesystem::path& model,
                         const std::function<void(io::NamedTensors&)>& edit) {
  io::NamedTensors tensors;
  {
    const io::SafetensorsFile file(model / "model.safetensors");
    for (const auto& info : file.tensors()) tensors.emplace_back(info.name, file.read(info.name).clone());
  }
  edit(tensors);
  io::write_safetensors(model / "model.safetensors", tensors);
}

}  // namespace lcomp::test
