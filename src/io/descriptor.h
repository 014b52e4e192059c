#pragma once

#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>

/// Thin checked layer over POSIX file descriptors. Every failure reads `[path] the file must be <done>; <the
/// system's words>`: a `CorruptFile` where an input is not there or no file to read, a `ResourceError`
/// elsewhere.
namespace lcomp::io {

/// Owns a file descriptor.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }

 private:
  int fd_ = -1;
};

/// Throws for the current `errno`; `must_be` is "opened", "written" ...
[[noreturn]] void throw_system_error(const std::filesystem::path& path, const std::string& must_be);

/// open(2) with O_CLOEXEC.
Descriptor open_file(const std::filesystem::path& path, int flags, int mode = 0644);

/// Whether the system's `code` says that a path gives nothing to read: nothing has this name, something on
/// the way is no directory, or this user may not read it. What is left are failures of the machine.
bool is_bad_input(int code);

/// Opens a file that somebody else made, for reading. What `is_bad_input` is `CorruptFile`.
Descriptor open_input(const std::filesystem::path& path);

/// Size of a regular file; anything else that can be opened (directory, pipe, device) is `CorruptFile`.
uint64_t file_size(const Descriptor& file, const std::filesystem::path& path);

/// Writes all of `bytes`, however often the system has to be asked.
void write_all(const Descriptor& file, const std::filesystem::path& path, std::span<const std::byte> bytes);

/// Fills `out` from `offset` on; a file that ends earlier is an error.
void read_all(const Descriptor& file, const std::filesystem::path& path, uint64_t offset,
              std::span<std::byte> out);

/// Hands the whole of a regular file to `take`, a megabyte at a time.
void read_in_pieces(const Descriptor& file, const std::filesystem::path& path,
                    const std::function<void(std::span<const std::byte>)>& take);

void truncate_file(const Descriptor& file, const std::filesystem::path& path, uint64_t size);

void sync_file(const Descriptor& file, const std::filesystem::path& path);

}  // namespace lcomp::io
