#include "lcomp/linalg/int8_product.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <filesystem>

#include "support/error_text.h"
#include "support/process.h"

using namespace lcomp::linalg;
using lcomp::test::error_text;

namespace {

at::Tensor random_codes(int64_t rows, int64_t cols, int64_t least, int64_t most) {
  return at::randint(least, most + 1, {rows, cols}, at::TensorOptions(at::kLong)).to(at::kChar);
}

at::Tensor product(const at::Tensor& x, const at::Tensor& codes, Int8Way way) {
  const Int8Matrix matrix(codes, way);
  Scratch scratch;
  at::Tensor y = at::empty({x.size(0), codes.size(0)}, at::kInt);
  matrix.multiply(x.data_ptr<int8_t>(), x.size(0), y.data_ptr<int32_t>(), scratch);
  return y;
}

/// In float64, which holds such sums exactly.
at::Tensor exact_product(const at::Tensor& x, const at::Tensor& codes) {
  return at::matmul(x.to(at::kDouble), codes.to(at::kDouble).t()).to(at::kInt);
}

std::vector<Int8Way> ways() {
  std::vector<Int8Way> all = {Int8Way::kBest, Int8Way::kSplit};
  if (has_native_int8()) all.push_back(Int8Way::kDirect);
  return all;
}

}  // namespace

TEST_CASE("an int8 product is exact for any shape, codes and way", "[linalg][int8_product]") {
  at::manual_seed(1);
  struct Shape {
    int64_t rows, in, out;
  };
  for (const Shape s : {Shape{1, 1, 1}, Shape{3, 7, 5}, Shape{7, 61, 33}, Shape{128, 64, 96},
                        Shape{131, 100, 48}, Shape{300, 576, 200}}) {
    for (const int64_t most : {127, 64, 7}) {
      const at::Tensor codes = random_codes(s.out, s.in, most == 127 ? -128 : -most, most);
      const at::Tensor x = random_codes(s.rows, s.in, -128, 127);
      const at::Tensor expected = exact_product(x, codes);
      CAPTURE(s.rows, s.in, s.out, most);
      for (const Int8Way way : ways()) REQUIRE(at::equal(product(x, codes, way), expected));
    }
  }
}

// Instructions without 32-bit sums saturate first where pairs of products are largest.
TEST_CASE("the largest codes do not saturate", "[linalg][int8_product]") {
  for (const int w : {-128, 127, 64, -64}) {
    for (const int a : {-128, -1, 0, 127}) {
      const at::Tensor codes = at::full({40, 256}, w, at::kChar);
      const at::Tensor x = at::full({5, 256}, a, at::kChar);
      for (const Int8Way way : ways()) {
        REQUIRE(at::equal(product(x, codes, way), at::full({5, 40}, 256 * w * a, at::kInt)));
      }
    }
  }
}

TEST_CASE("row sums are those of the codes", "[linalg][int8_product]") {
  const at::Tensor codes = random_codes(9, 31, -128, 127);
  const Int8Matrix matrix(codes);
  REQUIRE(matrix.out_features() == 9);
  REQUIRE(matrix.in_features() == 31);
  for (int64_t o = 0; o < 9; ++o) REQUIRE(matrix.row_sums()[o] == codes[o].sum().item<int64_t>());
}

TEST_CASE("what is no int8 matrix is refused", "[linalg][int8_product]") {
  REQUIRE(error_text([] {
            Int8Matrix(at::ones({2, 3}));
          }) == "[Int8Matrix] codes must be an int8 matrix [out, in]; received 2 dimensions of float32");
  REQUIRE(error_text([] {
            Int8Matrix(at::zeros({1, 131072}, at::kChar));
          }) ==
          "[Int8Matrix] codes must have at most 131071 columns, so that sums fit 32 bits; received 131072");
  if (!has_native_int8()) {
    REQUIRE(error_text([] {
              Int8Matrix(at::zeros({1, 2}, at::kChar), Int8Way::kDirect);
            }) ==
            "[Int8Matrix] direct products need a processor with AVX-512 VNNI or AMX; this one has neither");
  }
}

TEST_CASE("the same cases hold with the instructions of an older processor",
          "[linalg][int8_product][older_processor]") {
  const auto result = lcomp::test::run_process({"/usr/bin/env", "ONEDNN_MAX_CPU_ISA=AVX2",
                                                std::filesystem::read_symlink("/proc/self/exe").string(),
                                                "[int8_product]~[older_processor]"});
  INFO(result.out);
  REQUIRE(result.exit_code == 0);
  REQUIRE(result.out.find("All tests passed") != std::string::npos);
}
