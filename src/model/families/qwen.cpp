#include "model/families/family.h"

namespace lcomp::model {

std::vector<int64_t> read_qwen_windows(const ConfigView& config, int64_t layers) {
  std::vector<int64_t> windows(static_cast<size_t>(layers), 0);
  const auto types = config.strings("layer_types");
  if (types && static_cast<int64_t>(types->size()) != layers) {
    config.reject("layer_types", fmt::format("must have num_hidden_layers = {} entries", layers));
  }
  const bool use_window = config.boolean("use_sliding_window").value_or(false);
  const int64_t window = config.positive_or("sliding_window", 4096);
  const int64_t first = config.integer("max_window_layers").value_or(28);
  for (size_t i = 0; i < windows.size(); ++i) {
    const bool slides =
        types ? (*types)[i] == "sliding_attention" : use_window && static_cast<int64_t>(i) >= first;
    if (types && !slides && (*types)[i] != "full_attention") {
      config.reject("layer_types", "must list only full_attention or sliding_attention");
    }
    if (slides) windows[i] = window;
  }
  return windows;
}

/// Qwen2 and Qwen2.5: biases on q, k and v.
Architecture read_qwen2(const ConfigView& config) {
  Architecture a = read_skeleton(config, "qwen2");
  a.qkv_bias = true;
  a.windows = read_qwen_windows(config, a.layers);
  return a;
}

/// Qwen3: RMSNorm over every query and key head; head_dim 128 unless given.
Architecture read_qwen3(const ConfigView& config) {
  Architecture a = read_skeleton(config, "qwen3");
  if (!config.has("head_dim")) {
    a.head_dim = 128;
    a.rope = read_rope(config, a.head_dim, a.max_positions);
  }
  a.qk_norm = true;
  a.qkv_bias = config.boolean("attention_bias").value_or(false);
  a.output_bias = a.qkv_bias;
  a.windows = read_qwen_windows(config, a.layers);
  return a;
}

}  // namespace lcomp::model
