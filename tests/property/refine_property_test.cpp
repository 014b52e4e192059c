// What must hold of sweeps and refits for any weight. Seeds are in the captured values.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/threads.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/refine.h"
#include "lcomp/quant/rtn.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::ThreadPool;
using lcomp::test::correlated_moment;
using lcomp::test::normal_matrix;

namespace {

std::vector<QuantScheme> schemes() {
  std::vector<QuantScheme> out;
  for (const int64_t bits : {2, 3, 8}) {
    for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
      for (const bool symmetric : {true, false}) {
        for (const auto type : {ScaleDtype::kModel, ScaleDtype::kBFloat16}) {
          out.push_back({.bits = bits,
                         .symmetric = symmetric,
                         .granularity = granularity,
                         .group_size = 32,
                         .scale_dtype = type});
        }
      }
    }
  }
  return out;
}

/// Rows that are all zero, constant, without negatives and without positives among normal ones.
at::Tensor sample_weight(uint64_t seed) {
  at::Tensor weight = normal_matrix(13, 96, "weight", seed);
  weight.select(0, 1).zero_();
  weight.select(0, 2).fill_(0.25);
  weight.select(0, 3).abs_();
  weight.select(0, 4).abs_().neg_();
  return weight;
}

}  // namespace

TEST_CASE("the damped loss never rises, and more sweeps never lose more", "[quant][property]") {
  for (const uint64_t seed : {1, 2}) {
    const at::Tensor weight = sample_weight(seed), h = correlated_moment(96, 150, seed);
    const std::vector<double> added(96, 0.01 * h.diagonal().mean().item<double>());
    for (const QuantScheme& scheme : schemes()) {
      for (const bool refit : {false, true}) {
        CAPTURE(seed, scheme.describe(), lcomp::name_of(scheme.scale_dtype), refit);
        const QuantizedWeight start = rtn(weight, scheme);
        double before = 0;
        for (int64_t sweeps = 0; sweeps <= 4; ++sweeps) {
          const RefineResult result = refine(weight, h, added, start, {.sweeps = sweeps, .refit = refit});
          REQUIRE(result.damped_loss <= result.start_loss * (1 + 1e-12));
          if (sweeps > 0 && !refit) REQUIRE(result.damped_loss <= before * (1 + 1e-12));
          before = result.damped_loss;
          REQUIRE(result.weight.scale().scalar_type() == start.scale().scalar_type());
          REQUIRE(result.weight.scale().sign().equal(start.scale().sign()));
        }
      }
    }
  }
}

TEST_CASE("refining again what no sweep improves changes nothing", "[quant][property]") {
  const at::Tensor weight = sample_weight(3), h = correlated_moment(96, 150);
  const QuantizedWeight start = rtn(weight, {.bits = 3, .group_size = 32});
  const RefineResult settled = refine(weight, h, {}, start, {.sweeps = 60, .refit = false});
  const RefineResult again = refine(weight, h, {}, settled.weight, {.sweeps = 1, .refit = false});
  REQUIRE(again.weight.codes().equal(settled.weight.codes()));
  REQUIRE(again.start_loss == Approx(settled.damped_loss).epsilon(1e-10));
}

TEST_CASE("neither threads nor the other rows change a row", "[quant][property]") {
  ThreadPool pool(3);
  const at::Tensor weight = normal_matrix(200, 64, "weight"), h = correlated_moment(64, 150).to(at::kFloat);
  const QuantizedWeight start = rtn(weight, {.bits = 3, .symmetric = false, .group_size = 16});
  const RefineOptions options{.sweeps = 2, .refit = true};
  const RefineResult one = refine(weight, h, {}, start, options);
  const RefineResult three = refine(weight, h, {}, start, options, &pool);
  REQUIRE(three.weight.codes().equal(one.weight.codes()));
  REQUIRE(three.weight.scale().equal(one.weight.scale()));
  REQUIRE(three.damped_loss == one.damped_loss);

  const auto rows = [](const at::Tensor& t) { return t.narrow(0, 90, 20).contiguous(); };
  const QuantizedWeight part(start.scheme(), rows(start.codes()), rows(start.scale()), rows(start.zero()));
  const RefineResult few = refine(rows(weight), h, {}, part, options);
  REQUIRE(few.weight.codes().equal(rows(one.weight.codes())));
  REQUIRE(few.weight.scale().equal(rows(one.weight.scale())));
}

TEST_CASE("a power of two passes through refining", "[quant][property]") {
  const at::Tensor weight = normal_matrix(7, 64, "weight"), h = correlated_moment(64, 150);
  const QuantScheme scheme{.bits = 3, .group_size = 16};
  const RefineOptions options{.sweeps = 2, .refit = true};
  const RefineResult once = refine(weight, h, {}, rtn(weight, scheme), options);
  const RefineResult scaled = refine(weight * 64, h * 4, {}, rtn(weight * 64, scheme), options);
  REQUIRE(scaled.weight.codes().equal(once.weight.codes()));
  REQUIRE(scaled.weight.scale().equal(once.weight.scale() * 64));
}

TEST_CASE("GPTQ with sweeps and refits keeps its own loss as a bound", "[quant][property]") {
  for (const uint64_t seed : {1, 2, 3}) {
    const at::Tensor weight = normal_matrix(40, 96, "weight", seed), h = correlated_moment(96, 300, seed);
    for (const ActOrder order : {ActOrder::kNone, ActOrder::kStaticGroups, ActOrder::kGroupAware}) {
      for (const auto range : {RangeRule::kMinMax, RangeRule::kHessian}) {
        CAPTURE(seed, lcomp::name_of(order), lcomp::name_of(range));
        const QuantScheme scheme{.bits = 3, .group_size = 32, .range = range};
        const GptqResult plain = gptq(weight, h, scheme, {.act_order = order, .sweeps = 0, .refit = false});
        const GptqResult swept = gptq(weight, h, scheme, {.act_order = order, .sweeps = 2, .refit = false});
        const GptqResult both = gptq(weight, h, scheme, {.act_order = order, .sweeps = 2, .refit = true});
        REQUIRE(plain.walk_loss == plain.damped_loss);
        REQUIRE(swept.walk_loss == plain.walk_loss);
        REQUIRE(swept.damped_loss < plain.damped_loss);
        REQUIRE(both.damped_loss < swept.damped_loss);
      }
    }
  }
}
