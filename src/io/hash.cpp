#include "lcomp/io/hash.h"

#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

XXH3_state_t* state_of(void* state) {
  return static_cast<XXH3_state_t*>(state);
}

}  // namespace

Hasher::Hasher() : state_(XXH3_createState()) {
  XXH3_128bits_reset(state_of(state_));
}
Hasher::~Hasher() {
  XXH3_freeState(state_of(state_));
}

void Hasher::add(const void* data, size_t bytes) {
  XXH3_128bits_update(state_of(state_), data, bytes);
}

std::string Hasher::hex() const {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_of(state_)));
  std::string out;
  for (const unsigned char byte : canonical.digest) out += fmt::format("{:02x}", byte);
  return out;
}

std::string hash_of(std::string_view text) {
  Hasher hasher;
  hasher.add(text);
  return hasher.hex();
}

std::string hash_of_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw ResourceError(path.string(), fmt::format("the file must be readable; {}", std::strerror(errno)));
  Hasher hasher;
  std::vector<char> buffer(1 << 20);
  while (file.read(buffer.data(), static_cast<std::streamsize>(buffer.size())) || file.gcount() > 0) {
    hasher.add(buffer.data(), static_cast<size_t>(file.gcount()));
  }
  if (file.bad()) throw ResourceError(path.string(), "the file must be readable to its end; a read failed");
  return hasher.hex();
}

}  // namespace lcomp::io
