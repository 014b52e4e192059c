#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace lcomp::io {

/// Streaming XXH3-128, the content hash of everything lcomp records. Not cryptographic: it detects change,
/// not malice.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  Hasher(const Hasher&) = delete;
  Hasher& operator=(const Hasher&) = delete;

  void add(const void* data, size_t bytes);
  void add(std::string_view text) { add(text.data(), text.size()); }

  /// 32 lower-case hexadecimal digits of all that was added so far.
  std::string hex() const;

 private:
  void* state_;
};

std::string hash_of(std::string_view text);

/// Hash of a file's bytes. Throws as io/files.h says when it cannot be read.
std::string hash_of_file(const std::filesystem::path& path);

}  // namespace lcomp::io
