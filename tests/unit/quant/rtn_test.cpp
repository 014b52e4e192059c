#include "lcomp/quant/rtn.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/quant/grid.h"
#include "support/error_text.h"

using namespace lcomp::quant;
using lcomp::test::error_text;

namespace {

at::Tensor row(const std::vector<double>& values) {
  return at::tensor(values, at::kDouble).unsqueeze(0);
}

std::vector<int> codes_of(const QuantizedWeight& weight) {
  std::vector<int> codes;
  const at::Tensor flat = weight.codes().flatten().to(at::kInt);
  for (int64_t i = 0; i < flat.numel(); ++i) codes.push_back(flat.data_ptr<int32_t>()[i]);
  return codes;
}

double scale_of(const QuantizedWeight& weight) {
  return weight.scale().to(at::kDouble).flatten()[0].item<double>();
}

QuantScheme per_channel(int64_t bits, bool symmetric) {
  return {.bits = bits, .symmetric = symmetric, .granularity = Granularity::kChannel};
}

const std::vector<double> kExample = {-1, -0.3, 0.2, 0.9};

}  // namespace

// Codes are signed: the unsigned codes and zero points of the literature minus 2^(b-1).
TEST_CASE("the worked example comes out under every convention", "[quant][rtn]") {
  const QuantizedWeight asymmetric = rtn(row(kExample), per_channel(4, false));
  REQUIRE(scale_of(asymmetric) == Approx(1.9 / 15));
  REQUIRE(asymmetric.zero().item<int64_t>() == 8 - 8);
  REQUIRE(codes_of(asymmetric) == std::vector<int>{0 - 8, 6 - 8, 10 - 8, 15 - 8});

  QuantScheme scheme = per_channel(4, true);
  scheme.symmetric_convention = SymmetricConvention::kFullRange;
  const QuantizedWeight full = rtn(row(kExample), scheme);
  REQUIRE(scale_of(full) == Approx(2.0 / 15));
  REQUIRE(codes_of(full) == std::vector<int>{0 - 8, 6 - 8, 10 - 8, 15 - 8});

  scheme.symmetric_convention = SymmetricConvention::kRestricted;
  const QuantizedWeight restricted = rtn(row(kExample), scheme);
  REQUIRE(scale_of(restricted) == Approx(1.0 / 7));
  REQUIRE(codes_of(restricted) == std::vector<int>{-7, -2, 1, 6});

  const QuantizedWeight down = rtn(row(kExample), per_channel(4, true));  // signed: -1 is the lowest code
  REQUIRE(scale_of(down) == Approx(1.0 / 8));
  REQUIRE(codes_of(down) == std::vector<int>{-8, -2, 2, 7});
  const QuantizedWeight up = rtn(row({1, 0.3, -0.2, -0.9}), per_channel(4, true));  // and so is 1
  REQUIRE(scale_of(up) == Approx(-1.0 / 8));
  REQUIRE(codes_of(up) == codes_of(down));
  REQUIRE(up.dense().equal(-down.dense()));

  const QuantizedWeight two_bits = rtn(row(kExample), per_channel(2, false));
  REQUIRE(scale_of(two_bits) == Approx(1.9 / 3));
  REQUIRE(codes_of(two_bits) == std::vector<int>{0 - 2, 2 - 2, 2 - 2, 3 - 2});
}

TEST_CASE("halves round to the even code", "[quant][rtn]") {
  QuantScheme scheme = per_channel(4, true);
  scheme.symmetric_convention = SymmetricConvention::kRestricted;  // m = 7 makes the scale 1
  REQUIRE(codes_of(rtn(row({7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5}), scheme)) ==
          std::vector<int>{7, 0, 2, 2, 0, -2, -2});
}

TEST_CASE("groups without spread get a usable grid under every convention", "[quant][rtn]") {
  QuantScheme scheme = per_channel(4, true);
  const auto scale_of_zeros = [&](at::ScalarType type) {
    return scale_of(rtn(at::zeros({1, 8}, type), scheme));
  };
  REQUIRE(scale_of_zeros(at::kDouble) == 0x1p-52);
  REQUIRE(scale_of_zeros(at::kFloat) == 0x1p-23);
  REQUIRE(scale_of_zeros(at::kBFloat16) == 0x1p-7);
  REQUIRE(scale_of_zeros(at::kHalf) == 0x1p-10);
  for (const auto convention : {SymmetricConvention::kFullRange, SymmetricConvention::kFullRangeGptq}) {
    scheme.symmetric_convention = convention;
    REQUIRE(scale_of_zeros(at::kDouble) == Approx(2.0 / 15));
  }
  scheme.symmetric_convention = SymmetricConvention::kRestricted;
  REQUIRE(scale_of_zeros(at::kDouble) == Approx(1e-5 / 7));
  scheme.symmetric = false;
  REQUIRE(scale_of_zeros(at::kDouble) == Approx(2.0 / 15));
  scheme.asymmetric_convention = AsymmetricConvention::kRaw;
  REQUIRE(scale_of_zeros(at::kDouble) == Approx(1e-5 / 15));
}

TEST_CASE("a group without negatives is clipped by the reference's rule and by no other", "[quant][rtn]") {
  QuantScheme scheme = per_channel(4, true);
  scheme.symmetric_convention = SymmetricConvention::kFullRangeGptq;
  REQUIRE(rtn(row({0, 1, 2, 3}), scheme).dense().max().item<double>() == Approx(7 * 3.0 / 15));
  scheme.symmetric_convention = SymmetricConvention::kFullRange;
  REQUIRE(rtn(row({0, 1, 2, 3}), scheme).dense().max().item<double>() == Approx(7 * 6.0 / 15));
}

TEST_CASE("codes are computed with the scale as it is stored", "[quant][rtn]") {
  // The exact scale 0.1 rounds to 0.10009765625 in bfloat16: 12.06 steps become 12.04, and 12.505
  // becomes 12.49.
  QuantScheme scheme = per_channel(8, true);
  scheme.symmetric_convention = SymmetricConvention::kRestricted;
  const at::Tensor weight = row({12.7, 1.2505}).to(at::kFloat);
  REQUIRE(codes_of(rtn(weight, scheme)) == std::vector<int>{127, 13});
  scheme.scale_dtype = ScaleDtype::kBFloat16;
  const QuantizedWeight stored = rtn(weight, scheme);
  REQUIRE(stored.scale().scalar_type() == at::kBFloat16);
  REQUIRE(codes_of(stored) == std::vector<int>{127, 12});
}

TEST_CASE("tiny ranges keep a scale above 0 and huge ones are refused in float16", "[quant][rtn]") {
  const QuantScheme scheme{.granularity = Granularity::kChannel, .scale_dtype = ScaleDtype::kFloat16};
  const QuantizedWeight tiny = rtn(row({1e-9, -1e-9}), scheme);
  REQUIRE(std::abs(scale_of(tiny)) == 0x1p-24);
  REQUIRE(codes_of(tiny) == std::vector<int>{0, 0});
  REQUIRE(error_text([&] {
            rtn(row({1e6, 0}), scheme);
          }) == "[fit_grid] scales must be finite in float16; a range asks for -125000");
}

TEST_CASE("weights that are not finite or not floating point are refused", "[quant][rtn]") {
  at::Tensor weight = at::ones({3, 128}, at::kFloat);
  weight[2][7] = std::numeric_limits<float>::quiet_NaN();
  REQUIRE(error_text([&] { rtn(weight, {}); }) == "[rtn] the weight must be finite; received nan at [2, 7]");
  weight[1][5] = -std::numeric_limits<float>::infinity();
  REQUIRE(error_text([&] { rtn(weight, {}); }) == "[rtn] the weight must be finite; received -inf at [1, 5]");
  REQUIRE(error_text([&] {
            rtn(at::ones({3, 128}, at::kInt), {});
          }) == "[rtn] the weight must be of a floating-point type; received int32");
  REQUIRE_NOTHROW(rtn(at::full({4, 128}, 1e38, at::kFloat), {}));
}
