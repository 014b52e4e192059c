// What must hold of round-to-nearest and GPTQ for any weight. Seeds are in the captured values.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/rtn.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::ThreadPool;
using lcomp::test::correlated_moment;
using lcomp::test::normal_matrix;

namespace {

/// Every combination of bits, granularity, symmetry and convention on 32-column groups.
std::vector<QuantScheme> all_schemes() {
  std::vector<QuantScheme> schemes;
  for (const int64_t bits : {2, 3, 4, 5, 8}) {
    for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
      QuantScheme scheme{.bits = bits, .granularity = granularity, .group_size = 32};
      for (size_t c = 0; c < lcomp::EnumNames<SymmetricConvention>::names.size(); ++c) {
        scheme.symmetric_convention = static_cast<SymmetricConvention>(c);
        schemes.push_back(scheme);
      }
      scheme.symmetric = false;
      for (const auto convention : {AsymmetricConvention::kExtended, AsymmetricConvention::kRaw}) {
        scheme.asymmetric_convention = convention;
        schemes.push_back(scheme);
      }
    }
  }
  return schemes;
}

/// Scheme and conventions in one line, for messages.
std::string text_of(const QuantScheme& scheme) {
  return scheme.describe() + ", " + std::string(lcomp::name_of(scheme.symmetric_convention)) + ", " +
         std::string(lcomp::name_of(scheme.asymmetric_convention));
}

std::string text_of(const GptqOptions& options) {
  return std::string(lcomp::name_of(options.act_order)) + (options.static_groups ? ", static groups" : "") +
         (options.stale_groups ? ", stale groups" : "");
}

/// `values` [rows, groups] of a scheme, one per element of the weight.
at::Tensor per_element(const at::Tensor& values, const at::Tensor& weight) {
  return values.to(at::kDouble).repeat_interleave(weight.size(1) / values.size(1), 1).expand_as(weight);
}

at::Tensor exact_dense(const QuantizedWeight& weight) {
  return dequantize(weight.codes(), {weight.scale(), weight.zero()});
}

void require_identical(const QuantizedWeight& a, const QuantizedWeight& b) {
  REQUIRE(a.codes().equal(b.codes()));
  REQUIRE(a.scale().equal(b.scale()));
  REQUIRE(a.zero().defined() == b.zero().defined());
  if (a.zero().defined()) REQUIRE(a.zero().equal(b.zero()));
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

const std::vector<GptqOptions>& gptq_variants() {
  static const std::vector<GptqOptions> variants = {
      {},
      {.static_groups = true},
      {.act_order = ActOrder::kStaticGroups},
      {.act_order = ActOrder::kGroupAware},
      {.act_order = ActOrder::kActivation, .store_group_index = true},
      {.stale_groups = true},
  };
  return variants;
}

}  // namespace

TEST_CASE("rounding errs by half a step inside the range of the codes", "[quant][property]") {
  for (const uint64_t seed : {1, 2}) {
    const at::Tensor weight = sample_weight(seed);
    for (const QuantScheme& scheme : all_schemes()) {
      CAPTURE(seed, text_of(scheme));
      const QuantizedWeight rounded = rtn(weight, scheme);
      const at::Tensor scale = per_element(rounded.scale(), weight);
      const at::Tensor inside =
          rounded.codes().gt(scheme.lowest_code()).logical_and(rounded.codes().lt(scheme.highest_code()));
      const at::Tensor steps = ((exact_dense(rounded) - weight).abs() / scale.abs()).masked_select(inside);
      if (steps.numel() > 0) REQUIRE(steps.max().item<double>() <= 0.5 + 1e-9);
    }
  }
}

TEST_CASE("what lies on the grid stays there", "[quant][property]") {
  const at::Tensor weight = sample_weight(3);
  for (const QuantScheme& scheme : all_schemes()) {
    CAPTURE(text_of(scheme));
    const QuantizedWeight rounded = rtn(weight, scheme);
    REQUIRE(quantize(exact_dense(rounded), {rounded.scale(), rounded.zero()}, scheme).equal(rounded.codes()));
  }
}

TEST_CASE("a power of two passes through rounding", "[quant][property]") {
  const at::Tensor weight = normal_matrix(7, 64, "weight");
  for (const QuantScheme& scheme : all_schemes()) {
    CAPTURE(text_of(scheme));
    const QuantizedWeight once = rtn(weight, scheme), scaled = rtn(weight * 64, scheme);
    REQUIRE(scaled.codes().equal(once.codes()));
    REQUIRE(scaled.scale().equal(once.scale() * 64));
  }
}

TEST_CASE("groups as wide as the matrix are channels, and the channel of a single row is the tensor",
          "[quant][property]") {
  const at::Tensor weight = sample_weight(4);
  for (QuantScheme scheme : all_schemes()) {
    if (scheme.granularity != Granularity::kChannel) continue;
    for (const RangeRule range : {RangeRule::kMinMax, RangeRule::kMse}) {
      scheme.range = range;
      QuantScheme grouped = scheme, whole = scheme;
      grouped.granularity = Granularity::kGroup;
      grouped.group_size = 96;
      whole.granularity = Granularity::kTensor;
      CAPTURE(text_of(scheme));
      const QuantizedWeight channels = rtn(weight, scheme), groups = rtn(weight, grouped);
      REQUIRE(channels.codes().equal(groups.codes()));
      REQUIRE(channels.scale().equal(groups.scale()));
      const QuantizedWeight row = rtn(weight.narrow(0, 0, 1), scheme),
                            tensor = rtn(weight.narrow(0, 0, 1), whole);
      REQUIRE(row.codes().equal(tensor.codes()));
    }
  }
}

TEST_CASE("the searched range never errs more than the exact one", "[quant][property]") {
  const at::Tensor weight = normal_matrix(9, 64, "weight");
  for (QuantScheme scheme : all_schemes()) {
    if (scheme.bits > 4) continue;
    for (const double exponent : {2.0, 2.4}) {
      CAPTURE(text_of(scheme), exponent);
      scheme.mse_exponent = exponent;
      const auto error = [&](RangeRule range) {
        scheme.range = range;
        const at::Tensor off = (exact_dense(rtn(weight, scheme)) - weight).abs().pow(exponent);
        return scheme.granularity == Granularity::kTensor ? off.sum().reshape({1, 1})
                                                          : off.reshape({9, scheme.groups(64), -1}).sum(2);
      };
      const at::Tensor searched = error(RangeRule::kMse), exact = error(RangeRule::kMinMax);
      REQUIRE((searched - exact).max().item<double>() <= 1e-9 * exact.max().item<double>());
    }
  }
}

TEST_CASE("constant rows and zeros are exact on a range that contains zero", "[quant][property]") {
  const QuantScheme scheme{.bits = 3, .symmetric = false, .granularity = Granularity::kChannel};
  at::Tensor weight = at::zeros({3, 64}, at::kDouble);
  weight.select(0, 1).fill_(0.3);
  weight.select(0, 2).fill_(-1.7);
  REQUIRE((exact_dense(rtn(weight, scheme)) - weight).abs().max().item<double>() < 1e-15);
}

TEST_CASE("rounding is the same at any number of threads, and row by row", "[quant][property]") {
  const at::Tensor weight = normal_matrix(300, 64, "weight").to(at::kFloat);
  for (const QuantScheme& scheme : all_schemes()) {
    if (scheme.bits != 4) continue;
    CAPTURE(text_of(scheme));
    const QuantizedWeight alone = rtn(weight, scheme);
    ThreadPool pool(3);
    require_identical(rtn(weight, scheme, &pool), alone);
    if (scheme.granularity == Granularity::kTensor) continue;
    REQUIRE(rtn(weight.narrow(0, 110, 50), scheme).codes().equal(alone.codes().narrow(0, 110, 50)));
  }
}

TEST_CASE("the compensated errors add up to the damped loss", "[quant][gptq][property]") {
  for (const uint64_t seed : {1, 2}) {
    const at::Tensor weight = normal_matrix(100, 96, "weight", seed), h = correlated_moment(96, 200, seed);
    const at::Tensor damped = h + 0.01 * h.diagonal().mean().item<double>() * at::eye(96, at::kDouble);
    for (const QuantScheme& scheme : all_schemes()) {
      if (scheme.bits > 4) continue;
      for (GptqOptions options : gptq_variants()) {
        CAPTURE(seed, text_of(scheme), text_of(options));
        options.fallback_to_rtn = false;
        const GptqResult result = gptq(weight, h, scheme, options);
        // With a group index, dense() is the only decoder, in float32.
        const bool indexed = result.weight.group_index().defined();
        const at::Tensor dense = indexed ? result.weight.dense().to(at::kDouble) : exact_dense(result.weight);
        const double tolerance = indexed ? 1e-5 : 1e-10;
        REQUIRE(result.damped_loss ==
                Approx(lcomp::activation_energy(weight - dense, damped)).epsilon(tolerance));
        REQUIRE(result.loss == Approx(lcomp::activation_energy(weight - dense, h)).epsilon(10 * tolerance));
      }
    }
  }
}

TEST_CASE("uncorrelated inputs make GPTQ round to nearest, bit for bit", "[quant][gptq][property]") {
  const at::Tensor weight = sample_weight(5);
  const at::Tensor h = at::diag(normal_matrix(1, 96, "diagonal").square().flatten() + 0.01);
  for (const QuantScheme& scheme : all_schemes()) {
    for (const GptqOptions& options : gptq_variants()) {
      if (scheme.granularity == Granularity::kGroup && options.store_group_index) continue;  // other groups
      CAPTURE(text_of(scheme), text_of(options));
      const GptqResult result = gptq(weight, h, scheme, options);
      require_identical(result.weight, rtn(weight, scheme));
      REQUIRE_FALSE(result.fell_back);
    }
  }
}

TEST_CASE("the block size changes nothing", "[quant][gptq][property]") {
  const at::Tensor weight = normal_matrix(40, 192, "weight"), h = correlated_moment(192, 500);
  for (const int64_t group_size : {8, 24, 64, 96, 192}) {
    const QuantScheme scheme{.bits = 3, .symmetric = false, .group_size = group_size};
    const GptqResult expected = gptq(weight, h, scheme);
    for (const int64_t block : {1, 16, 100, 192, 1000}) {
      CAPTURE(group_size, block);
      const GptqResult result = gptq(weight, h, scheme, {.block_size = block});
      REQUIRE(result.weight.codes().equal(expected.weight.codes()));
      REQUIRE(result.loss == Approx(expected.loss).epsilon(1e-9));
    }
  }
}

TEST_CASE("an order that is the plain one changes nothing", "[quant][gptq][property]") {
  // A descending diagonal: every order by activation is the identity.
  at::Tensor h = correlated_moment(64, 200);
  const at::Tensor scale = at::linspace(8, 1, 64, at::kDouble) / h.diagonal().sqrt();
  h = h * scale.unsqueeze(0) * scale.unsqueeze(1);
  const at::Tensor weight = normal_matrix(30, 64, "weight");
  const QuantScheme scheme{.bits = 3, .group_size = 16};
  require_identical(gptq(weight, h, scheme, {.act_order = ActOrder::kGroupAware}).weight,
                    gptq(weight, h, scheme).weight);
  require_identical(gptq(weight, h, scheme, {.act_order = ActOrder::kStaticGroups}).weight,
                    gptq(weight, h, scheme, {.static_groups = true}).weight);
}

TEST_CASE("the factor of the second moment is irrelevant", "[quant][gptq][property]") {
  const at::Tensor weight = normal_matrix(30, 64, "weight"), h = correlated_moment(64, 200);
  const QuantScheme scheme{.bits = 3, .group_size = 16};
  for (const GptqOptions& options : gptq_variants()) {
    CAPTURE(text_of(options));
    const GptqResult once = gptq(weight, h, scheme, options),
                     scaled = gptq(weight, h * 0x1p-12, scheme, options);
    require_identical(once.weight, scaled.weight);
    REQUIRE(scaled.loss == Approx(once.loss * 0x1p-12).epsilon(1e-12));
  }
}

TEST_CASE("a dead input takes weight 0, whatever it was", "[quant][gptq][property]") {
  const at::Tensor weight = normal_matrix(30, 64, "weight");
  at::Tensor h = correlated_moment(64, 200);
  h.select(0, 9).zero_();
  h.select(1, 9).zero_();
  const QuantScheme scheme{.bits = 4, .symmetric = false, .granularity = Granularity::kChannel};
  const GptqResult result = gptq(weight, h, scheme);
  REQUIRE(result.dead_columns == 1);
  REQUIRE(exact_dense(result.weight).select(1, 9).abs().max().item<double>() == 0);
  const at::Tensor other = weight.clone();
  other.select(1, 9).fill_(7);
  const GptqResult same = gptq(other, h, scheme, {.fallback_to_rtn = false});
  require_identical(same.weight, result.weight);
}

TEST_CASE("GPTQ is the same at any number of threads, and row by row in any order",
          "[quant][gptq][property]") {
  const at::Tensor weight = normal_matrix(250, 96, "weight").to(at::kFloat);
  const at::Tensor h = correlated_moment(96, 300).to(at::kFloat);
  const QuantScheme scheme{.bits = 3, .symmetric = false, .group_size = 32};
  for (const GptqOptions& options : gptq_variants()) {
    CAPTURE(text_of(options));
    const GptqResult alone = gptq(weight, h, scheme, options);
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      const GptqResult result = gptq(weight, h, scheme, options, &pool);
      require_identical(result.weight, alone.weight);
      REQUIRE(result.loss == alone.loss);
      REQUIRE(result.rtn_loss == alone.rtn_loss);
    }
    const QuantizedWeight reversed = gptq(weight.flip(0), h, scheme, options).weight;
    REQUIRE(reversed.codes().flip(0).equal(alone.weight.codes()));
    REQUIRE(reversed.scale().flip(0).equal(alone.weight.scale()));
    const QuantizedWeight part = gptq(weight.narrow(0, 101, 31), h, scheme, options).weight;
    REQUIRE(part.codes().equal(alone.weight.codes().narrow(0, 101, 31)));
  }
}

TEST_CASE("on correlated inputs GPTQ loses less than round to nearest", "[quant][gptq][property]") {
  for (const uint64_t seed : {1, 2, 3}) {
    const at::Tensor weight = normal_matrix(50, 128, "weight", seed), h = correlated_moment(128, 400, seed);
    for (const int64_t bits : {2, 3, 4}) {
      for (const bool symmetric : {true, false}) {
        for (const GptqOptions& options : gptq_variants()) {
          const QuantScheme scheme{.bits = bits, .symmetric = symmetric, .group_size = 32};
          CAPTURE(seed, text_of(scheme), text_of(options));
          const GptqResult result = gptq(weight, h, scheme, options);
          REQUIRE_FALSE(result.fell_back);
          REQUIRE(result.loss < 0.9 * result.rtn_loss);
        }
      }
    }
  }
}
