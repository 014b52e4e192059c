#include "lcomp/calib/activation_cache.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"

namespace lcomp::calib {

struct ActivationCache::State {
  std::vector<int64_t> lengths;
  std::vector<int64_t> offsets;  // in floats
  int64_t width = 0;
  Storage storage = Storage::kMemory;
  std::filesystem::path file;
  int descriptor = -1;
  at::Tensor memory;

  ~State() {
    if (descriptor >= 0) {
      ::close(descriptor);
      std::error_code ignored;
      std::filesystem::remove(file, ignored);
    }
  }
};

namespace {

/// Beyond any machine.
constexpr uint64_t kMostBytes = uint64_t{1} << 56;

[[noreturn]] void fail(const std::filesystem::path& file, const char* what) {
  throw ResourceError(file.string(), fmt::format("{} must succeed; {}", what, std::strerror(errno)));
}

void write_all(int descriptor, const void* data, size_t bytes, off_t offset,
               const std::filesystem::path& file) {
  const char* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pwrite(descriptor, from, bytes, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail(file, "writing the activation cache");
    from += done;
    offset += done;
    bytes -= static_cast<size_t>(done);
  }
}

void read_all(int descriptor, void* data, size_t bytes, off_t offset, const std::filesystem::path& file) {
  char* to = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t done = ::pread(descriptor, to, bytes, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done == 0)
      throw ResourceError(file.string(), "reading the activation cache must succeed; the file is too short");
    if (done < 0) fail(file, "reading the activation cache");
    to += done;
    offset += done;
    bytes -= static_cast<size_t>(done);
  }
}

}  // namespace

ActivationCache::ActivationCache(std::vector<int64_t> lengths, int64_t width, Storage storage,
                                 const std::filesystem::path& file)
    : state_(std::make_unique<State>()) {
  bytes_needed(lengths, width);  // refuses sizes that overflow below
  state_->width = width;
  state_->storage = storage;
  state_->file = file;
  int64_t total = 0;
  for (const int64_t length : lengths) {
    state_->offsets.push_back(total);
    total += length * width;
  }
  state_->lengths = std::move(lengths);
  if (storage == Storage::kMemory) {
    state_->memory = at::empty({total}, at::kFloat);
    return;
  }
  const int descriptor = ::open(file.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (descriptor < 0) fail(file, "creating the activation cache");
  state_->descriptor = descriptor;
  const int error =
      ::posix_fallocate(descriptor, 0, std::max<off_t>(1, total * static_cast<off_t>(sizeof(float))));
  if (error != 0) {
    errno = error;
    fail(file, fmt::format("reserving {} bytes for the activation cache",
                           total * static_cast<int64_t>(sizeof(float)))
                   .c_str());
  }
}

ActivationCache::~ActivationCache() = default;
ActivationCache::ActivationCache(ActivationCache&&) noexcept = default;

int64_t ActivationCache::samples() const {
  return static_cast<int64_t>(state_->lengths.size());
}
int64_t ActivationCache::length(int64_t sample) const {
  return state_->lengths.at(static_cast<size_t>(sample));
}
int64_t ActivationCache::width() const {
  return state_->width;
}
ActivationCache::Storage ActivationCache::storage() const {
  return state_->storage;
}

at::Tensor ActivationCache::load(int64_t sample, int64_t columns) const {
  const int64_t rows = length(sample);
  const int64_t offset = state_->offsets[static_cast<size_t>(sample)];
  if (state_->storage == Storage::kMemory) {
    return at::from_blob(state_->memory.data_ptr<float>() + offset, {rows, columns}, at::kFloat);
  }
  at::Tensor out = at::empty({rows, columns}, at::kFloat);
  read_all(state_->descriptor, out.data_ptr(), static_cast<size_t>(rows * columns) * sizeof(float),
           offset * static_cast<off_t>(sizeof(float)), state_->file);
  return out;
}

void ActivationCache::store(int64_t sample, const at::Tensor& values) {
  const int64_t offset = state_->offsets.at(static_cast<size_t>(sample));
  if (values.size(0) != length(sample) || values.size(1) > state_->width || !values.is_contiguous()) {
    throw InvalidArgument("ActivationCache::store",
                          fmt::format("sample {} must be a contiguous [{}, up to {}]; received [{}, {}]",
                                      sample, length(sample), state_->width, values.size(0), values.size(1)));
  }
  const size_t bytes = static_cast<size_t>(values.numel()) * sizeof(float);
  if (state_->storage == Storage::kDisk) {
    write_all(state_->descriptor, values.data_ptr(), bytes, offset * static_cast<off_t>(sizeof(float)),
              state_->file);
    return;
  }
  float* own = state_->memory.data_ptr<float>() + offset;
  if (own != values.data_ptr<float>()) std::memcpy(own, values.data_ptr(), bytes);
}

uint64_t ActivationCache::bytes_needed(const std::vector<int64_t>& lengths, int64_t width) {
  uint64_t rows = 0;
  for (const int64_t length : lengths) rows += static_cast<uint64_t>(length);
  const auto row_bytes = checked_mul(static_cast<uint64_t>(width), sizeof(float));
  const auto bytes = row_bytes ? checked_mul(rows, *row_bytes) : std::nullopt;
  if (!bytes || *bytes > kMostBytes) {
    throw ResourceError(
        "ActivationCache",
        fmt::format("the values of {} tokens, {} each, must take at most {} bytes; they take more", rows,
                    width, kMostBytes));
  }
  return *bytes;
}

std::string ActivationCache::write_to(const std::filesystem::path& file, int64_t columns) const {
  io::AtomicFile out(file);
  for (int64_t i = 0; i < samples(); ++i) {
    const at::Tensor values = load(i, columns);
    out.write(std::as_bytes(std::span(values.data_ptr<float>(), static_cast<size_t>(values.numel()))));
  }
  return out.commit().hash;
}

std::string ActivationCache::read_from(const std::filesystem::path& file, int64_t columns) {
  std::error_code error;
  const auto size = std::filesystem::file_size(file, error);
  const uint64_t wanted = bytes_needed(state_->lengths, columns);
  if (error || size != wanted) {
    throw CorruptFile(file.string(), fmt::format("the saved activations must have {} bytes; the file has {}",
                                                 wanted, error ? std::string("none") : std::to_string(size)));
  }
  std::ifstream in(file, std::ios::binary);
  io::Hasher hasher;
  for (int64_t i = 0; i < samples(); ++i) {
    at::Tensor values = at::empty({length(i), columns}, at::kFloat);
    const size_t bytes = static_cast<size_t>(values.numel()) * sizeof(float);
    if (!in.read(static_cast<char*>(values.data_ptr()), static_cast<std::streamsize>(bytes)))
      fail(file, "reading the activations");
    hasher.add(values.data_ptr(), bytes);
    store(i, values);
  }
  return hasher.hex();
}

}  // namespace lcomp::calib
