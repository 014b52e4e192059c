#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "calib/loss_head.h"
#include "lcomp/calib/differentiable_block.h"
#include "lcomp/model/model.h"

/// A whole model as one function of its weights, which all stay in memory: what gradients that are made block
/// by block are compared with.
namespace lcomp::test {

class WholeModel {
 public:
  WholeModel(const model::Model& model, at::ScalarType type) : model_(model), type_(type) {
    for (int64_t i = 0; i < model.size(); ++i) {
      blocks_.emplace_back(model.architecture(), i);
      values_.push_back(calib::values_of(model.load_block(i), type));
      values_.back().head_mask = at::ones({model.architecture().heads}, type);
      values_.back().channel_mask = at::ones({model.architecture().intermediate_size}, type);
    }
    if (!model.architecture().is_language_model()) return;
    norm_ = model.read_finite("model.norm.weight").to(type);
    head_ = model.head_rows(0, model.architecture().vocab_size).to(type);
  }

  std::vector<calib::BlockValues>& values() { return values_; }

  /// Mean over the predicted tokens of -log p; of an encoder the embedding times the probe of sample `s`.
  at::Tensor loss(const std::vector<int64_t>& ids, size_t s = 0) const {
    at::Tensor hidden = model_.embed(ids).to(type_);
    for (size_t i = 0; i < blocks_.size(); ++i) hidden = blocks_[i].forward(values_[i], hidden);
    if (!model_.architecture().is_language_model()) {
      const at::Tensor probe = calib::embedding_probe(0, static_cast<int64_t>(s), hidden.size(1));
      return at::dot(model::sentence_embedding(hidden, model_.pooling()), probe.to(type_));
    }
    const at::Tensor logits =
        at::matmul(calib::rms_norm(hidden, norm_, model_.architecture().norm_eps), head_.t());
    const auto count = static_cast<int64_t>(ids.size()) - 1;
    const at::Tensor next = at::tensor(ids, at::kLong).slice(0, 1).unsqueeze(1);
    return -at::log_softmax(logits.slice(0, 0, count), 1).gather(1, next).mean();
  }

  /// Gradient of `loss(ids, s)` by all weights of block i, in the order of its operators, then by head and
  /// channel masks.
  std::vector<std::vector<at::Tensor>> gradients(const std::vector<int64_t>& ids, size_t s = 0) {
    std::vector<at::Tensor> by;
    for (calib::BlockValues& block : values_) {
      for (at::Tensor& weight : block.weights) by.push_back(weight.requires_grad_());
      by.push_back(block.head_mask.requires_grad_());
      by.push_back(block.channel_mask.requires_grad_());
    }
    const auto flat = torch::autograd::grad({loss(ids, s)}, by);
    std::vector<std::vector<at::Tensor>> out;
    size_t next = 0;
    for (const calib::BlockValues& block : values_) {
      const size_t count = block.weights.size() + 2;
      out.emplace_back(flat.begin() + static_cast<std::ptrdiff_t>(next),
                       flat.begin() + static_cast<std::ptrdiff_t>(next + count));
      next += count;
    }
    return out;
  }

 private:
  const model::Model& model_;
  at::ScalarType type_;
  std::vector<calib::DifferentiableBlock> blocks_;
  std::vector<calib::BlockValues> values_;
  at::Tensor norm_;
  at::Tensor head_;
};

}  // namespace lcomp::test
