#include "lcomp/linalg/gemm.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"

using lcomp::ThreadPool;
using namespace lcomp::linalg;

namespace {

double max_abs_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace

TEST_CASE("a packed product equals the product in double, for any number of rows", "[linalg][gemm]") {
  at::manual_seed(1);
  const at::Tensor a = at::randn({48, 96});
  const at::Tensor b = at::randn({33, 96});
  const PackedMatrix packed({a, b}, Precision::kF32);
  REQUIRE(packed.out_features() == 81);
  REQUIRE(packed.in_features() == 96);
  Scratch scratch;
  for (const int64_t rows : {1, 2, 20, 127, 128, 129, 300}) {
    const at::Tensor x = at::randn({rows, 96});
    at::Tensor y = at::zeros({rows, 81});
    packed.multiply(x.data_ptr<float>(), rows, y.data_ptr<float>(), false, scratch);
    const at::Tensor expected = at::matmul(x.to(at::kDouble), at::cat({a, b}).to(at::kDouble).t());
    REQUIRE(max_abs_difference(y, expected) < 1e-4);
    packed.multiply(x.data_ptr<float>(), rows, y.data_ptr<float>(), true, scratch);
    REQUIRE(max_abs_difference(y, 2 * expected) < 2e-4);
  }
}

TEST_CASE("a bfloat16 product rounds only its factors", "[linalg][gemm]") {
  at::manual_seed(2);
  const at::Tensor w = at::randn({40, 64});
  if (!has_native_bf16()) {
    CHECK(lcomp::test::error_text([&] { PackedMatrix({w}, Precision::kBf16); }) ==
          "[PackedMatrix] bfloat16 products need a processor with AVX-512 BF16 or AMX; this one has neither");
    return;
  }
  const at::Tensor x = at::randn({150, 64});
  const PackedMatrix packed({w}, Precision::kBf16);
  at::Tensor y = at::zeros({150, 40});
  Scratch scratch;
  packed.multiply(x.data_ptr<float>(), 150, y.data_ptr<float>(), false, scratch);
  const at::Tensor expected =
      at::matmul(x.to(at::kBFloat16).to(at::kDouble), w.to(at::kBFloat16).to(at::kDouble).t());
  REQUIRE(max_abs_difference(y, expected) < 1e-4);
}

TEST_CASE("the rank-k update equals x^T x and does not depend on the number of threads", "[linalg][gemm]") {
  at::manual_seed(3);
  const int64_t n = 700;
  const at::Tensor x = at::randn({130, n});
  at::Tensor serial = at::zeros({n, n});
  syrk_upper(nullptr, x.data_ptr<float>(), 130, n, serial.data_ptr<float>());
  syrk_upper(nullptr, x.data_ptr<float>(), 130, n, serial.data_ptr<float>());
  for (const int threads : {2, 3}) {
    ThreadPool pool(threads);
    at::Tensor parallel = at::zeros({n, n});
    syrk_upper(&pool, x.data_ptr<float>(), 130, n, parallel.data_ptr<float>());
    syrk_upper(&pool, x.data_ptr<float>(), 130, n, parallel.data_ptr<float>());
    REQUIRE(at::equal(parallel, serial));
  }
  mirror_upper(serial);
  const at::Tensor xd = x.to(at::kDouble);
  REQUIRE(max_abs_difference(serial, 2 * at::matmul(xd.t(), xd)) < 1e-3);
}

TEST_CASE("weights that do not share their input are refused", "[linalg][gemm]") {
  REQUIRE_THROWS_WITH(PackedMatrix({}, Precision::kF32), Catch::Contains("at least one weight"));
  REQUIRE_THROWS_WITH(PackedMatrix({at::ones({2, 3}), at::ones({2, 4})}, Precision::kF32),
                      Catch::Contains("all weights must be matrices [out, 3]; received one with 4 columns"));
}

#ifndef __SANITIZE_ADDRESS__  // which ends the program
TEST_CASE("a scratch buffer that cannot be had is an error of resources", "[linalg][gemm]") {
  Scratch scratch;
  REQUIRE_THROWS_WITH(scratch.floats(0, int64_t{1} << 58),
                      Catch::Contains("bytes must be available; allocation failed"));
}
#endif
