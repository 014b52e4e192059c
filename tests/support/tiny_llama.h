#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "lcomp/core/rng.h"
#include "lcomp/model/model.h"

/// A llama of two small blocks with random float32 weights, in memory.
namespace lcomp::test {

struct TinyLlama {
  nlohmann::json config = {{"model_type", "llama"},
                           {"hidden_size", 16},
                           {"intermediate_size", 32},
                           {"num_hidden_layers", 2},
                           {"num_attention_heads", 2},
                           {"num_key_value_heads", 1},
                           {"vocab_size", 40},
                           {"max_position_embeddings", 64},
                           {"tie_word_embeddings", false}};
  std::map<std::string, at::Tensor> tensors;
  std::set<std::string> float8;  ///< those of them that are the bytes of E4M3 numbers

  /// `deviation` of the weights: the larger, the more the logits differ.
  explicit TinyLlama(uint64_t seed = 1, double deviation = 0.3) {
    Rng rng(seed, "tiny llama");
    const auto add = [&](const std::string& name, at::IntArrayRef shape, double center) {
      at::Tensor tensor = at::empty(shape, at::kFloat);
      for (int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data_ptr<float>()[i] = static_cast<float>(center + deviation * rng.normal());
      tensors[name] = tensor;
    };
    add("model.embed_tokens.weight", {40, 16}, 0);
    add("model.norm.weight", {16}, 1);
    add("lm_head.weight", {40, 16}, 0);
    for (const char* block : {"model.layers.0.", "model.layers.1."}) {
      const std::string prefix = block;
      add(prefix + "input_layernorm.weight", {16}, 1);
      add(prefix + "post_attention_layernorm.weight", {16}, 1);
      add(prefix + "self_attn.q_proj.weight", {16, 16}, 0);
      add(prefix + "self_attn.k_proj.weight", {8, 16}, 0);
      add(prefix + "self_attn.v_proj.weight", {8, 16}, 0);
      add(prefix + "self_attn.o_proj.weight", {16, 16}, 0);
      add(prefix + "mlp.gate_proj.weight", {32, 16}, 0);
      add(prefix + "mlp.up_proj.weight", {32, 16}, 0);
      add(prefix + "mlp.down_proj.weight", {16, 32}, 0);
    }
  }

  model::Model model() const {
    return {config.dump(), std::make_shared<io::MemoryCheckpoint>(tensors, float8), "tiny"};
  }
};

inline void prepare_all(model::Block& block) {
  for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, linalg::Precision::kF32);
}

/// Hidden states [tokens, width] of one sequence behind the first `blocks` blocks, which `change` may alter
/// first.
inline at::Tensor states_of(const model::Model& model, const std::vector<int64_t>& ids, int64_t blocks,
                            const std::function<void(model::Block&)>& change = {}) {
  model::SampleState state{model.embed(ids), {}};
  linalg::Scratch scratch;
  for (int64_t i = 0; i < blocks; ++i) {
    model::Block block = model.load_block(i);
    if (change) change(block);
    prepare_all(block);
    block.forward(state, scratch);
  }
  return state.hidden;
}

/// Logits [tokens, vocabulary] of one sequence, by way of the blocks.
inline at::Tensor logits_of(const model::Model& model, const std::vector<int64_t>& ids,
                            const std::function<void(model::Block&)>& change = {}) {
  at::Tensor hidden = states_of(model, ids, model.size(), change);
  model.final_norm(hidden);
  return at::matmul(hidden, model.head_rows(0, model.architecture().vocab_size).t());
}

/// What a model of any family says of one sequence: its logits, or an encoder's last hidden states.
inline at::Tensor outputs_of(const model::Model& model, const std::vector<int64_t>& ids,
                             const std::function<void(model::Block&)>& change = {}) {
  return model.architecture().is_language_model() ? logits_of(model, ids, change)
                                                  : states_of(model, ids, model.size(), change);
}

}  // namespace lcomp::test
