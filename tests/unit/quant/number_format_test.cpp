#include "lcomp/quant/number_format.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "lcomp/io/safetensors.h"
#include "support/test_data.h"

using namespace lcomp::quant;

namespace {

bool is_nan_code(int code) {
  return (code & 0x7F) == 0x7F;
}

/// The E4M3 byte nearest to `value` by trying all of them: of two as near the one with an even mantissa.
int nearest_e4m3(double value) {
  int best = -1;
  double least = INFINITY;
  for (int code = 0; code < 256; ++code) {
    if (is_nan_code(code) || std::signbit(value) != ((code & 0x80) != 0)) continue;
    const double off = std::abs(fp8_e4m3_value(static_cast<uint8_t>(code)) - value);
    if (off < least || (off == least && (code & 1) == 0)) {
      least = off;
      best = code;
    }
  }
  return best;
}

}  // namespace

TEST_CASE("every E4M3 byte is the nearest to its own value, and the values are those of the standard",
          "[quant][number-format]") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    const double value = fp8_e4m3_value(static_cast<uint8_t>(code));
    REQUIRE(std::isnan(value) == is_nan_code(code));
    if (!is_nan_code(code)) REQUIRE(fp8_e4m3_code(value) == code);
  }
  REQUIRE(fp8_e4m3_value(0x38) == 1);
  REQUIRE(fp8_e4m3_value(0xB8) == -1);
  REQUIRE(fp8_e4m3_value(0x7E) == kFp8Largest);
  REQUIRE(fp8_e4m3_value(0x08) == 0x1p-6);
  REQUIRE(fp8_e4m3_value(0x01) == 0x1p-9);
  REQUIRE(std::signbit(fp8_e4m3_value(0x80)));
}

TEST_CASE("numbers between two E4M3 values go to the nearer, halves to the even one, and large ones saturate",
          "[quant][number-format]") {
  for (int code = 0; code < 0x7E; ++code) {
    const double low = fp8_e4m3_value(static_cast<uint8_t>(code)),
                 high = fp8_e4m3_value(static_cast<uint8_t>(code + 1)), middle = (low + high) / 2;
    for (const double value : {middle, std::nextafter(middle, 0), std::nextafter(middle, 1000),
                               low + 0.3 * (high - low), low + 0.7 * (high - low)}) {
      CAPTURE(value);
      REQUIRE(fp8_e4m3_code(value) == nearest_e4m3(value));
      REQUIRE(fp8_e4m3_code(-value) == nearest_e4m3(-value));
    }
  }
  for (const double value : {448.0, 449.0, 464.0, 1e6, 1e300}) {
    REQUIRE(fp8_e4m3_code(value) == 0x7E);
    REQUIRE(fp8_e4m3_code(-value) == 0xFE);
  }
  REQUIRE(fp8_e4m3_code(0x1p-11) == 0);
  REQUIRE(fp8_e4m3_code(-1e-300) == 0x80);
}

TEST_CASE("every NF4 value has its own code, and numbers between two go to the nearer",
          "[quant][number-format]") {
  for (size_t code = 0; code < 16; ++code) REQUIRE(nf4_code(kNf4Values[code]) == code);
  for (size_t code = 0; code + 1 < 16; ++code) {
    const double middle = (kNf4Values[code] + kNf4Values[code + 1]) / 2;
    REQUIRE(nf4_code(middle) == code);
    REQUIRE(nf4_code(std::nextafter(middle, 2)) == code + 1);
  }
  REQUIRE(nf4_code(7) == 15);
  REQUIRE(nf4_code(-7) == 0);
}

TEST_CASE("codes become the values of their format", "[quant][number-format]") {
  const at::Tensor codes = at::tensor({0, 7, 15}, at::kInt).to(at::kChar);
  REQUIRE(code_values(codes, NumberFormat::kInt, at::kFloat).equal(codes.to(at::kFloat)));
  REQUIRE(
      code_values(codes, NumberFormat::kNf4, at::kDouble).equal(at::tensor({-1.0, 0.0, 1.0}, at::kDouble)));
  const at::Tensor bytes = at::tensor({0x38, -0x48, 1}, at::kInt).to(at::kChar);
  REQUIRE(code_values(bytes, NumberFormat::kFp8E4m3, at::kFloat)
              .equal(at::tensor({1.0, -1.0, 0x1p-9}, at::kFloat)));
}

TEST_CASE("number formats agree with the recorded tables and casts", "[quant][number-format][golden]") {
  const auto path = lcomp::test::shared_data("golden/methods/number_formats.safetensors");
  if (!path) {
    WARN("skipped: no golden/methods/number_formats.safetensors");
    return;
  }
  const lcomp::io::SafetensorsFile file(*path);
  const at::Tensor table = file.read("e4m3.table");
  for (int code = 0; code < 256; ++code) {
    if (is_nan_code(code)) continue;
    REQUIRE(fp8_e4m3_value(static_cast<uint8_t>(code)) == table[code].item<float>());
  }
  const at::Tensor x = file.read("e4m3.x"), codes = file.read("e4m3.saturated_codes");
  for (int64_t i = 0; i < x.numel(); ++i) {
    CAPTURE(x[i].item<float>());
    REQUIRE(fp8_e4m3_code(x[i].item<float>()) == codes[i].item<int>());
  }
  const at::Tensor values = file.read("nf4.code"), midpoints = file.read("nf4.midpoints");
  for (int64_t i = 0; i < 16; ++i) REQUIRE(kNf4Values[static_cast<size_t>(i)] == values[i].item<float>());
  for (int64_t i = 0; i < 15; ++i) {
    REQUIRE(nf4_code(midpoints[i].item<double>() - 1e-7) == i);
    REQUIRE(nf4_code(midpoints[i].item<double>() + 1e-7) == i + 1);
  }
}
