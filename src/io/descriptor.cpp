#include "io/descriptor.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

/// Linux moves at most 2^31 - 4096 bytes in one call; smaller requests keep signals from being delayed.
constexpr size_t kMostPerCall = size_t{1} << 28;
constexpr uint64_t kPieceBytes = uint64_t{1} << 20;

std::string system_failure(const std::string& must_be, int code) {
  return fmt::format("the file must be {}; {}", must_be, std::strerror(code));
}

/// open(2), again when a signal interrupts it; negative when it fails.
int try_open(const std::filesystem::path& path, int flags, int mode) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

}  // namespace

void throw_system_error(const std::filesystem::path& path, const std::string& must_be) {
  const int code = errno;
  throw ResourceError(path.string(), system_failure(must_be, code));
}

Descriptor open_file(const std::filesystem::path& path, int flags, int mode) {
  // What is created is ours: a link that somebody has put there leads to what is not.
  const int fd = try_open(path, (flags & O_CREAT) != 0 ? flags | O_NOFOLLOW : flags, mode);
  if (fd < 0) throw_system_error(path, (flags & O_CREAT) != 0 ? "created" : "opened");
  return Descriptor(fd);
}

bool is_bad_input(int code) {
  constexpr std::array kCodes = {ENOENT, ENOTDIR, EISDIR, EACCES, EPERM, ELOOP, ENAMETOOLONG, ENXIO};
  return std::find(kCodes.begin(), kCodes.end(), code) != kCodes.end();
}

Descriptor open_input(const std::filesystem::path& path) {
  // Without O_NONBLOCK a pipe would wait for a writer before it could be refused.
  const int fd = try_open(path, O_RDONLY | O_NONBLOCK, 0);
  const int code = errno;
  if (fd < 0 && is_bad_input(code)) throw CorruptFile(path.string(), system_failure("opened", code));
  if (fd < 0) throw_system_error(path, "opened");
  return Descriptor(fd);
}

uint64_t file_size(const Descriptor& file, const std::filesystem::path& path) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) throw_system_error(path, "examined");
  if (!S_ISREG(status.st_mode))
    throw CorruptFile(path.string(), "the file must be a regular file; it is a directory or a device");
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

void read_in_pieces(const Descriptor& file, const std::filesystem::path& path,
                    const std::function<void(std::span<const std::byte>)>& take) {
  const uint64_t size = file_size(file, path);
  std::vector<std::byte> buffer(std::min(size, kPieceBytes));
  for (uint64_t done = 0; done < size;) {
    const auto piece = std::span(buffer).first(std::min(kPieceBytes, size - done));
    read_all(file, path, done, piece);
    take(piece);
    done += piece.size();
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
