// Any bytes as a safetensors file: the header is either refused as corrupt or describes exactly the bytes.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "io/safetensors_header.h"
#include "lcomp/core/error.h"
#include "mutator.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lcomp::io;
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  try {
    const uint64_t length = safetensors_header_length(file.substr(0, 8), size, "fuzz");
    const SafetensorsHeader header = parse_safetensors_header(file.substr(8, length), size, "fuzz");
    uint64_t position = header.data_begin;
    for (const TensorInfo& info : header.tensors) {
      if (stored_bytes(info.dtype, info.shape) != info.bytes()) std::abort();
      position += info.bytes();
    }
    if (position != size) std::abort();
  } catch (const lcomp::CorruptFile&) {
  }
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  return lcomp::fuzz::mutate_and_repair(data, size, most, seed, lcomp::fuzz::repair_safetensors);
}
