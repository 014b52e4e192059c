#include "lcomp/core/weight_error.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>

#include "support/error_text.h"
#include "support/matrices.h"

using lcomp::weight_error;
using lcomp::WeightError;
using lcomp::test::error_text;

TEST_CASE("every weight error has its known value on a small example", "[core][weight_error]") {
  const at::Tensor original = at::tensor({3.0, -4.0, 0.0, 1.0}, at::kFloat).reshape({2, 2});
  const at::Tensor compressed = at::tensor({3.0, 1.0, 0.5, 0.0}, at::kFloat).reshape({2, 2});
  const WeightError error = weight_error(original, compressed);
  REQUIRE(error.relative == Approx(std::sqrt((25 + 0.25 + 1) / 26.0)));
  REQUIRE(error.largest == 5);
  REQUIRE(error.sign_flips == 0.25);
  REQUIRE(error.zeroed == 0.25);
  REQUIRE_FALSE(error.activation.has_value());
}

TEST_CASE("the activation error is that of the outputs, and sees what the plain error does not",
          "[core][weight_error]") {
  const at::Tensor x = lcomp::test::normal_matrix(50, 8, "x");
  x.select(1, 3).mul_(100);
  const at::Tensor moment = at::matmul(x.t(), x);
  const at::Tensor original = lcomp::test::normal_matrix(600, 8, "w");
  const at::Tensor quiet = original.clone(), loud = original.clone();
  quiet.select(1, 0).add_(1);
  loud.select(1, 3).add_(1);

  const auto output_error = [&](const at::Tensor& changed) {
    const at::Tensor y = at::matmul(x, original.t()), z = at::matmul(x, changed.t());
    return ((y - z).square().sum() / y.square().sum()).item<double>();
  };
  REQUIRE(weight_error(original, loud, moment).activation.value() ==
          Approx(output_error(loud)).epsilon(1e-10));
  REQUIRE(weight_error(original, quiet, moment).activation.value() ==
          Approx(output_error(quiet)).epsilon(1e-10));
  REQUIRE(weight_error(original, loud).relative == Approx(weight_error(original, quiet).relative));
  REQUIRE(*weight_error(original, loud, moment).activation >
          1000 * *weight_error(original, quiet, moment).activation);
}

TEST_CASE("equal matrices have no error, zero matrices included", "[core][weight_error]") {
  for (const at::Tensor& weight : {lcomp::test::normal_matrix(3, 4, "w"), at::zeros({3, 4}, at::kDouble)}) {
    const WeightError error = weight_error(weight, weight, at::eye(4, at::kDouble));
    REQUIRE(error.relative == 0);
    REQUIRE(error.largest == 0);
    REQUIRE(error.sign_flips == 0);
    REQUIRE(error.zeroed == 0);
    REQUIRE(error.activation.value() == 0);
  }
}

TEST_CASE("weight errors are the same at any number of threads", "[core][weight_error]") {
  const at::Tensor a = lcomp::test::normal_matrix(900, 64, "a"), b = lcomp::test::normal_matrix(900, 64, "b");
  const at::Tensor moment = lcomp::test::correlated_moment(64, 200);
  lcomp::ThreadPool one(1);
  const WeightError expected = weight_error(a, b, moment, &one);
  for (const int threads : {2, 3}) {
    lcomp::ThreadPool pool(threads);
    const WeightError error = weight_error(a, b, moment, &pool);
    REQUIRE(error.relative == expected.relative);
    REQUIRE(error.activation == expected.activation);
  }
}

TEST_CASE("weight errors refuse shapes that do not fit", "[core][weight_error]") {
  REQUIRE(error_text([] {
            weight_error(at::ones({2, 3}), at::ones({3, 2}));
          }) == "[weight_error] the two matrices must have one shape [out, in]; received [2, 3] and [3, 2]");
  REQUIRE(error_text([] {
            weight_error(at::ones({2, 3}), at::ones({2, 3}), at::ones({2, 2}));
          }) == "[weight_error] the second moment must be [3, 3]; received [2, 2]");
}
