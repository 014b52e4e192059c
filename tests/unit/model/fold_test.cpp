#include "lcomp/model/fold.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"
#include "support/tiny_bert.h"
#include "support/tiny_llama.h"

using namespace lcomp;

namespace {

/// Random scales between 1/4 and 4, equal where the group's absorber has one row.
at::Tensor random_scale(const model::Block& block, size_t group) {
  const at::Tensor rows = model::absorber_rows(block, group);
  const std::string stream = fmt::format("scale {} {}", block.index(), group);
  const at::Tensor per_row = test::normal_matrix(1, rows.max().item<int64_t>() + 1, stream)[0];
  return per_row.clamp(-2, 2).exp2().index_select(0, rows);
}

void fold_all(model::Block& block) {
  for (size_t g = 0; g < block.groups().size(); ++g) {
    if (model::absorber_rows(block, g).defined()) model::fold_input_scale(block, g, random_scale(block, g));
  }
}

std::vector<int64_t> first_row(const at::Tensor& ids) {
  const at::Tensor row = ids[0].contiguous();
  return {row.data_ptr<int64_t>(), row.data_ptr<int64_t>() + row.numel()};
}

const std::vector<int64_t> kIds = {3, 1, 4, 1, 5, 9, 2, 6};

/// A tiny llama with biases everywhere, norms and biases in bfloat16.
test::TinyLlama biased_llama() {
  test::TinyLlama tiny;
  tiny.config["attention_bias"] = true;
  tiny.config["mlp_bias"] = true;
  std::map<std::string, at::Tensor> biases;
  for (auto& [name, tensor] : tiny.tensors) {
    if (name.find("norm") != std::string::npos) tensor = tensor.to(at::kBFloat16);
    if (name.find("_proj") == std::string::npos) continue;
    const std::string op = name.substr(0, name.rfind('.'));
    biases[op + ".bias"] = test::normal_matrix(1, tensor.size(0), op)[0].to(at::kBFloat16);
  }
  tiny.tensors.merge(biases);
  return tiny;
}

}  // namespace

TEST_CASE("folding scales into every group that has an absorber leaves every fixture as it is",
          "[model][fold][golden]") {
  const auto root = test::shared_data("golden/models");
  if (!root) {
    WARN("skipped: golden/models is not in LCOMP_TEST_DATA");
    return;
  }
  int64_t checked = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*root)) {
    if (!entry.is_directory()) continue;
    INFO("fixture " << entry.path().filename());
    std::optional<model::Model> model;
    try {
      model.emplace(model::Model::open(entry.path()));
    } catch (const Unsupported&) {
      continue;  // a family that this version does not read; model/fixtures_test.cpp counts the others
    }
    const auto ids = first_row(io::SafetensorsFile(entry.path() / "io.safetensors").read("input_ids"));
    const at::Tensor before = test::outputs_of(*model, ids);
    const at::Tensor after = test::outputs_of(*model, ids, fold_all);
    CHECK(test::relative_difference(after, before) < 1e-5);
    ++checked;
  }
  REQUIRE(checked >= 24);
}

TEST_CASE("folds are exact although norms and biases are rounded to bfloat16", "[model][fold]") {
  const auto model = biased_llama().model();
  const at::Tensor before = test::logits_of(model, kIds);
  const at::Tensor after = test::logits_of(model, kIds, [](model::Block& block) {
    fold_all(block);
    for (const std::string& name : block.changed_vectors()) {
      const at::Tensor values = block.vector(name);
      REQUIRE(block.stored_type(name) == at::kBFloat16);
      REQUIRE(values.to(at::kBFloat16).to(at::kFloat).equal(values));
    }
    REQUIRE(block.changed_vectors().size() == 4);  // two norms, the biases of v and up
  });
  REQUIRE(test::relative_difference(after, before) < 1e-5);
}

TEST_CASE("a fold divides the absorber, multiplies the readers and returns what it applied",
          "[model][fold]") {
  const auto model = biased_llama().model();
  const model::Block before = model.load_block(0);
  model::Block after = model.load_block(0);
  const std::string norm = "model.layers.0.input_layernorm.weight";
  const at::Tensor wanted = random_scale(after, 0);
  const at::Tensor applied = model::fold_input_scale(after, 0, wanted);
  REQUIRE(test::relative_difference(applied, wanted) < 0x1p-7);
  REQUIRE(test::relative_difference(after.vector(norm) * applied, before.vector(norm)) < 1e-6);
  for (const size_t op : {0, 1, 2}) {
    const at::Tensor expected = before.ops()[op].weight->dense() * applied;
    REQUIRE(test::relative_difference(after.ops()[op].weight->dense(), expected) < 1e-6);
    REQUIRE(after.replaced(op));
  }
  REQUIRE_FALSE(after.replaced(3));
  REQUIRE(after.input_scale(0).equal(applied));
  REQUIRE_FALSE(after.input_scale(1).defined());
  const at::Tensor again = model::fold_input_scale(after, 0, applied.reciprocal());
  REQUIRE(test::relative_difference(after.input_scale(0), applied * again) < 1e-15);
}

TEST_CASE("query heads that read one value head share its rows", "[model][fold]") {
  const auto model = test::TinyLlama().model();  // two query heads of 8 read one value head
  const model::Block block = model.load_block(0);
  REQUIRE(model::absorber_rows(block, 1).equal(at::arange(8, at::kLong).repeat({2})));
  REQUIRE(model::absorber_rows(block, 0).equal(at::arange(16, at::kLong)));
  REQUIRE(model::absorber_rows(block, 3).equal(at::arange(32, at::kLong)));
}

TEST_CASE("channels whose norm weight is 0 or would leave its type keep scale 1", "[model][fold]") {
  test::TinyLlama tiny;
  at::Tensor& norm = tiny.tensors["model.layers.0.input_layernorm.weight"];
  norm = at::ones({16}, at::kHalf);
  norm[3] = 0;
  const auto model = tiny.model();
  const at::Tensor before = test::logits_of(model, kIds);
  at::Tensor scale = at::full({16}, 2.0, at::kDouble);
  scale[4] = 1e-6;  // 1 / 1e-6 is beyond float16
  scale[5] = 1e9;   // 1 / 1e9 is below it
  const at::Tensor after = test::logits_of(model, kIds, [&](model::Block& block) {
    if (block.index() != 0) return;
    const at::Tensor applied = model::fold_input_scale(block, 0, scale);
    for (int64_t j = 0; j < 16; ++j) REQUIRE(applied[j].item<double>() == (j >= 3 && j <= 5 ? 1 : 2));
  });
  REQUIRE(test::relative_difference(after, before) < 1e-5);
}

TEST_CASE("a fold refuses scales that do not fit", "[model][fold]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  const auto error = [&](size_t group, const at::Tensor& scale) {
    return test::error_text([&] { model::fold_input_scale(block, group, scale); });
  };
  REQUIRE(error(0, at::ones({8})) ==
          "[fold_input_scale] the scale of 'attention_input' must be [16]; received 8 values");
  REQUIRE(error(0, at::zeros({16})) ==
          "[fold_input_scale] the scale of 'attention_input' must be positive and finite; received 0");
  REQUIRE(error(1, at::arange(1, 17)) ==
          "[fold_input_scale] input channels of 'attention_output' that come from one row of "
          "'model.layers.0.self_attn.v_proj' must have one scale; received different ones");
  REQUIRE_FALSE(block.replaced(0));
}

TEST_CASE("a group behind which nothing linear stands takes no scale", "[model][fold]") {
  const auto model = test::TinyBert().model();
  model::Block block = model.load_block(0);
  int without = 0;
  for (size_t g = 0; g < block.groups().size(); ++g) {
    if (model::absorber_rows(block, g).defined()) continue;
    ++without;
    const std::string& name = block.groups()[g].name;
    REQUIRE(test::error_text([&] { model::fold_input_scale(block, g, at::ones({16})); }) ==
            "[fold_input_scale] the group '" + name +
                "' must have a norm or operator in front that can take a scale; it has none");
  }
  REQUIRE(without > 0);
}

TEST_CASE("only norms and biases of the block can be set, and with their shape", "[model][block]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  REQUIRE(
      test::error_text([&] { block.set_vector("model.layers.0.input_layernorm.weight", at::ones({8})); }) ==
      "[Block::set_vector] the name must be that of a norm or bias of 8 values; received "
      "'model.layers.0.input_layernorm.weight'");
  REQUIRE_THROWS_AS(block.set_vector("model.norm.weight", at::ones({16})), InvalidArgument);
  REQUIRE(block.changed_vectors().empty());
}
