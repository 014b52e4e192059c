#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

/// Files that are either whole or absent.
///
/// Whoever is killed at any moment, and whatever the disk does, nothing half-written stands under a file's
/// name: data goes to `<name>.tmp` in the same directory, then
///   1. fsync of the temporary file (the data is on the disk),
///   2. rename to the name (atomic within a directory),
///   3. fsync of the directory (the new name is on the disk).
/// Failing system calls throw with the path and the system's words: `CorruptFile` when what should be read is
/// not there, no regular file or closed to this user, `ResourceError` otherwise.
namespace lcomp::io {

class Descriptor;
class Hasher;

/// A whole file by content: what the journal and the job's record remember.
struct FileRecord {
  std::string name;  ///< path relative to a directory that the user of the record knows
  uint64_t bytes = 0;
  std::string hash;  ///< XXH3-128, see io/hash.h

  bool operator==(const FileRecord&) const = default;
};

/// The record of `dir / name`, by reading it.
FileRecord record_of(const std::filesystem::path& dir, const std::string& name);

/// Whether something stands under the path. What can't be looked at counts as absent.
bool is_there(const std::filesystem::path& path);

/// The whole content of a file.
std::string read_file(const std::filesystem::path& path);

/// Makes `path` hold exactly `bytes`, replacing what was there. Returns the record, named by the file name.
FileRecord write_file_atomic(const std::filesystem::path& path, std::string_view bytes);

/// Makes `to` a copy of the bytes of `from`, replacing what was there. Returns its record.
FileRecord copy_file_atomic(const std::filesystem::path& from, const std::filesystem::path& to);

/// A file that appears under its name only in `commit`. One writer per path at a time.
class AtomicFile {
 public:
  /// Creates (or empties) `<path>.tmp`.
  explicit AtomicFile(std::filesystem::path path);
  /// Removes the temporary file when there was no `commit`.
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }

  /// Bytes written so far.
  uint64_t size() const { return size_; }

  /// fsync, rename, fsync of the directory. Returns the record, named by the file name.
  FileRecord commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  std::unique_ptr<Descriptor> file_;
  std::unique_ptr<Hasher> hasher_;
  uint64_t size_ = 0;
};

/// Creates the directory and its parents where they do not exist, and puts their names on the disk.
void make_directories(const std::filesystem::path& dir);

/// The entries of a directory, sorted by name.
std::vector<std::filesystem::path> list_directory(const std::filesystem::path& dir);

/// Puts the names in a directory on the disk (fsync of the directory).
void sync_directory(const std::filesystem::path& dir);

/// Puts every file and directory below `dir`, then `dir` itself, on the disk.
void sync_tree(const std::filesystem::path& dir);

/// Bytes that this user may still write to the file system of `dir`.
uint64_t available_bytes(const std::filesystem::path& dir);

/// Sum of the sizes of all regular files in `dir` and below it.
uint64_t bytes_of_files(const std::filesystem::path& dir);

/// Throws `ResourceError` naming both figures when fewer than `needed` bytes are available in `dir`.
void require_free_space(const std::filesystem::path& dir, uint64_t needed);

}  // namespace lcomp::io
