#include "lcomp/io/work_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "io/descriptor.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockFile = "lock";

/// Whether anything at all has this name, a dangling link included.
bool is_taken(const fs::path& path) {
  std::error_code ignored;
  return fs::exists(fs::symlink_status(path, ignored));
}

[[noreturn]] void refuse_existing(const fs::path& output) {
  throw ConfigError(output.string(), "the output must not exist yet; it does, and nothing is overwritten");
}

/// Absolute and without a trailing slash, so that names can be appended.
fs::path normal(const fs::path& output) {
  fs::path path = output.empty() ? output : fs::absolute(output).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (!path.has_filename())
    throw ConfigError(
        "output", fmt::format("must be the name of a directory to create; it is \"{}\"", output.string()));
  return path;
}

fs::path work_path(const fs::path& output) {
  fs::path path = output;
  path += ".lcomp-work";
  return path;
}

std::string host_name() {
  std::string name(256, '\0');
  if (::gethostname(name.data(), name.size() - 1) != 0) return "unknown";
  name.resize(name.find('\0'));
  return name;
}

/// The lock file may have been removed by its last owner between our open and our flock; then the lock holds
/// nobody off.
bool still_named(const Descriptor& file, const fs::path& path) {
  struct stat ours {};
  struct stat named {};
  return ::fstat(file.get(), &ours) == 0 && ::stat(path.c_str(), &named) == 0 &&
         ours.st_ino == named.st_ino && ours.st_dev == named.st_dev;
}

/// In a directory that others may write into, such as /tmp, somebody may have made the working directory
/// first, to have what is written into it led elsewhere.
void require_own(const fs::path& dir) {
  struct stat status {};
  if (::lstat(dir.c_str(), &status) != 0) throw_system_error(dir, "looked at");
  if (S_ISDIR(status.st_mode) && status.st_uid == ::geteuid()) return;
  throw ResourceError(
      dir.string(),
      fmt::format("the working directory must be a directory of this user ({}); it is {}. Remove it, or run "
                  "as its owner",
                  ::geteuid(),
                  S_ISLNK(status.st_mode) ? "a symbolic link" : fmt::format("of user {}", status.st_uid)));
}

/// Temporary files of writers that were killed.
void remove_temporaries(const fs::path& dir) {
  for (const fs::path& entry : list_directory(dir)) {
    const auto status = fs::symlink_status(entry);
    if (fs::is_directory(status)) {
      remove_temporaries(entry);
    } else if (entry.extension() == ".tmp") {
      std::error_code ignored;
      fs::remove(entry, ignored);
    }
  }
}

/// rename(2) that never replaces anything. Where the file system cannot promise that, what exists is checked
/// first: a directory would only be replaced when empty.
void rename_to_free_name(const fs::path& from, const fs::path& to) {
  if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0) return;
  if (errno == EINVAL || errno == ENOSYS) {
    if (is_taken(to)) refuse_existing(to);
    if (std::rename(from.c_str(), to.c_str()) == 0) return;
  }
  if (errno == EEXIST || errno == ENOTEMPTY) refuse_existing(to);
  throw_system_error(to, "given its name");
}

}  // namespace

WorkDir::WorkDir(const fs::path& output, const std::string& job_key)
    : output_(normal(output)), path_(work_path(output_)) {
  if (is_taken(output_) && !is_taken(path_)) refuse_existing(output_);
  lock();
  if (is_taken(output_)) {
    // Killed in the last steps of `remove`: there is nothing to continue, and nothing that says whose it was.
    if (list_directory(path_).size() == 1) remove();
    if (Journal::job_of(path_) != job_key || is_taken(staging())) refuse_existing(output_);
    published_ = true;
  }
  take_over(job_key);
}

WorkDir::~WorkDir() = default;

void WorkDir::lock() {
  const fs::path file = path_ / kLockFile;
  do {
    make_directories(path_);
    require_own(path_);
    lock_ = std::make_unique<Descriptor>(open_file(file, O_RDWR | O_CREAT));
    if (::flock(lock_->get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) throw_system_error(file, "locked");
      std::string owner = read_file(file);
      throw ResourceError(path_.string(), fmt::format("the working directory must be free; {} is using it",
                                                      owner.empty() ? "another process" : owner));
    }
  } while (!still_named(*lock_, file));
  truncate_file(*lock_, file, 0);
  const std::string owner = fmt::format("process {} on host {}", ::getpid(), host_name());
  write_all(*lock_, file, std::as_bytes(std::span(owner)));
}

void WorkDir::take_over(const std::string& job_key) {
  if (const auto job = Journal::job_of(path_); job != job_key) {
    const bool empty = list_directory(path_).size() == 1;  // the lock
    if (!empty)
      discarded_ = fmt::format("[{}] {}: its files are removed and the run starts from the beginning",
                               path_.string(), job ? other_job(*job, job_key) : "it has no valid journal");
    // Before the new journal is there: a crash in between must not leave foreign files under our journal.
    clear();
  }
  journal_ = std::make_unique<Journal>(path_, job_key);
  if (discarded_.empty()) discarded_ = journal_->discarded();
  if (!published_) {
    remove_temporaries(path_);
    make_directories(staging());
  }
}

void WorkDir::clear() {
  for (const fs::path& entry : list_directory(path_)) {
    if (entry.filename() == kLockFile) continue;
    std::error_code error;
    fs::remove_all(entry, error);
    if (error)
      throw ResourceError(entry.string(), "what another run left must be removed; " + error.message());
  }
}

void WorkDir::publish() {
  if (published_)
    throw InvalidArgument("WorkDir::publish", "must be called once; the output is already published");
  sync_tree(staging());
  rename_to_free_name(staging(), output_);
  published_ = true;
  sync_directory(output_.parent_path());
  remove();
}

void WorkDir::remove() {
  std::error_code ignored;
  for (fs::directory_iterator it(path_, ignored), end; !ignored && it != end; it.increment(ignored)) {
    const fs::path name = it->path().filename();
    if (name == kLockFile || name == Journal::kFileName) continue;
    std::error_code entry_ignored;
    fs::remove_all(it->path(), entry_ignored);
  }
  // The journal goes last but the lock, on the disk too: as long as it is there, `published` can be told.
  try {
    sync_directory(path_);
  } catch (const ResourceError&) {
  }
  fs::remove(path_ / Journal::kFileName, ignored);
  fs::remove(path_ / kLockFile, ignored);
  fs::remove(path_, ignored);
}

}  // namespace lcomp::io
