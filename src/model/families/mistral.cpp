#include "model/families/family.h"

namespace lcomp::model {

/// Mistral: no biases; one sliding window for every layer. An absent field means 4096, null means none.
Architecture read_mistral(const ConfigView& config) {
  Architecture a = read_skeleton(config, "mistral");
  const int64_t window = config.mentions("sliding_window") ? config.positive_or("sliding_window", 0) : 4096;
  a.windows.assign(a.windows.size(), window);
  return a;
}

}  // namespace lcomp::model
