#include "lcomp/calib/gradients.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "reference/whole_model.h"
#include "support/error_text.h"
#include "support/fixture_models.h"
#include "support/matrices.h"
#include "support/tiny_llama.h"

using namespace lcomp;
using calib::BlockGradients;
using calib::GradientOptions;
using calib::GradientSweep;
using Storage = calib::ActivationCache::Storage;

namespace {

using Sequences = std::vector<std::vector<int64_t>>;
constexpr calib::GradientNeeds kAll{.squares = true, .products = true, .masks = true, .moments = true};

Sequences some_sequences(const std::vector<int64_t>& lengths) {
  Sequences out;
  for (size_t s = 0; s < lengths.size(); ++s) {
    std::vector<int64_t> ids;
    for (int64_t t = 0; t < lengths[s]; ++t)
      ids.push_back((7 * t * t + 3 * static_cast<int64_t>(s) + t / 5) % 40);
    out.push_back(ids);
  }
  return out;
}

calib::ModelGradients gradients_of(const model::Model& model, const Sequences& sequences, int threads,
                                   const GradientOptions& options) {
  ThreadPool pool(threads);
  return calib::model_gradients(model, sequences, kAll, options, pool);
}

bool equal(const BlockGradients& a, const BlockGradients& b) {
  bool same = a.heads.equal(b.heads) && a.channels.equal(b.channels);
  for (size_t op = 0; op < a.squares.size(); ++op)
    same = same && a.squares[op].equal(b.squares[op]) && a.products[op].equal(b.products[op]) &&
           a.outputs[op].equal(b.outputs[op]);
  for (size_t g = 0; g < a.moments.size(); ++g) same = same && a.moments[g].equal(b.moments[g]);
  return same;
}

/// What the loss of each sample, a mean over its tokens, weighs in the sum over samples.
std::vector<double> sample_weights(const model::Model& model, const Sequences& sequences) {
  double predictions = 0;
  for (const auto& ids : sequences) predictions += static_cast<double>(ids.size() - 1);
  std::vector<double> weights;
  for (const auto& ids : sequences) {
    const double share = static_cast<double>(ids.size() - 1) / predictions;
    weights.push_back(model.architecture().is_language_model() ? share * static_cast<double>(sequences.size())
                                                               : 1.0);
  }
  return weights;
}

/// Gradients by the outputs of all operators of the whole model, in double: their sums over tokens, and those
/// of the inputs' moments that they weigh.
void compare_moments(const model::Model& model, const Sequences& sequences,
                     const std::vector<BlockGradients>& ours) {
  const std::vector<double> sample_weight = sample_weights(model, sequences);
  std::vector<std::vector<at::Tensor>> moments(ours.size()), outputs(ours.size());
  const auto add = [](at::Tensor& sum, const at::Tensor& part) { sum = sum.defined() ? sum + part : part; };
  for (size_t s = 0; s < sequences.size(); ++s) {
    const auto& ids = sequences[s];
    test::WholeModel whole(model, at::kDouble);
    std::vector<at::Tensor> by;
    for (calib::BlockValues& values : whole.values()) {
      values.inputs = std::make_shared<std::vector<at::Tensor>>(values.weights.size());
      for (const at::Tensor& weight : values.weights) {
        const auto tokens = static_cast<int64_t>(ids.size());
        by.push_back(at::zeros({tokens, weight.size(0)}, at::kDouble).requires_grad_());
        values.output_offsets.push_back(by.back());
      }
    }
    const auto gradients = torch::autograd::grad({whole.loss(ids, s) * sample_weight[s]}, by);
    for (size_t b = 0; b < ours.size(); ++b) {
      const auto& inputs = *whole.values()[b].inputs;
      const auto groups = model.architecture().groups(static_cast<int64_t>(b));
      moments[b].resize(groups.size());
      outputs[b].resize(inputs.size());
      for (size_t g = 0; g < groups.size(); ++g) {
        for (const size_t op : groups[g].operators) {
          const at::Tensor squares = gradients[b * inputs.size() + op].square();
          add(outputs[b][op], squares.sum(0));
          add(moments[b][g], at::matmul((inputs[op] * squares.sum(1, true)).t(), inputs[op]));
        }
      }
    }
  }
  for (size_t b = 0; b < ours.size(); ++b) {
    for (size_t g = 0; g < moments[b].size(); ++g)
      REQUIRE(test::relative_difference(ours[b].moments[g], moments[b][g]) < 1e-4);
    for (size_t op = 0; op < outputs[b].size(); ++op)
      REQUIRE(test::relative_difference(ours[b].outputs[op], outputs[b][op]) < 1e-4);
  }
}

/// The sweep's results against one graph over the whole model, in double.
void compare_with_whole_model(const model::Model& model, const Sequences& sequences) {
  const auto ours = gradients_of(model, sequences, 2, {Storage::kMemory});
  test::WholeModel whole(model, at::kDouble);
  const std::vector<double> sample_weight = sample_weights(model, sequences);
  std::vector<std::vector<std::vector<at::Tensor>>> expected;
  double loss = 0;
  for (size_t s = 0; s < sequences.size(); ++s) {
    loss += whole.loss(sequences[s], s).item<double>() * sample_weight[s];
    expected.push_back(whole.gradients(sequences[s], s));
    for (auto& block : expected.back()) {
      for (at::Tensor& gradient : block) gradient = gradient * sample_weight[s];
    }
  }
  REQUIRE(ours.loss == Approx(loss / static_cast<double>(sequences.size())).epsilon(1e-5));
  compare_moments(model, sequences, ours.blocks);
  for (size_t b = 0; b < ours.blocks.size(); ++b) {
    const size_t ops = whole.values()[b].weights.size();
    for (size_t op = 0; op < ops; ++op) {
      at::Tensor squares = at::zeros_like(expected[0][b][op]);
      at::Tensor sum = at::zeros_like(squares);
      for (const auto& sample : expected) {
        squares += sample[b][op] * sample[b][op];
        sum += sample[b][op];
      }
      INFO("block " << b << ", operator " << op);
      const at::Tensor weight = whole.values()[b].weights[op].detach();
      REQUIRE(test::relative_difference(ours.blocks[b].squares[op], squares) < 1e-4);
      REQUIRE(test::relative_difference(ours.blocks[b].products[op], sum * weight) < 1e-4);
    }
    for (size_t s = 0; s < sequences.size(); ++s) {
      const auto row = static_cast<int64_t>(s);
      REQUIRE(test::relative_difference(ours.blocks[b].heads[row], expected[s][b][ops]) < 1e-4);
      REQUIRE(test::relative_difference(ours.blocks[b].channels[row], expected[s][b][ops + 1]) < 1e-4);
    }
  }
}

}  // namespace

TEST_CASE("gradients made block by block equal those of the whole model, for every fixture",
          "[calib][gradients][golden]") {
  const int64_t checked =
      test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile& io) {
        compare_with_whole_model(model, test::token_rows(io));
      });
  if (checked > 0) REQUIRE(checked >= 24);
}

TEST_CASE("samples of several lengths weigh each token alike", "[calib][gradients]") {
  compare_with_whole_model(test::TinyLlama().model(), some_sequences({2, 50, 17, 9, 31}));
}

TEST_CASE("the loss is the recorded one, for every fixture", "[calib][gradients][golden]") {
  test::for_each_fixture_model([](const model::Model& model, const io::SafetensorsFile& io) {
    if (!model.architecture().is_language_model()) return;
    const auto gradients = gradients_of(model, test::token_rows(io), 1, {Storage::kMemory});
    REQUIRE(gradients.loss == Approx(io.read("nll").to(at::kDouble).mean().item<double>()).epsilon(2e-5));
  });
}

TEST_CASE("neither threads nor the place of the cache nor the head's batches change a bit",
          "[calib][gradients][determinism]") {
  const auto model = test::TinyLlama().model();
  const Sequences sequences = some_sequences({40, 40, 9, 21, 300});
  const auto base = gradients_of(model, sequences, 1, {Storage::kMemory});
  const test::TempDir dir;
  for (const int threads : {1, 2, 3, 8}) {
    const auto other = gradients_of(model, sequences, threads,
                                    {Storage::kDisk, dir.path(), linalg::Precision::kF32, threads * 25});
    REQUIRE(other.loss == base.loss);
    for (size_t b = 0; b < base.blocks.size(); ++b) REQUIRE(equal(other.blocks[b], base.blocks[b]));
  }
}

TEST_CASE("a mask's derivative is the sum of w g over the weights behind it", "[calib][gradients]") {
  // A factor of a head's context or of a channel scales whole columns of the projection that follows.
  const auto model = test::TinyLlama().model();
  const auto all = gradients_of(model, some_sequences({30, 30, 30}), 2, {Storage::kMemory});
  for (const BlockGradients& block : all.blocks) {
    const at::Tensor heads = block.products[3].to(at::kDouble).sum(0).view({2, 8}).sum(1);
    REQUIRE(test::relative_difference(block.heads.sum(0), heads) < 1e-4);
    const at::Tensor channels = block.products[6].to(at::kDouble).sum(0);
    REQUIRE(test::relative_difference(block.channels.sum(0), channels) < 1e-4);
  }
}

TEST_CASE("squares are taken per sample: two equal samples give twice one's, not four times",
          "[calib][gradients]") {
  const auto model = test::TinyLlama().model();
  const Sequences one = some_sequences({30});
  const auto once = gradients_of(model, one, 1, {Storage::kMemory});
  const auto twice = gradients_of(model, {one[0], one[0]}, 1, {Storage::kMemory});
  for (size_t b = 0; b < once.blocks.size(); ++b)
    REQUIRE(test::relative_difference(twice.blocks[b].squares[6], 2 * once.blocks[b].squares[6]) < 1e-6);
}

TEST_CASE("a sweep goes on from a saved derivative as if it had not stopped", "[calib][gradients]") {
  const auto model = test::TinyLlama().model();
  const Sequences sequences = some_sequences({20, 33});
  const test::TempDir dir;
  ThreadPool pool(2);
  const auto whole = gradients_of(model, sequences, 2, {Storage::kMemory});
  std::string hash;
  {
    GradientSweep first(model, sequences, {Storage::kDisk, dir.path()}, pool);
    first.start();
    for (int64_t i = 0; i < 2; ++i) first.forward(i);
    first.head();
    REQUIRE(equal(first.backward(1, kAll), whole.blocks[1]));
    hash = first.save(dir / "state");
  }
  REQUIRE(std::distance(std::filesystem::directory_iterator(dir.path()), {}) == 1);  // the caches are gone
  GradientSweep second(model, sequences, {Storage::kMemory}, pool);
  second.start();
  second.forward(0);
  REQUIRE(second.restore(dir / "state") == hash);
  REQUIRE(equal(second.backward(0, kAll), whole.blocks[0]));

  GradientSweep other(model, some_sequences({20, 34}), {Storage::kMemory}, pool);
  REQUIRE_THROWS_AS(other.restore(dir / "state"), CorruptFile);
}

TEST_CASE("what is not asked for is not made", "[calib][gradients]") {
  const auto model = test::TinyLlama().model();
  ThreadPool pool(1);
  GradientSweep sweep(model, some_sequences({20, 33}), {Storage::kMemory}, pool);
  sweep.start();
  for (int64_t i = 0; i < 2; ++i) sweep.forward(i);
  sweep.head();
  const BlockGradients nothing = sweep.backward(1, {});
  REQUIRE((nothing.squares.empty() && nothing.products.empty() && !nothing.heads.defined()));
  const BlockGradients squares = sweep.backward(0, {.squares = true});
  const auto all = gradients_of(model, some_sequences({20, 33}), 1, {Storage::kMemory});
  REQUIRE((squares.products.empty() && squares.moments.empty() && squares.outputs.empty()));
  for (size_t op = 0; op < squares.squares.size(); ++op)
    REQUIRE(squares.squares[op].equal(all.blocks[0].squares[op]));
  REQUIRE(sweep.flops() == Approx(GradientSweep::planned_flops(model.architecture(), {20, 33})));
}

TEST_CASE("a sequence that predicts nothing is refused", "[calib][gradients]") {
  const auto model = test::TinyLlama().model();
  ThreadPool pool(1);
  const auto call = [&] { GradientSweep(model, {{1, 2}, {3}}, {Storage::kMemory}, pool); };
  REQUIRE_THROWS_AS(call(), InvalidArgument);
  REQUIRE(test::error_text(call) == "[GradientSweep] a sequence must have at least 2 tokens; received 1");
}
