#pragma once

#include <ATen/ATen.h>

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/core/rng.h"
#include "lcomp/io/safetensors_writer.h"
#include "pipeline/job_runs.h"
#include "support/safetensors_bytes.h"

/// Llamas of any shape and depth, for tests of memory and plans.
namespace lcomp::test {

struct LlamaShape {
  int64_t hidden = 256;
  int64_t inner = 768;
  int64_t heads = 4;
  int64_t kv_heads = 4;
  int64_t vocabulary = 2048;  // that of the bundled tokenizer
  bool bfloat16 = false;      // or float32
  bool tied = true;
};

using TensorShapes = std::vector<std::pair<std::string, std::vector<int64_t>>>;

inline TensorShapes outer_tensors(const LlamaShape& s) {
  TensorShapes out{{"model.embed_tokens.weight", {s.vocabulary, s.hidden}},
                   {"model.norm.weight", {s.hidden}}};
  if (!s.tied) out.push_back({"lm_head.weight", {s.vocabulary, s.hidden}});
  return out;
}

inline TensorShapes block_tensors(const LlamaShape& s, int64_t block) {
  const std::string prefix = "model.layers." + std::to_string(block) + ".";
  const int64_t kv = s.hidden / s.heads * s.kv_heads;
  return {{prefix + "self_attn.q_proj.weight", {s.hidden, s.hidden}},
          {prefix + "self_attn.k_proj.weight", {kv, s.hidden}},
          {prefix + "self_attn.v_proj.weight", {kv, s.hidden}},
          {prefix + "self_attn.o_proj.weight", {s.hidden, s.hidden}},
          {prefix + "mlp.gate_proj.weight", {s.inner, s.hidden}},
          {prefix + "mlp.up_proj.weight", {s.inner, s.hidden}},
          {prefix + "mlp.down_proj.weight", {s.hidden, s.inner}},
          {prefix + "input_layernorm.weight", {s.hidden}},
          {prefix + "post_attention_layernorm.weight", {s.hidden}}};
}

inline void write_llama_config(const std::filesystem::path& dir, const LlamaShape& s, int64_t layers) {
  std::filesystem::create_directories(dir);
  const Json config = {
      {"model_type", "llama"},       {"hidden_size", s.hidden},         {"intermediate_size", s.inner},
      {"num_hidden_layers", layers}, {"num_attention_heads", s.heads},  {"num_key_value_heads", s.kv_heads},
      {"vocab_size", s.vocabulary},  {"max_position_embeddings", 8192}, {"tie_word_embeddings", s.tied}};
  write_text(dir / "config.json", config.dump());
}

/// A llama of random weights with a tokenizer, by default that of the bundled model.
inline std::filesystem::path write_llama(const std::filesystem::path& dir, int64_t layers,
                                         const LlamaShape& s = {},
                                         const std::filesystem::path& tokenizer = bundled_model() /
                                                                                  "tokenizer.json") {
  write_llama_config(dir, s, layers);
  std::filesystem::copy(tokenizer, dir / "tokenizer.json");
  Rng rng(7, "llama");
  TensorShapes all = outer_tensors(s);
  for (int64_t i = 0; i < layers; ++i) {
    for (auto& tensor : block_tensors(s, i)) all.push_back(std::move(tensor));
  }
  io::NamedTensors tensors;
  for (const auto& [name, shape] : all) {
    at::Tensor values = at::ones(shape);
    if (shape.size() == 2) {
      float* data = values.data_ptr<float>();
      for (int64_t i = 0; i < values.numel(); ++i) data[i] = static_cast<float>(rng.uniform() - 0.5) * 0.1F;
    }
    tensors.emplace_back(name, s.bfloat16 ? values.to(at::kBFloat16) : values);
  }
  io::write_safetensors(dir / "model.safetensors", tensors);
  return dir;
}

/// The same without weights, a shard for each block: files of the right sizes with nothing but holes behind
/// their headers.
inline std::filesystem::path write_llama_headers(const std::filesystem::path& dir, int64_t layers,
                                                 const LlamaShape& s) {
  write_llama_config(dir, s, layers);
  Json files = Json::object();
  for (int64_t i = -1; i < layers; ++i) {
    const std::string file = "shard-" + std::to_string(i + 1) + ".safetensors";
    Json header = Json::object();
    uint64_t end = 0;
    for (const auto& [name, shape] : i < 0 ? outer_tensors(s) : block_tensors(s, i)) {
      const uint64_t begin = end;
      end += static_cast<uint64_t>(c10::multiply_integers(shape)) * (s.bfloat16 ? 2 : 4);
      header[name] = {
          {"dtype", s.bfloat16 ? "BF16" : "F32"}, {"shape", shape}, {"data_offsets", {begin, end}}};
      files[name] = file;
    }
    const std::string bytes = safetensors_bytes(header.dump());
    write_text(dir / file, bytes);
    std::filesystem::resize_file(dir / file, bytes.size() + end);
  }
  write_text(dir / "model.safetensors.index.json", Json{{"weight_map", files}}.dump());
  return dir;
}

}  // namespace lcomp::test
