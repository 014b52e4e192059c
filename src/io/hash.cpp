#include "lcomp/io/hash.h"

#include <xxhash.h>

#include "io/descriptor.h"
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
  Hasher hasher;
  read_in_pieces(open_input(path), path,
                 [&](std::span<const std::byte> piece) { hasher.add(piece.data(), piece.size()); });
  return hasher.hex();
}

}  // namespace lcomp::io
