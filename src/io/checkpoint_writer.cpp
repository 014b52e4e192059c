#include "lcomp/io/checkpoint_writer.h"

#include <memory>
#include <unordered_map>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"

namespace lcomp::io {
namespace {

constexpr const char* kPartsFolder = "blocks";
constexpr uint64_t kReadBackBytes = uint64_t{1} << 20;

std::string part_file(const std::string& part) {
  return fmt::format("{}/{}.safetensors", kPartsFolder, part);
}

std::string shard_file(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  return fmt::format("model-{:05}-of-{:05}.safetensors", index + 1, count);
}

}  // namespace

CheckpointWriter::CheckpointWriter(std::filesystem::path work_dir) : work_dir_(std::move(work_dir)) {
  make_directories(work_dir_ / kPartsFolder);
}

void CheckpointWriter::add_pending(TensorInfo info, const at::Tensor& tensor) {
  if (!names_.insert(info.name).second)
    throw InvalidArgument("CheckpointWriter::add",
                          fmt::format("a tensor must be added once; {} comes again", quote_name(info.name)));
  pending_.push_back({std::move(info), tensor});
}

void CheckpointWriter::add(const std::string& name, const at::Tensor& tensor) {
  if (!tensor.defined())
    throw InvalidArgument("CheckpointWriter::add",
                          fmt::format("the tensor {} must be defined; it is not", quote_name(name)));
  add_pending(info_of(name, tensor), tensor);
}

void CheckpointWriter::add_float8_e4m3(const std::string& name, const at::Tensor& codes) {
  TensorInfo info = info_of(name, codes);
  if (info.dtype != StoredDtype::kU8 && info.dtype != StoredDtype::kI8)
    throw InvalidArgument("CheckpointWriter::add_float8_e4m3",
                          fmt::format("the codes must be bytes; {} came", describe(info)));
  info.dtype = StoredDtype::kF8E4M3;
  add_pending(std::move(info), codes);
}

void CheckpointWriter::add_from(const Checkpoint& source, const std::string& name) {
  const TensorInfo& info = source.info(name);
  at::Tensor bytes = at::empty({static_cast<int64_t>(info.bytes())}, at::kByte);
  source.read_bytes(name, 0, std::as_writable_bytes(std::span(bytes.data_ptr<uint8_t>(), info.bytes())));
  add_pending(info, bytes);
}

FileRecord CheckpointWriter::commit_part(const std::string& part) {
  std::vector<TensorInfo> infos;
  std::unordered_map<std::string, at::Tensor> by_name;
  for (const Pending& added : pending_) {
    infos.push_back(added.info);
    by_name.emplace(added.info.name, added.tensor);
    total_bytes_ += added.info.bytes();
  }
  SafetensorsWriter writer(path_of(part), std::move(infos));
  for (const TensorInfo& info : writer.tensors())
    writer.append(info.name, bytes_of(by_name.at(info.name).detach().cpu().contiguous()));
  FileRecord record = writer.finish();
  parts_.push_back(part);
  pending_.clear();
  record.name = part_file(part);
  return record;
}

void CheckpointWriter::adopt_part(const std::string& part) {
  const SafetensorsFile file(path_of(part));
  parts_.push_back(part);
  for (const TensorInfo& info : file.tensors()) {
    if (!names_.insert(info.name).second)
      throw InvalidArgument(
          "CheckpointWriter::adopt_part",
          fmt::format("a tensor must be added once; {} comes again", quote_name(info.name)));
    total_bytes_ += info.bytes();
  }
}

std::filesystem::path CheckpointWriter::path_of(const std::string& part) const {
  return work_dir_ / part_file(part);
}

std::vector<CheckpointWriter::Shard> CheckpointWriter::plan_shards(uint64_t shard_size) const {
  std::vector<Shard> shards(1);
  uint64_t filled = 0;
  for (size_t part = 0; part < parts_.size(); ++part) {
    std::vector<TensorInfo> tensors = SafetensorsFile(path_of(parts_[part])).tensors();
    std::sort(tensors.begin(), tensors.end(),
              [](const TensorInfo& a, const TensorInfo& b) { return a.name < b.name; });
    for (TensorInfo& info : tensors) {
      if (!shards.back().empty() && info.bytes() > shard_size - std::min(filled, shard_size)) {
        shards.emplace_back();
        filled = 0;
      }
      filled += info.bytes();
      shards.back().push_back({std::move(info), part});
    }
  }
  return shards;
}

FileRecord CheckpointWriter::write_shard(const std::filesystem::path& path, const Shard& shard) const {
  std::vector<TensorInfo> infos;
  std::unordered_map<std::string, size_t> part_of;
  for (const PartTensor& tensor : shard) {
    infos.push_back(tensor.info);
    part_of.emplace(tensor.info.name, tensor.part);
  }
  SafetensorsWriter writer(path, std::move(infos));
  std::vector<std::byte> buffer(kReadBackBytes);
  // Only one part is open at a time: a deep model has more parts than a process may have open files.
  std::unique_ptr<SafetensorsFile> source;
  size_t open_part = 0;
  for (const TensorInfo& info : writer.tensors()) {
    const size_t part = part_of.at(info.name);
    if (!source || part != open_part)
      source = std::make_unique<SafetensorsFile>(path_of(parts_[open_part = part]));
    for (uint64_t done = 0; done < info.bytes();) {
      const auto piece = std::span(buffer).first(std::min(kReadBackBytes, info.bytes() - done));
      source->read_bytes(info.name, done, piece);
      writer.append(info.name, piece);
      done += piece.size();
    }
  }
  return writer.finish();
}

std::vector<FileRecord> CheckpointWriter::finish(const std::filesystem::path& out_dir,
                                                 uint64_t shard_size) const {
  if (!pending_.empty())
    throw InvalidArgument("CheckpointWriter::finish",
                          fmt::format("all tensors must be in committed parts; {} is not",
                                      quote_name(pending_.front().info.name)));
  if (shard_size == 0)
    throw InvalidArgument("CheckpointWriter::finish", "shard_size must be at least 1 byte; it is 0");
  make_directories(out_dir);
  require_free_space(out_dir, total_bytes_);

  const std::vector<Shard> shards = plan_shards(shard_size);
  std::vector<FileRecord> files;
  Json weight_map = Json::object();  // sorted by name
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_file(i, shards.size());
    files.push_back(write_shard(out_dir / name, shards[i]));
    for (const PartTensor& tensor : shards[i]) weight_map[tensor.info.name] = name;
  }
  if (shards.size() > 1) {
    const Json index = {{"metadata", {{"total_size", total_bytes_}}}, {"weight_map", weight_map}};
    files.push_back(write_file_atomic(out_dir / "model.safetensors.index.json", index.dump(2) + "\n"));
  }
  return files;
}

}  // namespace lcomp::io
