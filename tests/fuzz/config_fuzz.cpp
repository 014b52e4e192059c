// Any bytes as a config.json: it gives an architecture whose sizes are possible, or throws our errors.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "lcomp/core/error.h"
#include "lcomp/model/architecture.h"
#include "lcomp/model/quantization_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const auto architecture = lcomp::model::read_architecture(text, "fuzz");
    if (architecture.layers <= 0 || architecture.heads % architecture.kv_heads != 0) std::abort();
    if (const auto quantization = lcomp::model::QuantizationConfig::read(text, "fuzz"))
      quantization->scheme_for("model.layers.0.mlp.up_proj");
  } catch (const lcomp::Error& error) {
    if (error.kind() == lcomp::ErrorKind::kInternal) std::abort();
  }
  return 0;
}
