#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <fstream>

#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "lcomp/model/pooling.h"
#include "model/kernels.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"
#include "support/tiny_bert.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using test::TinyBert;

namespace {

const std::vector<int64_t> kIds = {3, 1, 4, 1, 5, 9, 2, 6};

at::Tensor last_states(const model::Model& model) {
  return test::states_of(model, kIds, model.size());
}

void write_pooling(const test::TempDir& dir, const std::string& json) {
  std::filesystem::create_directories(dir / "1_Pooling");
  std::ofstream(dir / "1_Pooling" / "config.json") << json;
}

}  // namespace

TEST_CASE("an encoder is the same with and without its prefix, and under the norms' older names",
          "[model][encoder]") {
  const at::Tensor expected = last_states(TinyBert().model());
  const model::Model prefixed = TinyBert("bert.").model();
  REQUIRE(last_states(prefixed).equal(expected));
  REQUIRE(prefixed.architecture().block_prefix(1) == "bert.encoder.layer.1.");
  TinyBert old;
  for (const auto& [name, tensor] : TinyBert().tensors) {
    if (name.find("LayerNorm") == std::string::npos) continue;
    old.tensors.erase(name);
    const std::string norm = name.substr(0, name.rfind('.'));
    old.tensors[norm + (name.ends_with(".weight") ? ".gamma" : ".beta")] = tensor;
  }
  REQUIRE(last_states(old.model()).equal(expected));
  REQUIRE(old.model().load_block(0).vector("encoder.layer.0.output.LayerNorm.beta").defined());
}

TEST_CASE("a token of an encoder sees those behind it", "[model][encoder]") {
  const model::Model model = TinyBert().model();
  std::vector<int64_t> changed = kIds;
  changed.back() = 7;
  const at::Tensor first = test::states_of(model, changed, 1)[0];
  REQUIRE_FALSE(first.equal(test::states_of(model, kIds, 1)[0]));
}

TEST_CASE("what stands on top of an encoder is copied without a warning", "[model][encoder]") {
  TinyBert bert("bert.");
  bert.tensors["bert.pooler.dense.weight"] = at::ones({16, 16});
  bert.tensors["classifier.bias"] = at::ones({3});
  REQUIRE(bert.model().warnings().empty());
  const auto outer = bert.model().outer_tensors();
  REQUIRE(std::count(outer.begin(), outer.end(), "classifier.bias") == 1);
  bert.tensors["bert.extra"] = at::ones({3});
  REQUIRE(bert.model().warnings().size() == 1);
}

TEST_CASE("an encoder without one of its parts is refused", "[model][encoder]") {
  for (const std::string name :
       {"embeddings.position_embeddings.weight", "embeddings.LayerNorm.bias",
        "encoder.layer.1.output.LayerNorm.bias", "encoder.layer.0.output.dense.bias"}) {
    TinyBert bert;
    bert.tensors.erase(name);
    REQUIRE_THROWS_AS(bert.model(), CorruptFile);
    REQUIRE_THAT(test::error_text([&] { bert.model(); }),
                 Catch::StartsWith("[tiny bert] the model must have the tensor '" + name + "'"));
  }
}

TEST_CASE("embeddings refuse segments and positions that there are none of", "[model][encoder]") {
  const model::Model model = TinyBert().model();
  const std::vector<int64_t> ids = {1, 2};
  REQUIRE_FALSE(model.embed(ids, std::vector<int64_t>{0, 1}).equal(model.embed(ids)));
  REQUIRE(test::error_text([&] {
            model.embed(ids, std::vector<int64_t>{0, 2});
          }) == "[Model::embed] segment ids must lie in [0, 2); received 2");
  REQUIRE_THROWS_AS(model.embed(std::vector<int64_t>(65, 1)), ConfigError);
  REQUIRE_THROWS_AS(model.head_rows(0, 1), Unsupported);
  REQUIRE_THAT(
      test::error_text([&] { model.head_rows(0, 1); }),
      Catch::Contains("the model must have a language-model head for this; the family bert has none"));
}

TEST_CASE("activations and the layer norm are those of their formulas in double", "[model][kernels]") {
  const at::Tensor x = at::cat({at::linspace(-12, 12, 999, at::kDouble), at::zeros({1}, at::kDouble)});
  const at::Tensor single = x.to(at::kFloat);
  const std::pair<model::Activation, at::Tensor> expected[] = {
      {model::Activation::kGelu, 0.5 * x * (1 + at::erf(x / std::sqrt(2.0)))},
      {model::Activation::kGeluTanh, at::gelu(x, "tanh")},
      {model::Activation::kSilu, x * at::sigmoid(x)},
      {model::Activation::kRelu, at::relu(x)}};
  for (const auto& [activation, values] : expected) {
    at::Tensor y = at::empty_like(single);
    model::kernels::activate(activation, single.data_ptr<float>(), y.numel(), y.data_ptr<float>());
    REQUIRE((y - values).abs().max().item<double>() < 2e-6);
    // The gate of a row of 500 over the other 500.
    at::Tensor gated = at::empty({500}, at::kFloat);
    model::kernels::gate(activation, single.data_ptr<float>(), 1, 500, gated.data_ptr<float>());
    REQUIRE((gated - values.slice(0, 0, 500) * x.slice(0, 500)).abs().max().item<double>() < 2e-5);
  }
  const at::Tensor rows = (test::normal_matrix(5, 77, "rows") + 3).to(at::kFloat);
  const at::Tensor weight = test::normal_matrix(1, 77, "weight")[0].to(at::kFloat);
  const at::Tensor bias = test::normal_matrix(1, 77, "bias")[0].to(at::kFloat);
  at::Tensor y = rows.clone();  // in place
  model::kernels::layer_norm(y.data_ptr<float>(), weight.data_ptr<float>(), bias.data_ptr<float>(), 1e-12, 5,
                             77, y.data_ptr<float>());
  const at::Tensor exact =
      at::layer_norm(rows.to(at::kDouble), {77}, weight.to(at::kDouble), bias.to(at::kDouble), 1e-12);
  REQUIRE((y - exact).abs().max().item<double>() < 1e-5);
}

TEST_CASE("sentences are pooled as the model's directory says", "[model][pooling]") {
  using model::Pooling;
  const test::TempDir dir;
  REQUIRE(model::read_pooling(dir.path()) == Pooling::kMean);
  write_pooling(dir, R"({"word_embedding_dimension": 16, "pooling_mode_cls_token": true,
                         "pooling_mode_mean_tokens": false})");
  REQUIRE(model::read_pooling(dir.path()) == Pooling::kCls);
  const std::string error =
      "exactly one of pooling_mode_mean_tokens, pooling_mode_cls_token and "
      "pooling_mode_max_tokens must be true, and no other mode; ";
  write_pooling(dir, R"({"pooling_mode_mean_sqrt_len_tokens": true})");
  REQUIRE_THROWS_AS(model::read_pooling(dir.path()), Unsupported);
  REQUIRE_THAT(test::error_text([&] { model::read_pooling(dir.path()); }),
               Catch::Contains(error + "0 of them are"));
  write_pooling(dir, R"({"pooling_mode_cls_token": true, "pooling_mode_max_tokens": true})");
  REQUIRE_THAT(test::error_text([&] { model::read_pooling(dir.path()); }),
               Catch::Contains(error + "2 of them are"));
  write_pooling(dir, "{");
  REQUIRE_THROWS_AS(model::read_pooling(dir.path()), CorruptFile);

  const at::Tensor states = at::tensor({3.0F, 0.0F, 5.0F, 12.0F}).view({2, 2});
  const auto equals = [](const at::Tensor& a, const at::Tensor& b) { return at::allclose(a, b, 1e-6, 1e-7); };
  REQUIRE(
      equals(model::sentence_embedding(states, Pooling::kMean), at::tensor({4.0F, 6.0F}) / std::sqrt(52.0F)));
  REQUIRE(equals(model::sentence_embedding(states, Pooling::kCls), at::tensor({1.0F, 0.0F})));
  REQUIRE(equals(model::sentence_embedding(states, Pooling::kMax), at::tensor({5.0F / 13, 12.0F / 13})));
}
