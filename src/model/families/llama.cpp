#include "model/families/family.h"

namespace lcomp::model {

/// Llama 1 to 3, SmolLM and their kin: the skeleton itself; biases only where the config asks for them.
Architecture read_llama(const ConfigView& config) {
  Architecture a = read_skeleton(config, "llama");
  a.qkv_bias = config.boolean("attention_bias").value_or(false);
  a.output_bias = a.qkv_bias;
  a.mlp_bias = config.boolean("mlp_bias").value_or(false);
  return a;
}

}  // namespace lcomp::model
