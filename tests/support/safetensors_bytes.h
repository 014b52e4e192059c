#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lcomp::test {

/// A safetensors file with this header and data, whatever they say.
inline std::string safetensors_bytes(std::string_view header, std::string_view data = "") {
  std::string out;
  for (int shift = 0; shift < 64; shift += 8)
    out += static_cast<char>(uint64_t{header.size()} >> shift & 0xFF);
  out += header;
  out += data;
  return out;
}

}  // namespace lcomp::test
