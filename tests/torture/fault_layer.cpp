// A layer under the C library, loaded with LD_PRELOAD, that sees what a program does to the files of one
// folder: counts the calls, writes them down, and lets one of them fail or be the program's last.
//
//   LCOMP_FAULT_ROOT=DIR          the folder; nothing is done without it
//   LCOMP_FAULT_LOG=FILE          a line per call that changed something or read, and FILE.data with the
//   bytes written LCOMP_FAULT_KILL_AT=N         SIGKILL instead of change number N (from 1); of a write,
//   after half of its bytes LCOMP_FAULT_ERROR_AT=N:ENOSPC change number N fails so; of a write, after half of
//   its bytes LCOMP_FAULT_ERROR_AT=N+:...   and so do all that need space after it, as on a disk that is full
//   LCOMP_FAULT_READ_ERROR_AT=N:EIO   read number N fails so
//   LCOMP_FAULT_SHORT=1           reads and writes give one byte less than half of what was asked for
//
// A program that is linked with the layer may change these variables and call lcomp_fault_configure().
//
// Changes are open with creation or truncation, mkdir, write, ftruncate, fallocate, fsync, rename, link,
// unlink and rmdir. A line of the log: number, kind, inode, offset or size, bytes, path, second path,
// separated by tabs.
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>

namespace {

struct Fault {
  long at = 0;  ///< number of the call; 0 for none
  bool stays = false;
  int code = 0;
};

Fault fault_from(const char* variable) {
  Fault fault;
  const char* text = std::getenv(variable);
  if (text == nullptr) return fault;
  char* end = nullptr;
  fault.at = std::strtol(text, &end, 10);
  if (*end == '+') {
    fault.stays = true;
    ++end;
  }
  fault.code = std::strcmp(end, ":ENOSPC") == 0 ? ENOSPC : EIO;
  return fault;
}

const char* text_of(const char* variable) {
  const char* text = std::getenv(variable);
  return text != nullptr ? text : "";
}

int open_beside(const std::string& file) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, file.c_str(), kFlags, 0600));
}

/// Everything the layer remembers. Made at the first call and never destroyed: the program may close files to
/// its very end.
struct Layer {
  std::string root;
  int log = -1;
  int data = -1;
  long changes = 0;
  long reads = 0;
  long kill_at = 0;
  Fault error;
  Fault read_error;
  bool is_short = false;
  std::array<std::string*, 4096> paths{};  ///< of the watched files that are open, by descriptor
  std::recursive_mutex mutex;

  Layer() { configure(); }

  void configure() {
    for (const int file : {log, data}) ::syscall(SYS_close, file);
    root = text_of("LCOMP_FAULT_ROOT");
    const std::string file = text_of("LCOMP_FAULT_LOG");
    log = file.empty() ? -1 : open_beside(file);
    data = file.empty() ? -1 : open_beside(file + ".data");
    changes = reads = 0;
    kill_at = std::atol(text_of("LCOMP_FAULT_KILL_AT"));
    error = fault_from("LCOMP_FAULT_ERROR_AT");
    read_error = fault_from("LCOMP_FAULT_READ_ERROR_AT");
    is_short = *text_of("LCOMP_FAULT_SHORT") != '\0';
  }
};

Layer& layer() {
  static auto* const it = new Layer;
  return *it;
}

template <class F>
F* real(const char* name) {
  return reinterpret_cast<F*>(::dlsym(RTLD_NEXT, name));
}
// The C library's own function behind the one of the same name here.
#define REAL(name) (real<decltype(::name)>(#name))

std::string absolute(int directory, const char* path) {
  if (*path == '/') return path;
  std::array<char, PATH_MAX> buffer{};
  const std::string link =
      directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/" + std::to_string(directory);
  const ssize_t length = ::readlink(link.c_str(), buffer.data(), buffer.size());
  return std::string(buffer.data(), length > 0 ? static_cast<size_t>(length) : 0) + "/" + path;
}

bool is_watched(const std::string& path) {
  const std::string& root = layer().root;
  return !root.empty() && path.starts_with(root) && (path.size() == root.size() || path[root.size()] == '/');
}

std::string path_of(int descriptor) {
  const auto& paths = layer().paths;
  const bool known = descriptor >= 0 && static_cast<size_t>(descriptor) < paths.size();
  const std::string* path = known ? paths[static_cast<size_t>(descriptor)] : nullptr;
  return path != nullptr ? *path : "";
}

void remember(int descriptor, const std::string& path) {
  auto& paths = layer().paths;
  if (descriptor < 0 || static_cast<size_t>(descriptor) >= paths.size()) return;
  std::string*& known = paths[static_cast<size_t>(descriptor)];
  delete known;
  known = is_watched(path) ? new std::string(path) : nullptr;
}

unsigned long inode_of(const std::string& path) {
  struct stat status {};
  return ::lstat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

unsigned long inode_of(int descriptor) {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 ? status.st_ino : 0;
}

struct Line {
  const char* kind;
  unsigned long inode = 0;
  long offset = 0;
  long bytes = 0;
  std::string path;
  std::string other = "";
};

void write_down(long number, const Line& line) {
  if (layer().log < 0) return;
  const int saved = errno;
  const std::string text = std::to_string(number) + "\t" + line.kind + "\t" + std::to_string(line.inode) +
                           "\t" + std::to_string(line.offset) + "\t" + std::to_string(line.bytes) + "\t" +
                           line.path + "\t" + line.other + "\n";
  [[maybe_unused]] const long ignored = ::syscall(SYS_write, layer().log, text.data(), text.size());
  errno = saved;
}

[[noreturn]] void end() {
  ::syscall(SYS_kill, ::getpid(), SIGKILL);
  for (;;) ::pause();
}

/// Counts a change. True when it shall fail, with errno set. `half` is what a write does before its end.
template <class Half>
bool fails(const char* kind, bool needs_space, const Half& half) {
  Layer& it = layer();
  const long number = ++it.changes;
  if (number == it.kill_at) {
    half();
    end();
  }
  const bool now = number == it.error.at || (it.error.stays && needs_space && number > it.error.at);
  if (it.error.at == 0 || !now) return false;
  half();
  write_down(number, {.kind = "failed", .path = kind});
  errno = it.error.code;
  return true;
}

bool fails(const char* kind, bool needs_space) {
  return fails(kind, needs_space, [] {});
}

/// A change of the name `path`: counted, made by `change` unless it shall fail, written down when it worked.
template <class Change>
int changes_name(Line line, bool needs_space, const Change& change) {
  if (!is_watched(line.path) && !is_watched(line.other)) return change();
  const std::lock_guard lock(layer().mutex);
  if (fails(line.kind, needs_space)) return -1;
  line.inode = inode_of(line.path);
  const int result = change();
  if (result == 0) {
    if (line.inode == 0) line.inode = inode_of(line.path);
    write_down(layer().changes, line);
  }
  return result;
}

/// `flags` as of open(2); `open_it` opens. Opening an existing file to read it or to write to it is no
/// change.
template <class Open>
int opens(const std::string& path, int flags, const Open& open_it) {
  if (!is_watched(path)) {
    const int descriptor = open_it();
    if (descriptor >= 0) remember(descriptor, path);
    return descriptor;
  }
  const std::lock_guard lock(layer().mutex);
  struct stat status {};
  const bool is_there = ::stat(path.c_str(), &status) == 0;
  const bool creates = (flags & O_CREAT) != 0 && !is_there;
  const bool empties = (flags & O_TRUNC) != 0 && is_there;
  const char* kind = creates ? "create" : "truncate";
  if ((creates || empties) && fails(kind, creates)) return -1;
  const int descriptor = open_it();
  if (descriptor < 0) return descriptor;
  remember(descriptor, path);
  if (creates || empties)
    write_down(layer().changes, {.kind = kind, .inode = inode_of(descriptor), .path = path});
  return descriptor;
}

size_t granted(size_t bytes) {
  return layer().is_short && bytes > 3 ? bytes / 2 - 1 : bytes;
}

/// Writes at `offset`, or where the descriptor stands when that is negative.
ssize_t writes(int descriptor, const void* bytes, size_t count, off_t offset) {
  const auto write_it = [&](size_t size) {
    return static_cast<ssize_t>(offset < 0 ? ::syscall(SYS_write, descriptor, bytes, size)
                                           : ::syscall(SYS_pwrite64, descriptor, bytes, size, offset));
  };
  const std::string path = path_of(descriptor);
  if (path.empty()) return write_it(count);
  const std::lock_guard lock(layer().mutex);
  if (fails("write", true, [&] { write_it(count / 2); })) return -1;
  struct stat status {};
  ::fstat(descriptor, &status);
  off_t start = offset >= 0 ? offset : ::lseek(descriptor, 0, SEEK_CUR);
  if (offset < 0 && (::fcntl(descriptor, F_GETFL) & O_APPEND) != 0) start = status.st_size;
  const ssize_t written = write_it(granted(count));
  if (written >= 0) {
    if (layer().data >= 0) [[maybe_unused]]
      const long ignored = ::syscall(SYS_write, layer().data, bytes, written);
    write_down(layer().changes,
               {.kind = "write", .inode = status.st_ino, .offset = start, .bytes = written, .path = path});
  }
  return written;
}

/// `read_it(most)` reads at most so many of the `count` bytes.
template <class Read>
ssize_t reads(int descriptor, size_t count, const Read& read_it) {
  const std::string path = path_of(descriptor);
  if (path.empty()) return read_it(count);
  const std::lock_guard lock(layer().mutex);
  Layer& it = layer();
  const long number = ++it.reads;
  write_down(number, {.kind = "read", .bytes = static_cast<long>(count), .path = path});
  if (number == it.read_error.at) {
    errno = it.read_error.code;
    return -1;
  }
  return read_it(granted(count));
}

template <class Sync>
int syncs(int descriptor, const Sync& sync) {
  const std::string path = path_of(descriptor);
  if (path.empty()) return sync();
  const std::lock_guard lock(layer().mutex);
  if (fails("sync", true)) return -1;
  const int result = sync();
  if (result == 0) write_down(layer().changes, {.kind = "sync", .inode = inode_of(descriptor), .path = path});
  return result;
}

int resizes(int descriptor, off_t size, const char* kind, bool needs_space, int (*change)(int, off_t)) {
  const std::string path = path_of(descriptor);
  if (path.empty()) return change(descriptor, size);
  const std::lock_guard lock(layer().mutex);
  if (fails(kind, needs_space)) return -1;
  const int result = change(descriptor, size);
  if (result == 0)
    write_down(layer().changes, {.kind = kind, .inode = inode_of(descriptor), .offset = size, .path = path});
  return result;
}

int flags_of(const char* mode) {
  if (*mode == 'r') return O_RDONLY;
  return *mode == 'w' ? O_CREAT | O_TRUNC : O_CREAT;
}

template <class Open>
FILE* opens_stream(const char* path, const char* mode, const Open& open_it) {
  FILE* stream = nullptr;
  opens(absolute(AT_FDCWD, path), flags_of(mode), [&] {
    stream = open_it();
    return stream != nullptr ? ::fileno(stream) : -1;
  });
  return stream;
}

mode_t mode_in(int flags, va_list arguments) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(arguments, mode_t) : 0;
}

}  // namespace

extern "C" {

void lcomp_fault_configure() {
  const std::lock_guard lock(layer().mutex);
  layer().configure();
}

#define OPEN_WITH(name, directory, path, ...)    \
  va_list arguments;                             \
  va_start(arguments, flags);                    \
  const mode_t mode = mode_in(flags, arguments); \
  va_end(arguments);                             \
  return opens(absolute(directory, path), flags, [&] { return REAL(name)(__VA_ARGS__, mode); })

int open(const char* path, int flags, ...) {
  OPEN_WITH(open, AT_FDCWD, path, path, flags);
}
int open64(const char* path, int flags, ...) {
  OPEN_WITH(open64, AT_FDCWD, path, path, flags);
}
int openat(int dir, const char* path, int flags, ...) {
  OPEN_WITH(openat, dir, path, dir, path, flags);
}
int openat64(int dir, const char* path, int flags, ...) {
  OPEN_WITH(openat64, dir, path, dir, path, flags);
}

FILE* fopen(const char* path, const char* mode) {
  return opens_stream(path, mode, [&] { return REAL(fopen)(path, mode); });
}
FILE* fopen64(const char* path, const char* mode) {
  return opens_stream(path, mode, [&] { return REAL(fopen64)(path, mode); });
}

int close(int descriptor) {
  const std::lock_guard lock(layer().mutex);
  remember(descriptor, "");
  return REAL(close)(descriptor);
}
int fclose(FILE* stream) {
  const std::lock_guard lock(layer().mutex);
  remember(::fileno(stream), "");
  return REAL(fclose)(stream);
}

ssize_t write(int descriptor, const void* bytes, size_t count) {
  return writes(descriptor, bytes, count, -1);
}
ssize_t pwrite(int descriptor, const void* bytes, size_t count, off_t at) {
  return writes(descriptor, bytes, count, at);
}
ssize_t pwrite64(int descriptor, const void* bytes, size_t count, off64_t at) {
  return writes(descriptor, bytes, count, at);
}
ssize_t writev(int descriptor, const iovec* parts, int count) {
  if (path_of(descriptor).empty()) return REAL(writev)(descriptor, parts, count);
  std::string all;
  for (int i = 0; i < count; ++i) all.append(static_cast<const char*>(parts[i].iov_base), parts[i].iov_len);
  return writes(descriptor, all.data(), all.size(), -1);
}

ssize_t read(int descriptor, void* bytes, size_t count) {
  return reads(descriptor, count, [&](size_t most) { return REAL(read)(descriptor, bytes, most); });
}
ssize_t pread(int descriptor, void* bytes, size_t count, off_t at) {
  return reads(descriptor, count, [&](size_t most) { return REAL(pread)(descriptor, bytes, most, at); });
}
ssize_t pread64(int descriptor, void* bytes, size_t count, off64_t at) {
  return reads(descriptor, count, [&](size_t most) { return REAL(pread64)(descriptor, bytes, most, at); });
}

int fsync(int descriptor) {
  return syncs(descriptor, [&] { return REAL(fsync)(descriptor); });
}
int fdatasync(int descriptor) {
  return syncs(descriptor, [&] { return REAL(fdatasync)(descriptor); });
}

int ftruncate(int descriptor, off_t size) noexcept {
  return resizes(descriptor, size, "resize", false, REAL(ftruncate));
}
int ftruncate64(int descriptor, off64_t size) noexcept {
  return resizes(descriptor, size, "resize", false, REAL(ftruncate64));
}
int posix_fallocate(int descriptor, off_t offset, off_t size) {
  const int result = resizes(descriptor, offset + size, "resize", true, [](int file, off_t end_of_file) {
    return static_cast<int>(::syscall(SYS_fallocate, file, 0, 0L, end_of_file));
  });
  return result == 0 ? 0 : errno;
}
int posix_fallocate64(int descriptor, off64_t offset, off64_t size) {
  return posix_fallocate(descriptor, offset, size);
}

int rename(const char* from, const char* to) noexcept {
  return changes_name({.kind = "rename", .path = absolute(AT_FDCWD, from), .other = absolute(AT_FDCWD, to)},
                      false, [&] { return REAL(rename)(from, to); });
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) noexcept {
  return changes_name({.kind = "rename", .path = absolute(from_dir, from), .other = absolute(to_dir, to)},
                      false, [&] { return REAL(renameat2)(from_dir, from, to_dir, to, flags); });
}
int link(const char* from, const char* to) noexcept {
  return changes_name({.kind = "link", .path = absolute(AT_FDCWD, from), .other = absolute(AT_FDCWD, to)},
                      true, [&] { return REAL(link)(from, to); });
}
int unlink(const char* path) noexcept {
  return changes_name({.kind = "unlink", .path = absolute(AT_FDCWD, path)}, false,
                      [&] { return REAL(unlink)(path); });
}
int rmdir(const char* path) noexcept {
  return changes_name({.kind = "rmdir", .path = absolute(AT_FDCWD, path)}, false,
                      [&] { return REAL(rmdir)(path); });
}
int unlinkat(int dir, const char* path, int flags) noexcept {
  return changes_name({.kind = (flags & AT_REMOVEDIR) != 0 ? "rmdir" : "unlink", .path = absolute(dir, path)},
                      false, [&] { return REAL(unlinkat)(dir, path, flags); });
}
int remove(const char* path) noexcept {
  struct stat status {};
  const bool is_directory = ::lstat(path, &status) == 0 && S_ISDIR(status.st_mode);
  if (::lstat(path, &status) != 0) return REAL(remove)(path);  // fails, and is no change
  return changes_name({.kind = is_directory ? "rmdir" : "unlink", .path = absolute(AT_FDCWD, path)}, false,
                      [&] { return REAL(remove)(path); });
}
int mkdir(const char* path, mode_t mode) noexcept {
  return changes_name({.kind = "mkdir", .path = absolute(AT_FDCWD, path)}, true,
                      [&] { return REAL(mkdir)(path, mode); });
}

}  // extern "C"
