#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace lcomp::calib {

/// One float32 matrix `[tokens_i, width]` per sample, in memory or in a file: the hidden states of all
/// calibration samples between two blocks. Different samples may be loaded and stored by different threads at
/// once.
class ActivationCache {
 public:
  enum class Storage { kMemory, kDisk };

  /// Room for `lengths[i]` rows of at most `width` columns per sample. The file of a disk cache is made at
  /// `file`, which must not exist, with all its space reserved up front; it is removed with the cache.
  ActivationCache(std::vector<int64_t> lengths, int64_t width, Storage storage,
                  const std::filesystem::path& file = {});
  ~ActivationCache();
  ActivationCache(ActivationCache&&) noexcept;

  int64_t samples() const;
  int64_t length(int64_t sample) const;
  int64_t width() const;
  Storage storage() const;

  /// `[length, columns]`, columns <= width. From memory this is the cache's own tensor: changing it changes
  /// the cache. From disk it is a copy.
  at::Tensor load(int64_t sample, int64_t columns) const;
  /// Keeps the contents of a contiguous `[length, columns]` tensor. Free when it is the cache's own memory.
  void store(int64_t sample, const at::Tensor& values);

  /// Bytes that a cache of these lengths and width takes, wherever it is kept. Throws ResourceError above
  /// 2^56, so that sums of several are exact.
  static uint64_t bytes_needed(const std::vector<int64_t>& lengths, int64_t width);

  /// Writes all samples, `columns` wide, to a file, and reads such a file back; returns the hash of the
  /// contents. `read_from` throws CorruptFile when the file has another size.
  std::string write_to(const std::filesystem::path& file, int64_t columns) const;
  std::string read_from(const std::filesystem::path& file, int64_t columns);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace lcomp::calib
