#include "lcomp/io/checkpoint.h"

#include <algorithm>
#include <cstring>

#include "io/checkpoint_index.h"
#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/core/nearest.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/safetensors.h"

namespace lcomp::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";
constexpr uint64_t kHashPiece = uint64_t{1} << 20;

/// Of type, shape and bytes of a tensor in a file or a checkpoint.
template <class Source>
std::string hash_of_tensor_in(const Source& source, const std::string& name) {
  const TensorInfo& tensor = source.info(name);
  Hasher hasher;
  hasher.add(describe(tensor));
  std::vector<std::byte> buffer(std::min(tensor.bytes(), kHashPiece));
  for (uint64_t done = 0; done < tensor.bytes();) {
    const auto piece = std::span(buffer).first(std::min<uint64_t>(buffer.size(), tensor.bytes() - done));
    source.read_bytes(name, done, piece);
    hasher.add(piece.data(), piece.size());
    done += piece.size();
  }
  return hasher.hex();
}

/// Tensors of one or several safetensors files.
class FileCheckpoint final : public Checkpoint {
 public:
  /// Every tensor of one file.
  explicit FileCheckpoint(const fs::path& file) : where_(file.string()) {
    const SafetensorsFile& opened = open(file);
    for (const TensorInfo& info : opened.tensors()) home_.emplace(info.name, &opened);
    list_names();
  }

  /// The tensors that the index in `dir` lists.
  FileCheckpoint(const fs::path& dir, const CheckpointIndex& index) : where_(dir.string()) {
    const std::string index_path = (dir / kIndexFile).string();
    for (const auto& [tensor, file] : index.file_of_tensor) {
      if (!files_.contains(file)) open_shard(dir / file, index_path);
    }
    for (const auto& [tensor, file] : index.file_of_tensor) {
      const SafetensorsFile& shard = *files_.at(file);
      if (!shard.contains(tensor))
        throw CorruptFile(index_path, fmt::format("the tensor {} must be in {}; that file does not have it",
                                                  quote_name(tensor), file));
      home_.emplace(tensor, &shard);
    }
    check_unlisted();
    list_names();
    if (index.total_size && *index.total_size != total_bytes())
      warnings_.push_back(fmt::format("[{}] total_size says {} bytes; the tensors have {}", index_path,
                                      *index.total_size, total_bytes()));
  }

  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return home_.contains(name); }
  const TensorInfo& info(const std::string& name) const override { return home(name).info(name); }
  at::Tensor read(const std::string& name) const override { return home(name).read(name); }
  at::Tensor read_as_float(const std::string& name) const override { return home(name).read_as_float(name); }
  void read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const override {
    home(name).read_bytes(name, offset, out);
  }
  std::string file_of(const std::string& name) const override { return home(name).path().string(); }
  const std::vector<std::string>& warnings() const override { return warnings_; }

  void warn(std::string text) { warnings_.push_back(std::move(text)); }

 private:
  const SafetensorsFile& open(const fs::path& file) {
    auto opened = std::make_unique<SafetensorsFile>(file);
    return *(files_[file.filename().string()] = std::move(opened));
  }

  void open_shard(const fs::path& file, const std::string& index_path) {
    if (!is_there(file))
      throw CorruptFile(index_path, fmt::format("the shard {} must exist; it is missing",
                                                quote_name(file.filename().string())));
    open(file);
  }

  /// Tensors that a shard has and the index does not give to it.
  void check_unlisted() {
    for (const auto& [file, shard] : files_) {
      for (const TensorInfo& info : shard->tensors()) {
        const auto listed = home_.find(info.name);
        if (listed == home_.end()) {
          warn(fmt::format("[{}] the tensor {} is not in the index and is ignored", shard->path().string(),
                           quote_name(info.name)));
        } else if (listed->second != shard.get()) {
          check_twin(info.name, *listed->second, *shard);
        }
      }
    }
  }

  void check_twin(const std::string& name, const SafetensorsFile& first, const SafetensorsFile& second) {
    const bool equal = hash_of_tensor_in(first, name) == hash_of_tensor_in(second, name);
    const std::string both =
        fmt::format("{} and {}", first.path().filename().string(), second.path().filename().string());
    if (!equal)
      throw CorruptFile(where_, fmt::format("the tensor {} must be the same in {}; the contents differ",
                                            quote_name(name), both));
    warn(fmt::format("[{}] the tensor {} is stored twice, in {}", where_, quote_name(name), both));
  }

  void list_names() {
    for (const auto& [name, file] : home_) names_.push_back(name);
  }

  const SafetensorsFile& home(const std::string& name) const {
    const auto found = home_.find(name);
    if (found == home_.end())
      throw CorruptFile(where_,
                        fmt::format("the checkpoint must have the tensor {}; it is not among its {}{}",
                                    quote_name(name), names_.size(), did_you_mean(name, names_)));
    return *found->second;
  }

  std::string where_;
  std::map<std::string, std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, const SafetensorsFile*> home_;
  std::vector<std::string> names_;
  std::vector<std::string> warnings_;
};

/// Also a link that leads nowhere: opening it says so.
bool has_entry(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

/// A directory without safetensors: say what is there instead.
[[noreturn]] void refuse_directory(const fs::path& dir) {
  std::string pickle;
  std::string other;
  for (const fs::path& entry : list_directory(dir)) {
    const std::string name = entry.filename().string();
    const std::string extension = entry.extension().string();
    if (name.starts_with("pytorch_model") || extension == ".bin" || extension == ".pt" || extension == ".pth")
      pickle = name;
    if (extension == ".gguf" || extension == ".h5" || extension == ".msgpack" || extension == ".onnx" ||
        extension == ".safetensors")
      other = name;
  }
  const std::string wanted = fmt::format("the directory must have {} or {}; ", kSingleFile, kIndexFile);
  if (!pickle.empty())
    throw Unsupported(dir.string(),
                      wanted + fmt::format("it has {}, a Python pickle, which is a program and is not "
                                           "run: convert it to safetensors first",
                                           pickle));
  if (!other.empty()) throw Unsupported(dir.string(), wanted + "it has " + other);
  throw CorruptFile(dir.string(), wanted + "it has no weights");
}

}  // namespace

at::Tensor Checkpoint::read_codes(const std::string& name) const {
  const TensorInfo& tensor = info(name);
  if (bits_of(tensor.dtype) != 8)
    throw CorruptFile(file_of(name), fmt::format("the tensor {} must have elements of 8 bits; it is {}",
                                                 quote_name(name), describe(tensor)));
  at::Tensor codes = at::empty(tensor.shape, at::kByte);
  read_bytes(name, 0, std::as_writable_bytes(std::span(codes.data_ptr<uint8_t>(), tensor.bytes())));
  return codes;
}

std::string Checkpoint::hash_of_tensor(const std::string& name) const {
  return hash_of_tensor_in(*this, name);
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const std::string& name : names()) total += info(name).bytes();
  return total;
}

CheckpointPtr open_checkpoint(const fs::path& path) {
  if (!is_there(path)) throw CorruptFile(path.string(), "the model directory must exist; there is none");
  if (!fs::is_directory(path)) return std::make_shared<FileCheckpoint>(path);
  const bool has_index = has_entry(path / kIndexFile);
  if (has_entry(path / kSingleFile)) {
    auto checkpoint = std::make_shared<FileCheckpoint>(path / kSingleFile);
    if (has_index)
      checkpoint->warn(fmt::format("[{}] there is also {}, which is ignored", path.string(), kIndexFile));
    return checkpoint;
  }
  if (!has_index) refuse_directory(path);
  const fs::path index = path / kIndexFile;
  return std::make_shared<FileCheckpoint>(path, parse_checkpoint_index(read_file(index), index.string()));
}

MemoryCheckpoint::MemoryCheckpoint(const std::map<std::string, at::Tensor>& tensors,
                                   const std::set<std::string>& float8) {
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor kept = tensor.detach().cpu().contiguous();
    TensorInfo info = info_of(name, kept);
    if (float8.contains(name)) info.dtype = StoredDtype::kF8E4M3;
    entries_.emplace(name, Entry{std::move(info), kept});
    names_.push_back(name);
  }
}

const MemoryCheckpoint::Entry& MemoryCheckpoint::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end())
    throw CorruptFile("memory", fmt::format("the checkpoint must have the tensor {}; it is not among its {}",
                                            quote_name(name), names_.size()));
  return found->second;
}

const TensorInfo& MemoryCheckpoint::info(const std::string& name) const {
  return entry(name).info;
}

at::Tensor MemoryCheckpoint::read(const std::string& name) const {
  const Entry& found = entry(name);
  const auto source = [&](std::span<std::byte> out) { read_bytes(name, 0, out); };
  return decode(found.info, source, "memory");
}

at::Tensor MemoryCheckpoint::read_as_float(const std::string& name) const {
  const Entry& found = entry(name);
  const auto source = [&](std::span<std::byte> out) { read_bytes(name, 0, out); };
  return decode_as_float(found.info, source, "memory");
}

void MemoryCheckpoint::read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const {
  const auto bytes = bytes_of(entry(name).tensor);
  if (offset > bytes.size() || out.size() > bytes.size() - offset)
    throw InvalidArgument("MemoryCheckpoint::read_bytes",
                          fmt::format("the range must lie within the {} bytes of {}; it is [{}, {} + {})",
                                      bytes.size(), quote_name(name), offset, offset, out.size()));
  if (!out.empty()) std::memcpy(out.data(), bytes.data() + offset, out.size());
}

std::string MemoryCheckpoint::file_of(const std::string& name) const {
  entry(name);
  return "memory";
}

}  // namespace lcomp::io
