#include "lcomp/calib/differentiable_block.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "reference/whole_model.h"
#include "support/fixture_models.h"
#include "support/matrices.h"
#include "support/tiny_llama.h"

using namespace lcomp;

TEST_CASE("a differentiable block computes what Block::forward computes, for every fixture",
          "[calib][gradients][golden]") {
  const int64_t checked =
      test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile& io) {
        for (const auto& ids : test::token_rows(io)) {
          model::SampleState state{model.embed(ids), {}};
          linalg::Scratch scratch;
          for (int64_t i = 0; i < model.size(); ++i) {
            model::Block block = model.load_block(i);
            const calib::DifferentiableBlock differentiable(model.architecture(), i);
            const at::Tensor before = state.hidden.clone();
            const at::Tensor ours = differentiable.forward(calib::values_of(block, at::kFloat), before);
            const at::Tensor exact =
                differentiable.forward(calib::values_of(block, at::kDouble), before.to(at::kDouble));
            test::prepare_all(block);
            block.forward(state, scratch);
            REQUIRE(test::relative_difference(ours, state.hidden) < 1e-5);
            REQUIRE(test::relative_difference(state.hidden, exact) < 1e-5);
          }
        }
      });
  if (checked > 0) REQUIRE(checked >= 24);
}

TEST_CASE("tiles of queries change nothing: 700 tokens, with and without a window", "[calib][gradients]") {
  for (const int64_t window : {0, 37, 300}) {
    test::TinyLlama llama;
    if (window > 0) {
      llama.config["model_type"] = "mistral";
      llama.config["sliding_window"] = window;
    }
    llama.config["max_position_embeddings"] = 1024;
    const auto model = llama.model();
    model::Block block = model.load_block(0);
    model::SampleState state{test::normal_matrix(700, 16, "hidden").to(at::kFloat), {}};
    const at::Tensor ours = calib::DifferentiableBlock(model.architecture(), 0)
                                .forward(calib::values_of(block, at::kFloat), state.hidden);
    test::prepare_all(block);
    linalg::Scratch scratch;
    block.forward(state, scratch);
    INFO("window " << window);
    REQUIRE(test::relative_difference(ours, state.hidden) < 1e-5);
  }
}

TEST_CASE("derivatives of the whole model are those of central differences, for every fixture",
          "[calib][gradients][golden]") {
  const int64_t checked =
      test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile& io) {
        const std::vector<int64_t> ids = test::token_rows(io)[0];
        test::WholeModel whole(model, at::kDouble);
        const auto gradients = whole.gradients(ids);
        Rng rng(3, "entries");
        const auto check = [&](at::Tensor& values, const at::Tensor& gradient) {
          const at::NoGradGuard constant;
          const auto i = static_cast<int64_t>(rng.below(static_cast<uint64_t>(values.numel())));
          double& entry = values.data_ptr<double>()[i];
          const double before = entry;
          const double step = 1e-5;
          entry = before + step;
          const double above = whole.loss(ids).item<double>();
          entry = before - step;
          const double below = whole.loss(ids).item<double>();
          entry = before;
          const double expected = (above - below) / (2 * step);
          const double got = gradient.contiguous().data_ptr<double>()[i];
          REQUIRE(std::abs(got - expected) <= 1e-6 * std::abs(expected) + 1e-9);
        };
        for (size_t b = 0; b < gradients.size(); ++b) {
          auto& values = whole.values()[b];
          const size_t ops = values.weights.size();
          for (size_t op = 0; op < ops; ++op) check(values.weights[op], gradients[b][op]);
          check(values.head_mask, gradients[b][ops]);
          check(values.channel_mask, gradients[b][ops + 1]);
        }
      });
  if (checked > 0) REQUIRE(checked >= 24);
}
