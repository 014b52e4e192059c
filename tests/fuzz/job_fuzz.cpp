// Any bytes as a job file: refused with our errors, or a job that reads the same when written and read again.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lcomp/core/error.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lcomp::pipeline;
  static const MethodTable methods = builtin_methods();
  try {
    const std::string once = to_json(parse_job({reinterpret_cast<const char*>(data), size}, "fuzz", methods));
    if (to_json(parse_job(once, "written", methods)) != once) std::abort();
  } catch (const lcomp::ConfigError& error) {
    // What was accepted once must be accepted again.
    if (std::string_view(error.what()).starts_with("[written")) std::abort();
  }
  return 0;
}
