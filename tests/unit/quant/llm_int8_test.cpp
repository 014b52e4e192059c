#include "lcomp/quant/llm_int8.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>
#include <map>

#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"
#include "support/test_data.h"

using namespace lcomp::quant;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

constexpr int64_t kTokens = 130, kIn = 64, kOut = 24;

at::Tensor weight_matrix() {
  return normal_matrix(kOut, kIn, "weight").to(at::kFloat);
}

/// Columns 7 and 30 have outliers, the first in every token.
at::Tensor input() {
  at::Tensor x = normal_matrix(kTokens, kIn, "input").clamp(-4, 4);
  x.select(1, 7).mul_(20).add_(10);
  x[3][30] = 6.5;
  return x.to(at::kFloat);
}

/// The formulas of the header in double.
at::Tensor reference(const at::Tensor& x, const OutlierInt8Weight& weight, const at::Tensor& original) {
  const at::Tensor d = x.to(at::kDouble), outlier = d.abs() >= weight.options().threshold;
  const at::Tensor columns = outlier.any(0);
  const at::Tensor inliers = d.masked_fill(columns.unsqueeze(0), 0);
  const bool elements = weight.options().outlier_maximum == OutlierMaximum::kElements;
  const at::Tensor largest = (elements ? d.masked_fill(outlier, 0) : inliers).abs().amax(1, true);
  const at::Tensor safe = largest.masked_fill(largest == 0, 1);
  const at::Tensor codes = (inliers * 127 / safe).round();
  const at::Tensor decoded = weight.codes().to(at::kDouble) * weight.scale().to(at::kDouble);
  const at::Tensor regular = at::matmul(codes * safe / 127, decoded.t());
  return regular +
         at::matmul(d.masked_fill(columns.logical_not().unsqueeze(0), 0), original.to(at::kDouble).t());
}

LlmInt8Options options_of(OutlierWeights weights, OutlierMaximum maximum = OutlierMaximum::kColumns) {
  LlmInt8Options options;
  options.outlier_weights = weights;
  options.outlier_maximum = maximum;
  return options;
}

double error_of(const at::Tensor& y, const at::Tensor& exact) {
  return ((y - exact).norm() / exact.norm()).item<double>();
}

}  // namespace

TEST_CASE("all variants follow the formulas in double", "[quant][llm_int8]") {
  const at::Tensor w = weight_matrix(), x = input();
  for (const auto maximum : {OutlierMaximum::kColumns, OutlierMaximum::kElements}) {
    const OutlierInt8Weight paper =
        llm_int8(w, options_of(OutlierWeights::kOriginal, maximum), {}, at::kFloat);
    REQUIRE(relative_difference(paper.apply(x), reference(x, paper, w)) < 2e-6);
    const OutlierInt8Weight code = llm_int8(w, options_of(OutlierWeights::kDequantized, maximum));
    REQUIRE(relative_difference(code.apply(x), reference(x, code, code.dense())) < 2e-6);
    // Column 7 was found by the calibration, 30 was not.
    at::Tensor found = at::zeros({kIn}, at::kBool);
    found[7] = true;
    const OutlierInt8Weight calibrated =
        llm_int8(w, options_of(OutlierWeights::kCalibrated, maximum), found, at::kFloat);
    at::Tensor mixed = calibrated.dense();
    mixed.select(1, 7).copy_(w.select(1, 7));
    REQUIRE(relative_difference(calibrated.apply(x), reference(x, calibrated, mixed)) < 2e-6);
  }
}

TEST_CASE("a threshold above all inputs gives the plain vector-wise product", "[quant][llm_int8]") {
  LlmInt8Options options = options_of(OutlierWeights::kDequantized);
  options.threshold = 1e9;
  const OutlierInt8Weight weight = llm_int8(weight_matrix(), options);
  const at::Tensor x = input();
  const at::Tensor largest = x.to(at::kDouble).abs().amax(1, true);
  const at::Tensor codes = (x.to(at::kDouble) * 127 / largest).round();
  const at::Tensor expected = at::matmul(codes * largest / 127, weight.dense().to(at::kDouble).t());
  REQUIRE(relative_difference(weight.apply(x), expected) < 1e-6);
}

TEST_CASE("a threshold of next to nothing with original weights gives the plain product",
          "[quant][llm_int8]") {
  LlmInt8Options options = options_of(OutlierWeights::kOriginal);
  options.threshold = 1e-6;
  const at::Tensor w = weight_matrix(), x = input();
  const at::Tensor expected = at::matmul(x.to(at::kDouble), w.to(at::kDouble).t());
  REQUIRE(relative_difference(llm_int8(w, options, {}, at::kFloat).apply(x), expected) < 1e-6);
}

TEST_CASE("taking the outliers out is what makes eight bits enough", "[quant][llm_int8]") {
  const at::Tensor w = weight_matrix(), x = input(), exact = at::matmul(x, w.t());
  LlmInt8Options none = options_of(OutlierWeights::kDequantized);
  none.threshold = 1e9;
  const double plain = error_of(llm_int8(w, none).apply(x), exact);
  const double paper =
      error_of(llm_int8(w, options_of(OutlierWeights::kOriginal), {}, at::kFloat).apply(x), exact);
  REQUIRE(paper < plain / 5);
}

TEST_CASE("every output is within the bound of its roundings", "[quant][llm_int8]") {
  const at::Tensor w = weight_matrix(), x = input();
  LlmInt8Options options = options_of(OutlierWeights::kDequantized);
  options.threshold = 1e9;
  const at::Tensor y = llm_int8(w, options).apply(x);
  const at::Tensor cx = x.abs().amax(1, true), cw = w.abs().amax(1, true).t();
  const at::Tensor bound =
      x.abs().sum(1, true) * cw / 254 + cx * w.abs().sum(1, true).t() / 254 + kIn * cx * cw / (254.0 * 254.0);
  REQUIRE(((y - at::matmul(x, w.t())).abs() <= bound * (1 + 1e-4)).all().item<bool>());
}

TEST_CASE("a scaled row of the weight scales its output", "[quant][llm_int8]") {
  at::Tensor w = weight_matrix();
  const at::Tensor x = input();
  const LlmInt8Options options = options_of(OutlierWeights::kDequantized);
  const at::Tensor before = llm_int8(w, options).apply(x);
  w.select(0, 5).mul_(4);
  const at::Tensor after = llm_int8(w, options).apply(x);
  REQUIRE(after.select(1, 5).equal(before.select(1, 5) * 4));
  REQUIRE(after.select(1, 6).equal(before.select(1, 6)));
}

TEST_CASE("zeros stay zeros", "[quant][llm_int8]") {
  at::Tensor w = weight_matrix(), x = input();
  w.select(0, 2).zero_();
  x.select(0, 9).zero_();
  const at::Tensor y = llm_int8(w, options_of(OutlierWeights::kDequantized)).apply(x);
  REQUIRE(y.select(1, 2).equal(at::zeros({kTokens})));
  REQUIRE(y.select(0, 9).equal(at::zeros({kOut})));
}

TEST_CASE("LLM.int8() gives the golden results of paper and code", "[quant][llm_int8][golden]") {
  const auto path = lcomp::test::shared_data("golden/methods/llm_int8.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/llm_int8.safetensors");
    return;
  }
  const lcomp::io::SafetensorsFile golden(*path);
  const at::Tensor w = golden.read("w"), x = golden.read("x").to(at::kFloat);
  const OutlierInt8Weight paper = llm_int8(w, options_of(OutlierWeights::kOriginal), {}, at::kDouble);
  REQUIRE(paper.codes().to(at::kShort).equal(golden.read("weight_codes")));
  REQUIRE(relative_difference(paper.apply(x), golden.read("paper.y")) < 1e-6);
  const OutlierInt8Weight code =
      llm_int8(w, options_of(OutlierWeights::kDequantized, OutlierMaximum::kElements));
  REQUIRE(relative_difference(code.apply(x), golden.read("repo.y")) < 1e-6);
  LlmInt8Options none = options_of(OutlierWeights::kDequantized);
  none.threshold = 1e9;
  REQUIRE(relative_difference(llm_int8(w, none).apply(x), golden.read("no_outliers.y")) < 1e-6);
}

TEST_CASE("the saved tensors are counted and make the same weight again", "[quant][llm_int8]") {
  at::Tensor found = at::zeros({kIn}, at::kBool);
  found[7] = found[20] = true;
  const OutlierInt8Weight weight =
      llm_int8(weight_matrix(), options_of(OutlierWeights::kCalibrated), found, at::kHalf);
  REQUIRE(weight.describe() == "llm.int8, outliers from 6, kept: 2 columns of float16");
  lcomp::test::TensorMap tensors;
  weight.save(tensors, "op");
  int64_t stored = 0;
  for (const auto& [name, tensor] : tensors.all) stored += tensor.numel() * tensor.element_size();
  REQUIRE(weight.bytes() == stored);
  REQUIRE(stored == llm_int8_bytes(kOut, kIn, 2, at::kHalf));
  const OutlierInt8Weight again(weight.options(), tensors.all.at("op.weight"),
                                tensors.all.at("op.weight_scale"), tensors.all.at("op.weight_outlier_index"),
                                tensors.all.at("op.weight_outliers"));
  REQUIRE(again.apply(input()).equal(weight.apply(input())));
  REQUIRE(llm_int8(weight_matrix(), options_of(OutlierWeights::kCalibrated)).describe() ==
          "llm.int8, outliers from 6, kept: none");
}

TEST_CASE("parts that do not belong together are refused", "[quant][llm_int8]") {
  const at::Tensor codes = at::zeros({2, 4}, at::kChar), scale = at::ones({2, 1});
  const auto refusal = [&](const at::Tensor& c, const at::Tensor& s, const at::Tensor& i,
                           const at::Tensor& o) {
    return error_text([&] { OutlierInt8Weight({}, c, s, i, o); });
  };
  REQUIRE(refusal(at::zeros({2, 4}), scale, {}, {}) ==
          "[OutlierInt8Weight] codes must be an int8 matrix [out, in]; received 2 dimensions of float32");
  REQUIRE(refusal(codes, at::ones({2}), {}, {}) ==
          "[OutlierInt8Weight] scales must be float32 [out, 1]; received 1 dimensions of float32");
  const at::Tensor index = at::tensor({1, 3}, at::kInt);
  REQUIRE(refusal(codes, scale, index, {}) ==
          "[OutlierInt8Weight] an index of outlier columns and their weights must come together");
  REQUIRE(refusal(codes, scale, index.to(at::kLong), at::ones({2, 2})) ==
          "[OutlierInt8Weight] the outlier index must be int32 [kept]; received 1 dimensions of int64");
  REQUIRE(refusal(codes, scale, index, at::ones({2, 3})) ==
          "[OutlierInt8Weight] outlier weights must be [out, kept] of a floating-point type; received 2 "
          "dimensions "
          "of float32");
  REQUIRE(refusal(codes, scale, at::tensor({3, 1}, at::kInt), at::ones({2, 2})) ==
          "[OutlierInt8Weight] outlier columns must ascend and be below 4; 1 came after 3");
  REQUIRE(refusal(codes, scale, at::tensor({1, 4}, at::kInt), at::ones({2, 2})) ==
          "[OutlierInt8Weight] outlier columns must ascend and be below 4; 4 came after 1");
  const OutlierInt8Weight weight({}, codes, scale);
  REQUIRE(error_text([&] {
            weight.apply(at::ones({2, 5}));
          }) ==
          "[OutlierInt8Weight] x must be a float32 matrix [tokens, in]; received 2 dimensions of float32");
  at::Tensor x = at::ones({3, 4});
  x[2][0] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(error_text([&] { weight.apply(x); }) ==
          "[OutlierInt8Weight] the input must be finite; that of token 2 is not");
  REQUIRE(
      error_text([&] { llm_int8(at::ones({3}), {}); }) ==
      "[llm_int8] the weight must be a floating-point matrix [out, in]; received 1 dimensions of float32");
  LlmInt8Options none;
  none.threshold = 0;
  REQUIRE(error_text([&] {
            llm_int8(at::ones({3, 3}), none);
          }) == "[OutlierInt8Weight] threshold must be in [1e-06, 1000000000]; received 0");
}
