#include "lcomp/io/safetensors.h"

#include <unordered_map>

#include "io/descriptor.h"
#include "io/json_util.h"
#include "io/safetensors_header.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
struct SafetensorsFile::State {
  explicit State(const std::filesystem::path& file_path)
      : path(file_path), file(open_input(path)), size(file_size(file, path)), header(read_header()) {
    for (size_t i = 0; i < header.tensors.size(); ++i) index.emplace(header.tensors[i].name, i);
  }

  SafetensorsHeader read_header() const {
    const std::string where = path.string();
    std::string start(std::min<uint64_t>(size, 8), '\0');
    read_all(file, path, 0, std::as_writable_bytes(std::span(start)));
    std::string text(safetensors_header_length(start, size, where), '\0');
    read_all(file, path, 8, std::as_writable_bytes(std::span(text)));
    return parse_safetensors_header(text, size, where);
  }

  std::filesystem::path path;
  Descriptor file;
  uint64_t size;
  SafetensorsHeader header;
  std::unordered_map<std::string, size_t> index;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : state_(std::make_unique<State>(path)) {}
SafetensorsFile::~SafetensorsFile() = default;
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;

const std::filesystem::path& SafetensorsFile::path() const {
  return state_->path;
}

uint64_t SafetensorsFile::file_bytes() const {
  return state_->size;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return state_->header.metadata;
}

const std::vector<TensorInfo>& SafetensorsFile::tensors() const {
  return state_->header.tensors;
}

bool SafetensorsFile::contains(const std::string& name) const {
  return state_->index.contains(name);
}

const TensorInfo& SafetensorsFile::info(const std::string& name) const {
  const auto found = state_->index.find(name);
  if (found == state_->index.end())
    throw CorruptFile(state_->path.string(),
                      fmt::format("the file must have the tensor {}; it is not among its {}",
                                  quote_name(name), tensors().size()));
  return state_->header.tensors[found->second];
}

void SafetensorsFile::read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const {
  const TensorInfo& tensor = info(name);
  if (offset > tensor.bytes() || out.size() > tensor.bytes() - offset)
    throw InvalidArgument("SafetensorsFile::read_bytes",
                          fmt::format("the range must lie within the {} bytes of {}; it is [{}, {} + {})",
                                      tensor.bytes(), quote_name(name), offset, offset, out.size()));
  read_all(state_->file, state_->path, state_->header.data_begin + tensor.begin + offset, out);
}

at::Tensor SafetensorsFile::read(const std::string& name) const {
  const auto source = [&](std::span<std::byte> out) { read_bytes(name, 0, out); };
  return decode(info(name), source, state_->path.string());
}

at::Tensor SafetensorsFile::read_as_float(const std::string& name) const {
  const auto source = [&](std::span<std::byte> out) { read_bytes(name, 0, out); };
  return decode_as_float(info(name), source, state_->path.string());
}

}  // namespace lcomp::io
