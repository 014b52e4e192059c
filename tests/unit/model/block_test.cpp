#include "lcomp/model/block.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
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
