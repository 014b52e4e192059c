#include "lcomp/io/files.h"

#include <fcntl.h>
#include <sys/statvfs.h>

#include <cstdio>

#include "io/descriptor.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"

namespace lcomp::io {
namespace {

std::filesystem::path directory_of(const std::filesystem::path& path) {
  const std::filesystem::path parent = path.parent_path();
  return parent.empty() ? std::filesystem::path(".") : parent;
}

}  // namespace

bool is_there(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file = open_input(path);
  std::string content(file_size(file, path), '\0');
  read_all(file, path, 0, std::as_writable_bytes(std::span(content)));
  return content;
}

FileRecord record_of(const std::filesystem::path& dir, const std::string& name) {
  const std::filesystem::path path = dir / name;
  const uint64_t bytes = file_size(open_input(path), path);
  return {.name = name, .bytes = bytes, .hash = hash_of_file(path)};
}

FileRecord write_file_atomic(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.write(bytes);
  return file.commit();
}

FileRecord copy_file_atomic(const std::filesystem::path& from, const std::filesystem::path& to) {
  const Descriptor source = open_input(from);
  file_size(source, from);  // refuses what is no regular file before anything is made
  AtomicFile target(to);
  read_in_pieces(source, from, [&](std::span<const std::byte> piece) { target.write(piece); });
  return target.commit();
}

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  temporary_ = path_;
  temporary_ += ".tmp";
  file_ = std::make_unique<Descriptor>(open_file(temporary_, O_WRONLY | O_CREAT | O_TRUNC));
  hasher_ = std::make_unique<Hasher>();
}

AtomicFile::~AtomicFile() {
  if (file_->valid()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (!file_->valid()) throw InvalidArgument("AtomicFile::write", "must come before commit; it came after");
  write_all(*file_, path_, bytes);
  hasher_->add(bytes.data(), bytes.size());
  size_ += bytes.size();
}

FileRecord AtomicFile::commit() {
  if (!file_->valid()) throw InvalidArgument("AtomicFile::commit", "must be called once; it came again");
  sync_file(*file_, path_);
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) throw_system_error(path_, "given its name");
  file_->reset();
  sync_directory(directory_of(path_));
  return {.name = path_.filename().string(), .bytes = size_, .hash = hasher_->hex()};
}

void make_directories(const std::filesystem::path& dir) {
  std::error_code error;
  if (dir.empty() || std::filesystem::is_directory(dir, error)) return;
  const std::filesystem::path parent = directory_of(dir);
  make_directories(parent);
  std::filesystem::create_directory(dir, error);
  if (error) throw ResourceError(dir.string(), "the directory must be created; " + error.message());
  sync_directory(parent);
}

std::vector<std::filesystem::path> list_directory(const std::filesystem::path& dir) {
  std::error_code error;
  std::vector<std::filesystem::path> entries;
  for (std::filesystem::directory_iterator it(dir, error), end; !error && it != end; it.increment(error))
    entries.push_back(it->path());
  if (error) {
    const std::string message = "the directory must be listed; " + error.message();
    if (is_bad_input(error.value())) throw CorruptFile(dir.string(), message);
    throw ResourceError(dir.string(), message);
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

void sync_directory(const std::filesystem::path& dir) {
  sync_file(open_file(dir, O_RDONLY | O_DIRECTORY), dir);
}

void sync_tree(const std::filesystem::path& dir) {
  for (const auto& entry : list_directory(dir)) {
    const auto status = std::filesystem::symlink_status(entry);
    if (std::filesystem::is_directory(status)) {
      sync_tree(entry);
    } else if (std::filesystem::is_regular_file(status)) {
      sync_file(open_file(entry, O_RDONLY), entry);
    }
  }
  sync_directory(dir);
}

uint64_t available_bytes(const std::filesystem::path& dir) {
  struct statvfs status {};
  if (::statvfs(dir.c_str(), &status) != 0) throw_system_error(dir, "on a file system that can be examined");
  return static_cast<uint64_t>(status.f_bavail) * status.f_frsize;
}

uint64_t bytes_of_files(const std::filesystem::path& dir) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(dir)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

void require_free_space(const std::filesystem::path& dir, uint64_t needed) {
  const uint64_t available = available_bytes(dir);
  if (available < needed)
    throw ResourceError(dir.string(),
                        fmt::format("the disk must have {} bytes free; {} are available", needed, available));
}

}  // namespace lcomp::io
