#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <unordered_set>
#include <vector>

#include "lcomp/core/weight.h"
#include "lcomp/io/checkpoint.h"
#include "lcomp/io/files.h"
#include "lcomp/io/stored_tensor.h"

namespace lcomp::io {

/// Writes a checkpoint block by block with the memory of one block, in a run that may be killed anywhere.
///
/// In the course of the run the tensors of a block are collected with `add` and stored with `commit_part` as
/// one file below `<work_dir>/blocks`. At the end `finish` copies the bytes of all parts into shards:
///
///     add add add  commit_part("0000")   -> blocks/0000.safetensors
///     add add      commit_part("0001")   -> blocks/0001.safetensors
///     finish(out, shard_size)            -> out/model-00001-of-00002.safetensors ... and the index
///
/// After a restart, `adopt_part` takes a part that the journal vouches for in place of computing it again.
/// `finish` leaves the parts alone and gives the same bytes when called again; they go with the working
/// directory once the output is published (`WorkDir::publish`). Until then the disk holds the checkpoint
/// twice.
class CheckpointWriter final : public TensorSink {
 public:
  explicit CheckpointWriter(std::filesystem::path work_dir);

  /// Takes a copy-free reference; the tensor must not change before `commit_part`. Throws `InvalidArgument`
  /// when the name was added before, in this part or another.
  void add(const std::string& name, const at::Tensor& tensor) override;
  void add_float8_e4m3(const std::string& name, const at::Tensor& codes) override;
  /// A tensor of another checkpoint, byte for byte, whatever its type.
  void add_from(const Checkpoint& source, const std::string& name);

  /// Stores what was added since the last part as part `part` ("0007"), atomically. The record's name is
  /// relative to the working directory.
  FileRecord commit_part(const std::string& part);

  /// Counts the existing file of part `part` as stored, in place of `add` and `commit_part`.
  void adopt_part(const std::string& part);

  /// The file that holds a part once it is committed.
  std::filesystem::path path_of(const std::string& part) const;

  /// Stored bytes of all tensors in the parts so far.
  uint64_t total_bytes() const { return total_bytes_; }

  /// Writes all parts, in the order in which they came, as a checkpoint in `out_dir`: `model.safetensors`
  /// when it takes at most `shard_size` bytes of tensors, else shards, filled greedily, and
  /// `model.safetensors.index.json`. A tensor larger than `shard_size` gets a shard of its own. What was
  /// added and not committed is an error. The records' names are relative to `out_dir`. Throws
  /// `ResourceError` before writing when the disk is too small.
  std::vector<FileRecord> finish(const std::filesystem::path& out_dir, uint64_t shard_size) const;

 private:
  struct PartTensor {
    TensorInfo info;
    size_t part;
  };
  using Shard = std::vector<PartTensor>;
  struct Pending {
    TensorInfo info;
    at::Tensor tensor;  ///< with the bytes that `info` describes, when contiguous
  };

  void add_pending(TensorInfo info, const at::Tensor& tensor);
  std::vector<Shard> plan_shards(uint64_t shard_size) const;
  FileRecord write_shard(const std::filesystem::path& path, const Shard& shard) const;

  std::filesystem::path work_dir_;
  std::vector<std::string> parts_;
  std::vector<Pending> pending_;
  std::unordered_set<std::string> names_;
  uint64_t total_bytes_ = 0;
};

}  // namespace lcomp::io
