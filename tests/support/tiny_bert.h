#pragma once

#include <ATen/ATen.h>

#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "lcomp/core/rng.h"
#include "lcomp/model/model.h"

/// A BERT of two small blocks with random float32 weights, in memory.
namespace lcomp::test {

struct TinyBert {
  nlohmann::json config = {{"model_type", "bert"},          {"hidden_size", 16},
                           {"intermediate_size", 32},       {"num_hidden_layers", 2},
                           {"num_attention_heads", 2},      {"vocab_size", 40},
                           {"max_position_embeddings", 64}, {"type_vocab_size", 2}};
  std::map<std::string, at::Tensor> tensors;

  /// `prefix`: "" for a bare encoder, "bert." under a task.
  explicit TinyBert(const std::string& prefix = "", uint64_t seed = 1, int64_t hidden = 16) {
    config["hidden_size"] = hidden;
    Rng rng(seed, "tiny bert");
    const auto add = [&](const std::string& name, at::IntArrayRef shape, double center) {
      at::Tensor tensor = at::empty(shape, at::kFloat);
      for (int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data_ptr<float>()[i] = static_cast<float>(center + 0.3 * rng.normal());
      tensors[prefix + name] = tensor;
    };
    const auto add_pair = [&](const std::string& name, at::IntArrayRef shape, double center) {
      add(name + ".weight", shape, center);
      add(name + ".bias", shape.slice(0, 1), 0);
    };
    add("embeddings.word_embeddings.weight", {40, hidden}, 0);
    add("embeddings.position_embeddings.weight", {64, hidden}, 0);
    add("embeddings.token_type_embeddings.weight", {2, hidden}, 0);
    add_pair("embeddings.LayerNorm", {hidden}, 1);
    for (const std::string block : {"encoder.layer.0.", "encoder.layer.1."}) {
      for (const char* op : {"query", "key", "value"})
        add_pair(block + "attention.self." + op, {hidden, hidden}, 0);
      add_pair(block + "attention.output.dense", {hidden, hidden}, 0);
      add_pair(block + "attention.output.LayerNorm", {hidden}, 1);
      add_pair(block + "intermediate.dense", {32, hidden}, 0);
      add_pair(block + "output.dense", {hidden, 32}, 0);
      add_pair(block + "output.LayerNorm", {hidden}, 1);
    }
  }

  model::Model model() const {
    return {config.dump(), std::make_shared<io::MemoryCheckpoint>(tensors), "tiny bert"};
  }
};

}  // namespace lcomp::test
