#include "lcomp/core/error.h"
#include "model/families/family.h"

namespace lcomp::model {
namespace {

/// Far above any real model.
constexpr int64_t kMostLayers = int64_t{1} << 16;

constexpr std::pair<const char*, Activation> kActivations[] = {
    {"silu", Activation::kSilu},
    {"swish", Activation::kSilu},
    {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_new", Activation::kGeluTanh},
    {"gelu", Activation::kGelu},
    {"relu", Activation::kRelu},
};

}  // namespace

Activation read_activation(const ConfigView& config, const std::string& field, Activation absent) {
  const auto given = config.string(field);
  if (!given) return absent;
  std::vector<std::string_view> known;
  for (const auto& [name, activation] : kActivations) {
    if (*given == name) return activation;
    known.emplace_back(name);
  }
  throw Unsupported(config.place(field),
                    fmt::format("must be one of {}; it is '{}'", fmt::join(known, ", "), *given));
}

int64_t read_layers(const ConfigView& config, const std::string& field) {
  const int64_t layers = config.positive(field);
  if (layers > kMostLayers) config.reject(field, "must be at most 2^16 = 65536");
  return layers;
}

Architecture read_skeleton(const ConfigView& config, const std::string& family) {
  Architecture a;
  a.family = family;
  a.hidden_size = config.positive("hidden_size");
  a.intermediate_size = config.positive("intermediate_size");
  a.layers = read_layers(config, "num_hidden_layers");
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
  a.activation = read_activation(config, "hidden_act", Activation::kSilu);
  a.tied_embeddings = config.boolean("tie_word_embeddings").value_or(false);
  a.rope = read_rope(config, a.head_dim, a.max_positions);
  a.windows.assign(static_cast<size_t>(a.layers), 0);
  return a;
}

}  // namespace lcomp::model
