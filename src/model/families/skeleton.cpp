#include "lcomp/core/error.h"
#include "model/families/family.h"

namespace lcomp::model {
namespace {

/// Far above any real model. Every layer takes memory before its first tensor is looked for.
constexpr int64_t kMostLayers = int64_t{1} << 16;

Activation read_activation(const ConfigView& config) {
  const std::string name = config.string("hidden_act").value_or("silu");
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::kGeluTanh;
  throw Unsupported(config.place("hidden_act"),
                    fmt::format("must be one of silu, swish, gelu_pytorch_tanh, gelu_new; it is '{}'", name));
}

}  // namespace

Architecture read_skeleton(const ConfigView& config, const std::string& family) {
  Architecture a;
  a.family = family;
  a.hidden_size = config.positive("hidden_size");
  a.intermediate_size = config.positive("intermediate_size");
  a.layers = config.positive("num_hidden_layers");
  if (a.layers > kMostLayers) config.reject("num_hidden_layers", "must be at most 2^16 = 65536");
  a.heads = config.positive("num_attention_heads");
  a.kv_heads = config.positive_or("num_key_value_heads", a.heads);
  a.vocab_size = config.positive("vocab_size");
  a.max_positions = config.positive_or("max_position_embeddings", 2048);
  if (a.heads % a.kv_heads != 0) {
    config.reject("num_key_value_heads", fmt::format("must divide num_attention_heads = {}", a.heads));
  }
  if (config.has("head_dim")) {
    a.head_dim = config.positive("head_dim");
  } else if (a.hidden_size % a.heads == 0) {
    a.head_dim = a.hidden_size / a.heads;
  } else {
    config.reject(
        "hidden_size",
        fmt::format("must be a multiple of num_attention_heads = {} when head_dim is absent", a.heads));
  }
  a.norm_eps = config.number("rms_norm_eps").value_or(1e-6);
  if (!(a.norm_eps > 0)) config.reject("rms_norm_eps", "must be positive");
  a.activation = read_activation(config);
  a.tied_embeddings = config.boolean("tie_word_embeddings").value_or(false);
  a.rope = read_rope(config, a.head_dim, a.max_positions);
  a.windows.assign(static_cast<size_t>(a.layers), 0);
  return a;
}

}  // namespace lcomp::model
