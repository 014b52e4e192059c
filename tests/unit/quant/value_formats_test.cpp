// NF4 and E4M3 as the target of round-to-nearest and GPTQ.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "lcomp/core/threads.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/refine.h"
#include "lcomp/quant/rtn.h"
#include "reference/gptq_reference.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::quant;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::to_eigen;

namespace {

constexpr NumberFormat kFormats[] = {NumberFormat::kNf4, NumberFormat::kFp8E4m3};

QuantScheme scheme_of(NumberFormat format, Granularity granularity = Granularity::kGroup) {
  return {
      .format = format, .granularity = granularity, .group_size = 16, .scale_dtype = ScaleDtype::kFloat32};
}

/// The nearest value of a format by the definitions, one number at a time.
double nearest(NumberFormat format, double t) {
  return format == NumberFormat::kNf4 ? kNf4Values[nf4_code(t)] : fp8_e4m3_value(fp8_e4m3_code(t));
}

/// The scale that a group asks for, in float32 as it is stored.
double scale_of(NumberFormat format, double largest) {
  const double scale = largest / (format == NumberFormat::kNf4 ? 1.0 : kFp8Largest);
  return static_cast<float>(scale);
}

double error_of(const at::Tensor& weight, const QuantizedWeight& rounded, double exponent = 2) {
  return (weight - rounded.dense().to(at::kDouble)).abs().pow(exponent).sum().item<double>();
}

}  // namespace

TEST_CASE("rounding goes to the nearest value times the scale of the group, element by element",
          "[quant][rtn][number-format]") {
  at::Tensor weight = normal_matrix(100, 64, "weight");
  weight.select(0, 3).mul_(1e-3);
  weight[5].narrow(0, 16, 16).zero_();
  for (const NumberFormat format : kFormats) {
    const QuantizedWeight rounded = rtn(weight, scheme_of(format));
    const at::Tensor dense = rounded.dense();
    REQUIRE(rounded.scale().scalar_type() == at::kFloat);
    for (int64_t r = 0; r < weight.size(0); ++r) {
      for (int64_t g = 0; g < 4; ++g) {
        const at::Tensor group = weight[r].narrow(0, g * 16, 16);
        const double largest = group.abs().max().item<double>();
        CAPTURE(lcomp::name_of(format), r, g);
        if (largest == 0) {
          REQUIRE(at::count_nonzero(dense[r].narrow(0, g * 16, 16)).item<int64_t>() == 0);
          continue;
        }
        const double scale = scale_of(format, largest);
        REQUIRE(rounded.scale()[r][g].item<float>() == scale);
        for (int64_t j = 0; j < 16; ++j) {
          const double value = nearest(format, group[j].item<double>() / scale);
          REQUIRE(dense[r][g * 16 + j].item<float>() == static_cast<float>(value * scale));
        }
      }
    }
  }
}

TEST_CASE("per channel and per tensor the largest weight is the largest value",
          "[quant][rtn][number-format]") {
  const at::Tensor weight = normal_matrix(7, 32, "weight").to(at::kFloat);
  for (const NumberFormat format : kFormats) {
    const double top = format == NumberFormat::kNf4 ? 1 : kFp8Largest;
    const QuantizedWeight channels = rtn(weight, scheme_of(format, Granularity::kChannel));
    REQUIRE(channels.scale().equal((weight.abs().amax(1, true).to(at::kDouble) / top).to(at::kFloat)));
    const QuantizedWeight whole = rtn(weight, scheme_of(format, Granularity::kTensor));
    REQUIRE(whole.scale().item<float>() == static_cast<float>(weight.abs().max().item<double>() / top));
    REQUIRE(whole.dense().abs().max().item<float>() == Approx(weight.abs().max().item<float>()));
  }
}

TEST_CASE("what is on the grid stays as it is, and a weight twice as large has scales twice as large",
          "[quant][rtn][number-format]") {
  const at::Tensor weight = normal_matrix(20, 64, "weight");
  for (const NumberFormat format : kFormats) {
    const QuantizedWeight once = rtn(weight, scheme_of(format));
    const QuantizedWeight again = rtn(once.dense(), scheme_of(format));
    REQUIRE(again.codes().equal(once.codes()));
    // The scale is rounded to float32 a second time.
    REQUIRE(lcomp::test::relative_difference(again.dense(), once.dense()) < 1e-6);
    const QuantizedWeight doubled = rtn(weight * 2, scheme_of(format));
    REQUIRE(doubled.codes().equal(once.codes()));
    REQUIRE(doubled.scale().equal(once.scale() * 2));
    const QuantizedWeight negative = rtn(-weight, scheme_of(NumberFormat::kFp8E4m3));
    REQUIRE(negative.dense().equal(-rtn(weight, scheme_of(NumberFormat::kFp8E4m3)).dense()));
  }
}

TEST_CASE("NF4 errs less on normal weights than 4-bit integers, and shrinking the range never errs more",
          "[quant][rtn][number-format]") {
  const at::Tensor weight = normal_matrix(64, 256, "weight");
  QuantScheme integers{.group_size = 64};
  QuantScheme nf4 = scheme_of(NumberFormat::kNf4);
  nf4.group_size = 64;
  REQUIRE(error_of(weight, rtn(weight, nf4)) < error_of(weight, rtn(weight, integers)));
  for (const NumberFormat format : kFormats) {
    for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
      QuantScheme scheme = scheme_of(format, granularity);
      const QuantizedWeight full = rtn(weight, scheme);
      scheme.range = RangeRule::kMse;
      const QuantizedWeight shrunk = rtn(weight, scheme);
      REQUIRE(error_of(weight, shrunk, 2.4) <= error_of(weight, full, 2.4) * (1 + 1e-6));
      if (format == NumberFormat::kNf4) REQUIRE(error_of(weight, shrunk, 2.4) < error_of(weight, full, 2.4));
    }
  }
}

TEST_CASE("a range fitted to the outputs loses least of them, with the diagonal and with the whole moment",
          "[quant][rtn][number-format]") {
  const at::Tensor weight = normal_matrix(30, 64, "weight"), h = correlated_moment(64, 200);
  const auto lost = [&](const QuantizedWeight& rounded, const at::Tensor& importance) {
    const at::Tensor off = weight - rounded.dense().to(at::kDouble);
    double sum = 0;
    for (int64_t g = 0; g < 4; ++g) {
      const at::Tensor d = off.narrow(1, g * 16, 16);
      const at::Tensor part = importance.dim() == 1 ? at::diag(importance.narrow(0, g * 16, 16))
                                                    : importance.narrow(0, g * 16, 16).narrow(1, g * 16, 16);
      sum += at::matmul(d, part).mul(d).sum().item<double>();
    }
    return sum;
  };
  for (const NumberFormat format : kFormats) {
    QuantScheme scheme = scheme_of(format);
    const QuantizedWeight full = rtn(weight, scheme);
    scheme.range = RangeRule::kHessian;
    for (const at::Tensor& importance : {h.diagonal(), h}) {
      CAPTURE(lcomp::name_of(format), importance.dim());
      const QuantizedWeight fitted = rtn(weight, scheme, nullptr, importance);
      REQUIRE(lost(fitted, importance) < lost(full, importance) * (1 + 1e-6));
    }
  }
}

TEST_CASE("double quantization rounds to the scales that a reader has, at little cost",
          "[quant][rtn][number-format]") {
  const at::Tensor weight = normal_matrix(64, 256, "weight");
  QuantScheme scheme = scheme_of(NumberFormat::kNf4);
  const QuantizedWeight plain = rtn(weight, scheme);
  scheme.double_quant = true;
  const QuantizedWeight nested = rtn(weight, scheme);
  REQUIRE(nested.scale().equal(unnest_scales(nested.nested_scales())));
  REQUIRE(nested.describe() == "nf4, groups of 16, scales of 8 bits");
  for (int64_t r = 0; r < 3; ++r) {
    for (int64_t j = 0; j < 256; ++j) {
      const double scale = nested.scale()[r][j / 16].item<float>();
      const double value = nearest(NumberFormat::kNf4, weight[r][j].item<double>() / scale);
      REQUIRE(nested.dense()[r][j].item<float>() == static_cast<float>(value * scale));
    }
  }
  REQUIRE(error_of(weight, nested) < 1.03 * error_of(weight, plain));
  REQUIRE(packed_bytes(scheme, 64, 4096, at::kFloat) <
          packed_bytes(scheme_of(NumberFormat::kNf4), 64, 4096, at::kFloat));
}

TEST_CASE("GPTQ on NF4 and E4M3 equals the column-by-column elimination of an explicit inverse",
          "[quant][gptq][number-format]") {
  const at::Tensor weight = normal_matrix(20, 48, "weight"), h = correlated_moment(48, 120);
  for (const NumberFormat format : kFormats) {
    const auto fit = [&](const lcomp::reference::Vector& group) -> lcomp::reference::Round {
      const double scale = scale_of(format, group.cwiseAbs().maxCoeff());
      return [=](double w) { return nearest(format, w / scale) * scale; };
    };
    const lcomp::reference::Matrix expected = lcomp::reference::gptq(to_eigen(weight), to_eigen(h), 16, fit);
    const GptqResult result = gptq(weight, h, scheme_of(format));
    CAPTURE(lcomp::name_of(format));
    REQUIRE((to_eigen(result.weight.dense()) - expected).cwiseAbs().maxCoeff() < 1e-6);
    const double loss = lcomp::reference::energy(to_eigen(weight) - expected, to_eigen(h));
    REQUIRE(result.loss == Approx(loss).epsilon(1e-5));
  }
}

TEST_CASE("GPTQ on NF4 and E4M3 loses less than rounding to nearest, in every order",
          "[quant][gptq][number-format]") {
  const at::Tensor weight = normal_matrix(40, 96, "weight"), h = correlated_moment(96, 300);
  for (const NumberFormat format : kFormats) {
    for (const auto granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
      for (const ActOrder order : {ActOrder::kNone, ActOrder::kStaticGroups, ActOrder::kGroupAware}) {
        for (const bool nested : {false, true}) {
          if (nested && format != NumberFormat::kNf4) continue;
          QuantScheme scheme = scheme_of(format, granularity);
          scheme.double_quant = nested;
          GptqOptions options;
          options.act_order = order;
          const GptqResult result = gptq(weight, h, scheme, options);
          CAPTURE(scheme.describe(), lcomp::name_of(order));
          REQUIRE_FALSE(result.fell_back);
          REQUIRE(result.loss < 0.9 * result.rtn_loss);
          const at::Tensor off = weight - result.weight.dense().to(at::kDouble);
          const double loss = at::matmul(off, h).mul(off).sum().item<double>();
          REQUIRE(result.loss == Approx(loss).epsilon(1e-4));
          REQUIRE(result.weight.nested_scales().defined() == nested);
        }
      }
    }
  }
}

TEST_CASE("the same codes at any number of threads", "[quant][gptq][number-format]") {
  const at::Tensor weight = normal_matrix(200, 64, "weight"), h = correlated_moment(64, 200);
  lcomp::ThreadPool one(1), three(3);
  for (const NumberFormat format : kFormats) {
    QuantScheme scheme = scheme_of(format);
    scheme.double_quant = format == NumberFormat::kNf4;
    const GptqResult a = gptq(weight, h, scheme, {}, &one), b = gptq(weight, h, scheme, {}, &three);
    REQUIRE(a.weight.codes().equal(b.weight.codes()));
    REQUIRE(a.weight.scale().equal(b.weight.scale()));
    REQUIRE(rtn(weight, scheme, &one).codes().equal(rtn(weight, scheme, &three).codes()));
  }
}

TEST_CASE("settings that exclude each other are refused", "[quant][scheme][number-format]") {
  const auto text = [](const QuantScheme& scheme) {
    return error_text([&] { scheme.validate({4, 128}, "rtn", "q_proj"); });
  };
  REQUIRE(text({.format = NumberFormat::kNf4, .symmetric = false}) ==
          "[rtn] symmetric must be true with format nf4 of 'q_proj'; received false");
  REQUIRE(text({.format = NumberFormat::kFp8E4m3, .double_quant = true}) ==
          "[rtn] double_quant must be false but for format nf4 of 'q_proj'; the format is fp8_e4m3");
  REQUIRE(text({.format = NumberFormat::kNf4, .scale_dtype = ScaleDtype::kBFloat16}) ==
          "[rtn] scale_dtype must be float32 with format nf4 of 'q_proj'; received bfloat16");
  GptqOptions options;
  options.act_order = ActOrder::kActivation;
  options.store_group_index = true;
  const at::Tensor weight = normal_matrix(4, 32, "weight"), h = correlated_moment(32, 64);
  REQUIRE(error_text([&] { gptq(weight, h, scheme_of(NumberFormat::kNf4), options); }) ==
          "[gptq] act_order activation with groups must store a group index, which only integers have; the "
          "format is nf4");
  options = {};
  options.sweeps = 1;
  REQUIRE(error_text([&] { gptq(weight, h, scheme_of(NumberFormat::kFp8E4m3), options); }) ==
          "[gptq] sweeps and refit must be off but for integers; the format is fp8_e4m3");
  const QuantizedWeight nf4 = rtn(weight, scheme_of(NumberFormat::kNf4));
  REQUIRE(error_text([&] { refine(weight, h, {}, nf4, {}); }) ==
          "[refine] the weight must be of integers; its format is nf4");
  REQUIRE(error_text([&] { QuantizedInputWeight(nf4, {}); }) ==
          "[QuantizedInputWeight] the weight must be of integers or E4M3 numbers; its format is nf4");
}
