// Any bytes as a report.json: refused as corrupt, or what is read reads the same when written and read again.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lcomp/core/error.h"
#include "lcomp/pipeline/report_data.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lcomp::pipeline;
  try {
    const std::string once = to_json(from_json({reinterpret_cast<const char*>(data), size}));
    if (to_json(from_json(once)) != once) std::abort();
  } catch (const lcomp::CorruptFile&) {
  }
  return 0;
}
