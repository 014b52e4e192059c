#pragma once

#include <cstdint>
#include <cstring>
#include <string>

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace lcomp::fuzz {

/// For LLVMFuzzerCustomMutator: an ordinary mutation, and in three of four cases `repair` behind it, which
/// makes lengths and checksums fit again. Without it almost all mutations would end at that check.
template <class Repair>
size_t mutate_and_repair(uint8_t* data, size_t size, size_t most, unsigned seed, const Repair& repair) {
  size = LLVMFuzzerMutate(data, size, most);
  if (seed % 4 == 0) return size;
  std::string text(reinterpret_cast<const char*>(data), size);
  repair(text);
  if (text.size() > most) return size;
  std::memcpy(data, text.data(), text.size());
  return text.size();
}

/// Sets the length at the begin of a safetensors file to that of the JSON object behind it.
inline void repair_safetensors(std::string& file) {
  constexpr size_t kLengthBytes = 8;
  int depth = 0;
  bool in_text = false;
  for (size_t i = kLengthBytes; i < file.size(); ++i) {
    const char c = file[i];
    if (c == '"') in_text = !in_text;
    if (c == '\\' && in_text) ++i;
    if (in_text) continue;
    depth += c == '{' ? 1 : c == '}' ? -1 : 0;
    if (depth != 0) continue;
    while (i + 1 < file.size() && file[i + 1] == ' ') ++i;
    const uint64_t length = i + 1 - kLengthBytes;
    for (size_t k = 0; k < kLengthBytes; ++k) file[k] = static_cast<char>(length >> 8 * k);
    return;
  }
}

}  // namespace lcomp::fuzz
