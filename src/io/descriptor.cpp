#include "io/descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>

#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

/// Linux moves at most 2^31 - 4096 bytes in one call; smaller requests keep signals from being delayed.
constexpr size_t kMostPerCall = size_t{1} << 28;

}  // namespace

void throw_system_error(const std::filesystem::path& path, const std::string& must_be) {
  const int code = errno;
  throw ResourceError(path.string(), fmt::format("the file must be {}; {}", must_be, std::strerror(code)));
}

Descriptor open_file(const std::filesystem::path& path, int flags, int mode) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) throw_system_error(path, (flags & O_CREAT) != 0 ? "created" : "opened");
  return Descriptor(fd);
}

uint64_t file_size(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_system_error(path, "examined");
  if (!S_ISREG(status.st_mode))
    throw ResourceError(path.string(), "the file must be a regular file; it is a directory or a device");
  return static_cast<uint64_t>(status.st_size);
}

void write_all(const Descriptor& file, const std::filesystem::path& path, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file.get(), bytes.data(), std::min(bytes.size(), kMostPerCall));
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_system_error(path, "written");
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
}

void read_all(const Descriptor& file, const std::filesystem::path& path, uint64_t offset,
              std::span<std::byte> out) {
  while (!out.empty()) {
    const ssize_t got =
        ::pread(file.get(), out.data(), std::min(out.size(), kMostPerCall), static_cast<off_t>(offset));
    if (got < 0) {
      if (errno == EINTR) continue;
      throw_system_error(path, "read");
    }
    if (got == 0)
      throw ResourceError(
          path.string(),
          fmt::format("the file must be read; it ends at byte {}, before it did when opened", offset));
    out = out.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
}

void truncate_file(const Descriptor& file, const std::filesystem::path& path, uint64_t size) {
  if (::ftruncate(file.get(), static_cast<off_t>(size)) != 0)
    throw_system_error(path, "cut to its valid length");
}

void sync_file(const Descriptor& file, const std::filesystem::path& path) {
  // EINVAL: a special file that has nothing to synchronise.
  if (::fsync(file.get()) != 0 && errno != EINVAL) throw_system_error(path, "synchronised with the disk");
}

}  // namespace lcomp::io
