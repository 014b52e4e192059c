#include "lcomp/core/product_weight.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/shared_weight.h"
#include "lcomp/core/sum_weight.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/rounding_weight.h"
#include "support/tensor_map.h"

using lcomp::DenseWeight;
using lcomp::ProductWeight;
using lcomp::SumWeight;
using lcomp::WeightPtr;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

WeightPtr dense(const at::Tensor& matrix) {
  return std::make_shared<DenseWeight>(matrix.to(at::kFloat));
}

}  // namespace

TEST_CASE("a product is its factors multiplied, from either side", "[core][product]") {
  const at::Tensor a = normal_matrix(9, 4, "a"), b = normal_matrix(4, 5, "b"), c = normal_matrix(5, 12, "c");
  const ProductWeight product({dense(a), dense(b), dense(c)});
  const at::Tensor matrix = a.mm(b).mm(c), x = normal_matrix(3, 12, "x").to(at::kFloat);
  REQUIRE(product.out_features() == 9);
  REQUIRE(product.in_features() == 12);
  REQUIRE(relative_difference(product.dense(), matrix) < 1e-6);
  REQUIRE(relative_difference(product.apply(x), x.to(at::kDouble).mm(matrix.t())) < 1e-5);
  const at::Tensor ids = at::tensor({8, 0, 8}, at::kLong);
  REQUIRE(relative_difference(product.rows(ids), matrix.index_select(0, ids)) < 1e-6);
  REQUIRE(product.parameters() == 36 + 20 + 60);
  REQUIRE(product.macs_per_token() == 36 + 20 + 60);
  REQUIRE(product.bytes() == 4 * 116 + 8);
  lcomp::test::TensorMap saved;
  product.save(saved, "op");
  REQUIRE(saved.all.size() == 4);
  REQUIRE(saved.all.at("op.weight_factors").item<int64_t>() == 3);
  REQUIRE(saved.all.at("op.weight_factor1.weight").sizes() == at::IntArrayRef({4, 5}));
}

TEST_CASE("a sum counts and looks up as its parts do", "[core][product]") {
  const at::Tensor w = normal_matrix(9, 12, "w"), a = normal_matrix(9, 2, "a"), b = normal_matrix(2, 12, "b");
  const SumWeight sum({dense(w), std::make_shared<ProductWeight>(std::vector{dense(a), dense(b)})});
  const at::Tensor ids = at::tensor({1, 7}, at::kLong);
  REQUIRE(relative_difference(sum.rows(ids), (w + a.mm(b)).index_select(0, ids)) < 1e-6);
  REQUIRE(sum.parameters() == 108 + 18 + 24);
  REQUIRE(sum.macs_per_token() == 150);
}

TEST_CASE("factors that do not fit are refused", "[core][product]") {
  const WeightPtr a = dense(normal_matrix(9, 4, "a")), b = dense(normal_matrix(5, 12, "b"));
  CHECK_THAT(error_text([&] { ProductWeight({a}); }), Catch::Contains("at least two factors"));
  CHECK_THAT(error_text([&] {
               ProductWeight({a, b});
             }),
             Catch::Contains("factor 1 must have as many rows as the one before has columns, 4; it has 5"));
  CHECK(error_text([&] {
          ProductWeight({a, lcomp::test::rounding_weight(4, 12)});
        }) == "[ProductWeight] no factor may round its input; one does");
}

TEST_CASE("parts that do not fit are refused", "[core][product]") {
  const WeightPtr a = dense(normal_matrix(9, 4, "a")), b = dense(normal_matrix(9, 5, "b"));
  CHECK(error_text([&] { SumWeight({a}); }) == "[SumWeight] at least two parts must be given; there are 1");
  CHECK(error_text([&] { SumWeight({a, b}); }) == "[SumWeight] all parts must be [9, 4]; one is [9, 5]");
  CHECK(error_text([&] {
          SumWeight({a, lcomp::test::rounding_weight(9, 4)});
        }) == "[SumWeight] no part may round its input; one does");
  CHECK(error_text([&] { lcomp::SharedWeight("", a, lcomp::SharedBy::kModel); }) ==
        "[SharedWeight] the owner must be named; the name is empty");
}
