#include "lcomp/model/block.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tiny_llama.h"

using namespace lcomp;

namespace {

const std::vector<int64_t> kIds = {3, 1, 4, 1, 5, 9, 2, 6};

at::Tensor output_of(const model::Block& block, const model::Model& model) {
  model::SampleState state{model.embed(kIds), {}};
  linalg::Scratch scratch;
  block.forward(state, scratch);
  return state.hidden;
}

}  // namespace

TEST_CASE("a block lists its operators and the groups that read one input", "[model][block]") {
  const auto model = test::TinyLlama().model();
  const model::Block block = model.load_block(1);
  REQUIRE(block.index() == 1);
  std::vector<std::string> kinds;
  for (const auto& op : block.ops()) kinds.push_back(op.info.kind);
  REQUIRE(kinds == std::vector<std::string>{"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj",
                                            "down_proj"});
  REQUIRE(block.ops()[6].info.name == "model.layers.1.mlp.down_proj");
  REQUIRE(block.groups().size() == 4);
  REQUIRE(block.norms().count("model.layers.1.input_layernorm.weight") == 1);
}

TEST_CASE("the tap sees the input of every group, in order", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  model::SampleState state{model.embed(kIds), {}};
  linalg::Scratch scratch;
  std::vector<int64_t> widths;
  at::Tensor first;
  block.forward(state, scratch, [&](size_t group, const at::Tensor& input) {
    REQUIRE(group == widths.size());
    REQUIRE(input.size(0) == static_cast<int64_t>(kIds.size()));
    widths.push_back(input.size(1));
    if (group == 0) first = input.clone();
  });
  REQUIRE(widths == std::vector<int64_t>{16, 16, 16, 32});
  // RMSNorm of the embeddings, by its formula.
  const at::Tensor x = model.embed(kIds).to(at::kDouble);
  const at::Tensor norm = block.norms().at("model.layers.0.input_layernorm.weight").to(at::kDouble);
  const at::Tensor expected = x / (x.pow(2).mean(1, true) + 1e-6).sqrt() * norm;
  REQUIRE(test::relative_difference(first, expected) < 1e-5);
  REQUIRE(state.hidden.equal(output_of(block, model)));  // looking changes nothing
}

TEST_CASE("a replaced weight is used as soon as its group is prepared again", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  const at::Tensor before = output_of(block, model);
  const at::Tensor weight = block.ops()[6].weight->dense();
  block.replace(6, std::make_shared<DenseWeight>(at::zeros_like(weight)));
  block.prepare(3, linalg::Precision::kF32);
  const at::Tensor without = output_of(block, model);
  REQUIRE(test::relative_difference(without, before) > 1e-3);
  block.replace(6, std::make_shared<DenseWeight>(weight));
  block.prepare(3, linalg::Precision::kF32);
  REQUIRE(output_of(block, model).equal(before));
  block.release();
  test::prepare_all(block);
  REQUIRE(output_of(block, model).equal(before));
}

TEST_CASE("a weight of another shape cannot take an operator's place", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  const auto call = [&] { block.replace(1, std::make_shared<DenseWeight>(at::zeros({16, 8}))); };
  REQUIRE_THROWS_AS(call(), InvalidArgument);
  REQUIRE(
      test::error_text(call) ==
      "[Block::replace] the weight of 'model.layers.0.self_attn.k_proj' must be [8, 16]; received [16, 8]");
}

TEST_CASE("a group that is none is refused", "[model][block]") {
  const auto model = test::TinyLlama().model();
  const model::Block block = model.load_block(0);
  model::SampleState state{model.embed(kIds), {}};
  linalg::Scratch scratch;
  const auto call = [&] { block.advance(4, state, scratch, nullptr); };
  REQUIRE_THROWS_AS(call(), InvalidArgument);
  REQUIRE(test::error_text(call) == "[Block::advance] group must be below 4; received 4");
}

TEST_CASE("a token's output does not depend on the tokens after it", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  const at::Tensor whole = output_of(block, model);
  model::SampleState shorter{model.embed({kIds.data(), 5}), {}};
  linalg::Scratch scratch;
  block.forward(shorter, scratch);
  REQUIRE(test::relative_difference(shorter.hidden, whole.slice(0, 0, 5)) < 1e-5);
}

namespace {

/// A matrix that rounds its input to multiples of a step, and counts the calls.
class RoundingWeight final : public Weight {
 public:
  RoundingWeight(at::Tensor weight, double step) : weight_(std::move(weight)), step_(step) {}
  int64_t out_features() const override { return weight_.size(0); }
  int64_t in_features() const override { return weight_.size(1); }
  bool quantizes_input() const override { return true; }
  at::Tensor dense() const override { return weight_; }
  at::Tensor apply(const at::Tensor& x) const override {
    tokens_seen = x.size(0);
    return at::matmul((x / step_).round() * step_, weight_.t());
  }
  int64_t bytes() const override { return 0; }
  std::string describe() const override { return "rounding"; }
  void save(TensorSink&, const std::string&) const override {}

  mutable int64_t tokens_seen = 0;

 private:
  at::Tensor weight_;
  double step_;
};

}  // namespace

TEST_CASE("weights that round their input are run by their own product", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  test::prepare_all(block);
  const at::Tensor before = output_of(block, model);
  for (size_t op = 0; op < block.ops().size(); ++op) {
    CAPTURE(block.ops()[op].info.name);
    const at::Tensor dense = block.ops()[op].weight->dense();
    // A step of next to nothing changes nothing; the neighbours in its group stay plain products.
    const auto fine = std::make_shared<RoundingWeight>(dense, 1e-7);
    block.replace(op, fine);
    test::prepare_all(block);
    REQUIRE(test::relative_difference(output_of(block, model), before) < 1e-5);
    REQUIRE(fine->tokens_seen == static_cast<int64_t>(kIds.size()));  // the whole sample
    block.replace(op, std::make_shared<RoundingWeight>(dense, 1.0));
    test::prepare_all(block);
    REQUIRE(test::relative_difference(output_of(block, model), before) > 1e-4);
    block.replace(op, std::make_shared<DenseWeight>(dense));
  }
  test::prepare_all(block);
  REQUIRE(output_of(block, model).equal(before));
}

TEST_CASE("samples of several row chunks pass weights that round their input", "[model][block]") {
  const auto model = test::TinyLlama().model();
  std::vector<int64_t> ids;
  for (int64_t i = 0; i < 300; ++i) ids.push_back(i * 7 % 40);
  const at::Tensor dense = test::logits_of(model, ids);
  const auto logits = [&](const quant::QuantScheme& scheme, bool inputs) {
    return test::logits_of(model, ids, [&](model::Block& block) {
      for (size_t op = 0; op < block.ops().size(); ++op) {
        auto weight = quant::rtn(block.ops()[op].weight->dense(), scheme);
        if (inputs) {
          block.replace(op, std::make_shared<quant::QuantizedInputWeight>(std::move(weight),
                                                                          quant::ActivationScheme{}));
        } else {
          block.replace(op, std::make_shared<quant::QuantizedWeight>(std::move(weight)));
        }
      }
    });
  };
  const quant::QuantScheme scheme{.bits = 8, .granularity = quant::Granularity::kChannel};
  const double of_weights = test::relative_difference(logits(scheme, false), dense);
  const double of_both = test::relative_difference(logits(scheme, true), dense);
  REQUIRE(of_both > of_weights);
  REQUIRE(of_both < 0.3);
}
