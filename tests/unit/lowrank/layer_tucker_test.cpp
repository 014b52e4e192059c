#include "lcomp/lowrank/layer_tucker.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/lowrank/tucker.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::lowrank;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

constexpr int64_t kOut = 18, kIn = 12;

struct Layer {
  at::Tensor weight;
  InputMetric metric;
};

std::vector<Layer> random_layers(int64_t count) {
  std::vector<Layer> layers;
  for (int64_t i = 0; i < count; ++i) {
    const auto seed = static_cast<uint64_t>(i + 1);
    layers.push_back(
        {normal_matrix(kOut, kIn, "w", seed), InputMetric::moment(correlated_moment(kIn, 4 * kIn, seed))});
  }
  return layers;
}

LayerSums sums_of(const std::vector<Layer>& layers) {
  LayerSums sums;
  for (const Layer& layer : layers) sums.add(layer.weight, layer.metric);
  return sums;
}

double loss_of(const Layer& layer, const LayerBases& bases) {
  const at::Tensor core = layer_core(layer.weight, bases, layer.metric);
  return layer.metric.loss(layer.weight - bases.left.mm(core).mm(bases.right.t()));
}

/// Of all layers, each relative to its outputs: what the bases are chosen for.
double total_loss(const std::vector<Layer>& layers, const LayerBases& bases) {
  double sum = 0;
  for (const Layer& layer : layers) sum += loss_of(layer, bases) / layer.metric.loss(layer.weight);
  return sum;
}

}  // namespace

TEST_CASE("stacked layers: one layer has the best factors of its rank", "[lowrank][tucker]") {
  const std::vector<Layer> layers = random_layers(1);
  const LayerSums sums = sums_of(layers);
  for (const int64_t rank : {1, 5, 11}) {
    CAPTURE(rank);
    const LayerBases bases = layer_bases(sums, rank, rank);
    const Factors best = low_rank(layers[0].weight, layers[0].metric, rank);
    REQUIRE(loss_of(layers[0], bases) == Approx(best.tail).epsilon(1e-7));
  }
}

TEST_CASE("stacked layers: full ranks are exact, and layers made of common bases are found",
          "[lowrank][tucker]") {
  std::vector<Layer> layers = random_layers(4);
  REQUIRE(total_loss(layers, layer_bases(sums_of(layers), kOut, kIn)) < 1e-18);
  const at::Tensor u = normal_matrix(kOut, 5, "u"), v = normal_matrix(kIn, 3, "v");
  for (size_t i = 0; i < layers.size(); ++i)
    layers[i].weight = u.mm(normal_matrix(5, 3, "core", i + 1)).mm(v.t());
  REQUIRE(total_loss(layers, layer_bases(sums_of(layers), 5, 3)) < 1e-12);
  REQUIRE(total_loss(layers, layer_bases(sums_of(layers), 4, 3)) > 1e-4);
}

TEST_CASE("stacked layers: bases are orthonormal, and more of them lose less", "[lowrank][tucker]") {
  const std::vector<Layer> layers = random_layers(3);
  const LayerSums sums = sums_of(layers);
  double before = std::numeric_limits<double>::infinity();
  for (const int64_t rank : {2, 4, 8, 11}) {
    const LayerBases bases = layer_bases(sums, rank, rank);
    for (const at::Tensor& basis : {bases.left, bases.right})
      REQUIRE(relative_difference(basis.t().mm(basis), at::eye(rank, at::kDouble)) < 1e-12);
    const double loss = total_loss(layers, bases);
    REQUIRE(loss < before);
    before = loss;
  }
}

TEST_CASE("stacked layers: without data the bases are those of the partial HOSVD", "[lowrank][tucker]") {
  std::vector<at::Tensor> slices;
  LayerSums sums;
  for (uint64_t i = 1; i <= 5; ++i) {
    at::Tensor w = normal_matrix(kOut, kIn, "w", i);
    w = w / w.norm();  // sums weigh all layers alike
    slices.push_back(w);
    sums.add(w, InputMetric::plain(kIn));
  }
  const LayerBases bases = layer_bases(sums, 7, 4);
  const Tucker reference = hosvd(at::stack(slices), {7, 4}, {1, 2});
  const auto projector = [](const at::Tensor& basis) { return basis.mm(basis.t()); };
  REQUIRE(relative_difference(projector(bases.left), projector(reference.factors[0])) < 1e-9);
  REQUIRE(relative_difference(projector(bases.right), projector(reference.factors[1])) < 1e-9);
}

TEST_CASE("stacked layers: the core is the least squares, and data lose less than none",
          "[lowrank][tucker]") {
  const std::vector<Layer> layers = random_layers(4);
  const LayerBases bases = layer_bases(sums_of(layers), 8, 6);
  for (const Layer& layer : layers) {
    const at::Tensor core = layer_core(layer.weight, bases, layer.metric);
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      const at::Tensor moved = core + 1e-3 * normal_matrix(8, 6, "step", seed);
      REQUIRE(layer.metric.loss(layer.weight - bases.left.mm(moved).mm(bases.right.t())) >
              loss_of(layer, bases));
    }
  }
  LayerSums blind;
  for (const Layer& layer : layers) blind.add(layer.weight, InputMetric::plain(kIn));
  REQUIRE(total_loss(layers, bases) < total_loss(layers, layer_bases(blind, 8, 6)));
}

TEST_CASE("stacked layers: inputs that no layer reads, layers of zeros, and the order of the layers",
          "[lowrank][tucker]") {
  std::vector<Layer> layers = random_layers(3);
  at::Tensor dead = correlated_moment(kIn, 40);
  dead.select(0, 2).zero_();
  dead.select(1, 2).zero_();
  for (Layer& layer : layers) layer.metric = InputMetric::moment(dead);
  LayerSums sums = sums_of(layers);
  const LayerBases bases = layer_bases(sums, 8, 6);
  REQUIRE(bases.right.isfinite().all().item<bool>());
  REQUIRE(std::isfinite(total_loss(layers, bases)));
  sums.add(at::zeros({kOut, kIn}), layers[0].metric);
  REQUIRE(layer_bases(sums, 8, 6).left.equal(bases.left));
  std::swap(layers[0], layers[2]);
  REQUIRE(relative_difference(sums_of(layers).outputs, sums.outputs) < 1e-14);
}

TEST_CASE("stacked layers: the share of ranks fills the size", "[lowrank][tucker]") {
  for (const int64_t layers : {1, 2, 30}) {
    for (const double share : {0.3, 0.8}) {
      CAPTURE(layers, share);
      const double r = layer_rank_share(1536, 576, layers, share);
      const double size =
          r * (1536.0 * 1536 + 576.0 * 576) + static_cast<double>(layers) * r * r * 1536 * 576;
      REQUIRE(size == Approx(share * static_cast<double>(layers) * 1536 * 576));
    }
  }
  REQUIRE(layer_rank_share(8, 8, 30, 5) == 1);
}

TEST_CASE("stacked layers: what does not fit is refused", "[lowrank][tucker]") {
  LayerSums sums = sums_of(random_layers(1));
  CHECK(error_text([&] { layer_bases(sums, 0, 3); }) ==
        "[layer_bases] the rank of the outputs must be from 1 to 18; it is 0");
  CHECK(error_text([&] { layer_bases(sums, 3, 13); }) ==
        "[layer_bases] the rank of the inputs must be from 1 to 12; it is 13");
  CHECK(error_text([&] { sums.add(normal_matrix(3, kIn, "w"), InputMetric::plain(kIn)); }) ==
        "[LayerSums::add] all layers must be [18, 12]; one is [3, 12]");
  const at::Tensor bad = at::full({kOut, kIn}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  CHECK(error_text([&] { sums.add(bad, InputMetric::plain(kIn)); }) ==
        "[LayerSums::add] the outputs of a layer must be finite; they are not");
}
