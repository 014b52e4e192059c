// Any bytes as a tokenizer.json: it loads or throws our errors, and what loads can encode and decode.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "lcomp/core/error.h"
#include "lcomp/io/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto tokenizer =
        lcomp::io::Tokenizer::from_json({reinterpret_cast<const char*>(data), size}, "fuzz.json");
    tokenizer.decode(tokenizer.encode("The 3 caf\u00e9s\n\t<s> \u4e2d", true));
  } catch (const lcomp::Error&) {
    // Refusing an input is fine; any other exception or a sanitizer's report is a finding.
  }
  return 0;
}
