#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "lcomp/io/stored_tensor.h"

namespace lcomp::io {

/// A read-only map from names to tensors that are loaded when asked for. All methods may be called from
/// several threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  /// Sorted.
  virtual const std::vector<std::string>& names() const = 0;
  virtual bool contains(const std::string& name) const = 0;

  /// Type and shape, without reading the values. Throws `CorruptFile` when there is no such tensor; so do
  /// all methods below.
  virtual const TensorInfo& info(const std::string& name) const = 0;
  /// The tensor in its own type; errors of `decode`.
  virtual at::Tensor read(const std::string& name) const = 0;
  /// The tensor as float32; errors of `decode_as_float`.
  virtual at::Tensor read_as_float(const std::string& name) const = 0;
  /// Copies bytes [offset, offset + out.size()) of the tensor as stored.
  virtual void read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const = 0;
  /// Where the tensor comes from, for messages: the path of its file.
  virtual std::string file_of(const std::string& name) const = 0;

  /// What is odd but harmless, for the report.
  virtual const std::vector<std::string>& warnings() const = 0;

  /// The bytes of a tensor of 8-bit elements as uint8 of its shape, whatever they mean: the way to read the
  /// 8-bit floating-point types. Throws `CorruptFile` when its elements have another size.
  at::Tensor read_codes(const std::string& name) const;

  /// Hash of type, shape and bytes of one tensor; takes no more memory than a small buffer.
  std::string hash_of_tensor(const std::string& name) const;
  /// Stored bytes of all tensors.
  uint64_t total_bytes() const;
};

using CheckpointPtr = std::shared_ptr<const Checkpoint>;

/// Opens a Hugging Face model directory (`model.safetensors`, else the shards that
/// `model.safetensors.index.json` lists) or a single safetensors file.
///
/// The headers of all files are read and checked. Refused with `CorruptFile`: a file name in the index that
/// has a directory, a listed file that is missing, a listed tensor that its file does not have, a tensor in
/// two shards with different contents. Refused with `Unsupported`: a directory with only PyTorch pickles
/// (a pickle is a program) or other formats. Warnings: a wrong `total_size`, tensors that the index does not
/// list, an index beside a single file.
CheckpointPtr open_checkpoint(const std::filesystem::path& path);

/// Tensors in memory, for tests and for models made by code.
class MemoryCheckpoint final : public Checkpoint {
 public:
  /// `float8` names those of the tensors that are E4M3 numbers, given by their bytes.
  explicit MemoryCheckpoint(const std::map<std::string, at::Tensor>& tensors,
                            const std::set<std::string>& float8 = {});

  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return entries_.contains(name); }
  const TensorInfo& info(const std::string& name) const override;
  at::Tensor read(const std::string& name) const override;
  at::Tensor read_as_float(const std::string& name) const override;
  void read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const override;
  std::string file_of(const std::string& name) const override;
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  struct Entry {
    TensorInfo info;
    at::Tensor tensor;
  };
  const Entry& entry(const std::string& name) const;

  std::map<std::string, Entry> entries_;
  std::vector<std::string> names_;
  std::vector<std::string> warnings_;
};

}  // namespace lcomp::io
