#pragma once

#include <ATen/ATen.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "lcomp/core/product_weight.h"
#include "lcomp/core/rng.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/row_patch_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/quant/rtn.h"
#include "lcomp/sparse/sparse_weight.h"
#include "model/weight_formats.h"
#include "support/tensor_map.h"

namespace lcomp::test {

/// A llama of one block, in memory, with every format of factors and sums among its operators and in the
/// embedding, to which the head is tied. All numbers are exact in bfloat16 and the same everywhere.
class FactoredLlama {
 public:
  nlohmann::ordered_json config = {{"model_type", "llama"},
                                   {"hidden_size", 16},
                                   {"intermediate_size", 32},
                                   {"num_hidden_layers", 1},
                                   {"num_attention_heads", 2},
                                   {"num_key_value_heads", 1},
                                   {"vocab_size", 8},
                                   {"max_position_embeddings", 64},
                                   {"tie_word_embeddings", true},
                                   {"torch_dtype", "bfloat16"}};
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, WeightPtr> weights;  ///< by the name of the operator

  FactoredLlama() {
    const std::string block = "model.layers.0.";
    for (const char* norm :
         {"model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"})
      tensors[std::string(norm) + ".weight"] = numbers({16});
    const std::string query = block + "self_attn.q_proj";
    const WeightPtr basis = matrix(6, 16);
    store(query, product({pivoted({3, 0, 15, 7, 8, 2}, matrix(10, 6)), basis}));
    store(
        block + "self_attn.k_proj",
        product({matrix(8, 6), std::make_shared<SharedWeight>(ProductWeight::factor_name(query, 1), basis)}));
    store(block + "self_attn.v_proj",
          sum({std::make_shared<sparse::SparseWeight>(halved({8, 16}), sparse::SparseFormat::kBitmask),
               product({pivoted({7, 1}, matrix(6, 2)), matrix(2, 16)})}));
    store(block + "self_attn.o_proj", train());
    store(block + "mlp.gate_proj", product({codes(32, 8), codes(8, 16)}));
    store(block + "mlp.up_proj",
          sum({std::make_shared<lowrank::KroneckerSumWeight>(32, 16, numbers({2, 2, 6, 4})),
               patch(32, {1, 5, 30})}));
    store(block + "mlp.down_proj", words(16, 32, 5, 6, 2));
    store("model.embed_tokens", sum({words(8, 16, 4, 3, 3), patch(8, {0, 5})}));
  }

  /// Puts a weight in the place of an operator.
  void store(const std::string& op, const WeightPtr& weight) {
    std::erase_if(tensors, [&](const auto& entry) { return entry.first.starts_with(op + "."); });
    weights[op] = weight;
    TensorMap saved;
    weight->save(saved, op);
    for (const auto& [name, tensor] : saved.all) tensors[name] = tensor.clone();
    model::QuantizationConfig stored;
    for (const auto& [name, one] : weights) {
      auto group = model::storage_group(*one);
      if (!group) continue;
      group->targets = {name};
      stored.groups.push_back(*std::move(group));
    }
    config["quantization_config"] = nlohmann::ordered_json::parse(stored.to_json());
  }

  model::Model model() const {
    return {config.dump(), std::make_shared<io::MemoryCheckpoint>(tensors), "factored"};
  }

  /// Multiples of 1/16 in [-1, 1].
  at::Tensor numbers(const std::vector<int64_t>& shape) {
    at::Tensor tensor = at::empty(shape, at::kFloat);
    for (int64_t i = 0; i < tensor.numel(); ++i)
      tensor.data_ptr<float>()[i] = (static_cast<float>(rng_.below(33)) - 16) / 16;
    return tensor.to(at::kBFloat16);
  }
  WeightPtr matrix(int64_t rows, int64_t columns) {
    return std::make_shared<DenseWeight>(numbers({rows, columns}));
  }
  static WeightPtr pivoted(const std::vector<int32_t>& pivots, const WeightPtr& rest) {
    return std::make_shared<lowrank::IdentityRowsWeight>(at::tensor(pivots, at::kInt), rest);
  }
  static WeightPtr product(std::vector<WeightPtr> factors) {
    return std::make_shared<ProductWeight>(std::move(factors));
  }
  static WeightPtr sum(std::vector<WeightPtr> parts) { return std::make_shared<SumWeight>(std::move(parts)); }
  WeightPtr patch(int64_t out, const std::vector<int64_t>& rows) {
    return std::make_shared<lowrank::RowPatchWeight>(out, at::tensor(rows, at::kLong),
                                                     numbers({static_cast<int64_t>(rows.size()), 16}));
  }

 private:
  /// The half of the elements that are positive.
  at::Tensor halved(const std::vector<int64_t>& shape) { return numbers(shape).clamp_min(0); }

  WeightPtr codes(int64_t rows, int64_t columns) {
    return std::make_shared<quant::QuantizedWeight>(
        quant::rtn(numbers({rows, columns}).to(at::kFloat), {.bits = 4, .group_size = 8}));
  }

  WeightPtr train() {
    std::vector<at::Tensor> cores{numbers({1, 2, 4, 2}), numbers({2, 2, 2, 3}), numbers({3, 4, 2, 1})};
    return std::make_shared<lowrank::TensorTrainWeight>(16, 16, std::move(cores), numbers({16}));
  }

  /// Every morpheme is used, the last one by the last word.
  WeightPtr words(int64_t count, int64_t in, int64_t morphemes, int64_t q, int64_t order) {
    const at::Tensor index = (at::arange(count * order, at::kInt) * 7).remainder(morphemes).to(at::kInt);
    index[-1] = morphemes - 1;
    return std::make_shared<lowrank::MorphemeWeight>(numbers({2, morphemes, q}),
                                                     index.reshape({count, order}), in);
  }

  Rng rng_{1, "factored llama"};
};

}  // namespace lcomp::test
