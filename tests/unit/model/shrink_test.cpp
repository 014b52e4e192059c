#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "support/error_text.h"
#include "support/fixture_models.h"
#include "support/tiny_llama.h"

using namespace lcomp;

namespace {

const std::vector<int64_t> kIds = {3, 1, 4, 1, 5, 9, 2, 6};

/// Sets what belongs to a unit to 0 in every slice of it, biases included.
void mask_unit(model::Block& block, const model::DependencyGroup& units, int64_t unit) {
  for (const model::UnitSlice& slice : units.slices) {
    const model::LinearOp& op = block.ops()[slice.op];
    const at::Tensor weight = op.weight->dense().clone();
    weight.narrow(slice.rows ? 0 : 1, unit * slice.per_unit, slice.per_unit).zero_();
    block.replace(slice.op, std::make_shared<DenseWeight>(weight));
    if (!slice.rows || !op.bias.defined()) continue;
    const at::Tensor bias = op.bias.clone();
    bias.narrow(0, unit * slice.per_unit, slice.per_unit).zero_();
    block.set_vector(op.info.name + ".bias", bias);
  }
}

std::vector<int64_t> all_but(int64_t units, int64_t removed) {
  std::vector<int64_t> kept;
  for (int64_t u = 0; u < units; ++u) {
    if (u != removed) kept.push_back(u);
  }
  return kept;
}

}  // namespace

TEST_CASE("deleting a unit equals masking it, in every family", "[model][shrink]") {
  test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile& io) {
    const auto ids = test::token_rows(io).front();
    for (size_t g = 0; g < 2; ++g) {
      const auto first = model.architecture().dependency_groups(0)[g];
      if (first.units < 2) continue;
      const int64_t removed = first.units / 2;
      const at::Tensor masked = test::outputs_of(model, ids, [&](model::Block& block) {
        mask_unit(block, model.architecture().dependency_groups(block.index())[g], removed);
      });
      const at::Tensor deleted = test::outputs_of(model, ids, [&](model::Block& block) {
        block.keep_units(model.architecture().dependency_groups(block.index())[g],
                         all_but(first.units, removed));
      });
      const double scale = masked.abs().max().item<double>();
      CHECK((masked - deleted).abs().max().item<double>() < 2e-5 * scale);
      const at::Tensor dense = test::outputs_of(model, ids);
      CHECK((dense - deleted).abs().max().item<double>() > 1e-3 * scale);
    }
  });
}

TEST_CASE("keep_units says what it deleted and checks what it is given", "[model][shrink]") {
  const auto model = test::TinyLlama().model();
  model::Block block = model.load_block(0);
  const auto mlp = model.architecture().dependency_groups(0)[1];
  REQUIRE(mlp.units == 32);
  block.keep_units(mlp, {0, 5, 6, 31});
  CHECK(block.widths() == model::BlockWidths{2, 1, 4});
  CHECK(block.kept_inputs(3).equal(at::tensor({0, 5, 6, 31}, at::kLong)));
  CHECK_FALSE(block.kept_inputs(1).defined());
  CHECK(block.ops()[4].info.out_features == 4);
  CHECK(block.ops()[6].info.in_features == 4);
  CHECK(block.replaced(4));
  CHECK_FALSE(block.replaced(0));
  // Once more, by the widths that it has now.
  block.keep_units(model.architecture().dependency_groups(block.widths())[1], {1, 3});
  CHECK(block.kept_inputs(3).equal(at::tensor({5, 31}, at::kLong)));
  CHECK(
      test::error_text([&] { block.keep_units(mlp, {0}); }) ==
      "[Block::keep_units] 'mlp' must have 32 units of 1 in 'model.layers.0.mlp.gate_proj'; it has 2 in all");
  const auto left = model.architecture().dependency_groups(block.widths())[1];
  for (const std::vector<int64_t>& wrong : {std::vector<int64_t>{}, {1, 1}, {1, 0}, {-1}, {2}}) {
    CHECK_THAT(test::error_text([&] { block.keep_units(left, wrong); }),
               Catch::Contains("the kept units of 'mlp' must ascend, lie below 2 and be at least one"));
  }
}

TEST_CASE("blocks of their own widths are read", "[model][shrink]") {
  test::TinyLlama tiny;
  const at::Tensor whole = test::logits_of(tiny.model(), kIds, [&](model::Block& block) {
    if (block.index() == 1) block.keep_units(tiny.model().architecture().dependency_groups(1)[1], {2, 3, 7});
  });
  const at::Tensor kept = at::tensor({2, 3, 7}, at::kLong);
  const std::string mlp = "model.layers.1.mlp.";
  for (const char* name : {"gate_proj.weight", "up_proj.weight"})
    tiny.tensors[mlp + name] = tiny.tensors[mlp + name].index_select(0, kept);
  tiny.tensors[mlp + "down_proj.weight"] = tiny.tensors[mlp + "down_proj.weight"].index_select(1, kept);
  const nlohmann::json full = {
      {"num_attention_heads", 2}, {"num_key_value_heads", 1}, {"intermediate_size", 32}};
  nlohmann::json narrow = full;
  narrow["intermediate_size"] = 3;
  tiny.config["lcomp"]["block_widths"] = {full, narrow};
  CHECK(test::logits_of(tiny.model(), kIds).equal(whole));
  CHECK(tiny.model().architecture().widest() == model::BlockWidths{2, 1, 32});

  tiny.config["lcomp"]["block_widths"] = {full};
  CHECK(test::error_text([&] { tiny.model(); }) ==
        "[tiny/config.json: /lcomp/block_widths] must have an entry for each of the 2 layers "
        "(num_hidden_layers); it has 1");
  narrow["num_attention_heads"] = 1;
  tiny.config["lcomp"]["block_widths"] = {full, narrow};
  CHECK_THAT(
      test::error_text([&] { tiny.model(); }),
      Catch::Contains("/lcomp/block_widths/1") && Catch::Contains("2 query heads to a key-value head"));
}
