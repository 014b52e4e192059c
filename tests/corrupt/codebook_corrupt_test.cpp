// Code books as they may stand in a damaged or hostile checkpoint: every fault is named, nothing is read out
// of bounds.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <functional>
#include <limits>

#include "lcomp/core/error.h"
#include "lcomp/quant/codebook_weight.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp;
using quant::CodebookTensors;
using quant::CodebookWeight;

namespace {

/// Three bits, 4 x 40, with three kept entries: rows 0, 0 and 2.
CodebookTensors good() {
  return {
      at::zeros({4, 4}, at::kInt),
      at::zeros({4, 8}, at::kHalf),
      at::tensor(std::vector<int64_t>{4, 40}, at::kLong),
      {at::tensor({0, 2, 2, 3, 3}, at::kInt), at::tensor({1, 39, 0}, at::kInt), at::ones({3}, at::kHalf)}};
}

std::string refusal(const std::function<void(CodebookTensors&)>& damage, int64_t bits = 3) {
  CodebookTensors tensors = good();
  damage(tensors);
  const auto call = [&] { CodebookWeight::from_stored(tensors, bits, "op"); };
  REQUIRE_THROWS_AS(call(), CorruptFile);
  return test::error_text(call);
}

}  // namespace

TEST_CASE("an intact code book is read", "[corrupt][codebook]") {
  REQUIRE(CodebookWeight::from_stored(good(), 3, "op").dense().sum().item<double>() == 3);
}

TEST_CASE("damaged codes, code books and shapes are refused by name", "[corrupt][codebook]") {
  REQUIRE(refusal([](auto&) {}, 9) == "[op.weight_codebook] must have codes of 2 to 8 bits; they have 9");
  REQUIRE(refusal([](auto& t) { t.codes = at::Tensor(); }) ==
          "[op.weight_shape] must fit the codes; it says [4, 40] and they are missing");
  REQUIRE(refusal([](auto& t) {
            t.codes = at::zeros({4, 5}, at::kInt);
          }) == "[op.weight_codes] must be int32 [4, 4]; it is int32 [4, 5]");
  REQUIRE(refusal([](auto& t) {
            t.codes = at::zeros({4, 4}, at::kLong);
          }) == "[op.weight_codes] must be int32 [4, 4]; it is int64 [4, 4]");
  REQUIRE(refusal([](auto& t) {
            t.codebook = at::zeros({4, 16}, at::kHalf);
          }) == "[op.weight_codebook] must be float32, bfloat16 or float16 [4, 8]; it is float16 [4, 16]");
  REQUIRE(refusal([](auto& t) { t.codebook = at::Tensor(); }) ==
          "[op.weight_codebook] must be float32, bfloat16 or float16 [4, 8]; it is missing");
  REQUIRE(refusal([](auto& t) { t.codebook[1][2] = NAN; }) ==
          "[op.weight_codebook] must hold finite values only");
  REQUIRE(refusal([](auto& t) { t.shape = at::ones({3}, at::kLong); }) ==
          "[op.weight_shape] must be int64 [2]; it is int64 [3]");
  for (const int64_t wild : {int64_t{0}, int64_t{-1}, int64_t{5}, std::numeric_limits<int64_t>::max()}) {
    refusal([&](auto& t) { t.shape[0] = wild; });
    if (wild != 5) refusal([&](auto& t) { t.shape[1] = wild; });
  }
}

TEST_CASE("damaged kept entries are refused by name", "[corrupt][codebook]") {
  REQUIRE(refusal([](auto& t) { t.sparse.offsets = at::Tensor(); }) ==
          "[op.weight_sparse_offsets] must be int32 [5]; it is missing");
  REQUIRE(refusal([](auto& t) { t.sparse.values = at::Tensor(); }) ==
          "[op.weight_sparse_values] must be a float16 vector; it is missing");
  REQUIRE(refusal([](auto& t) { t.sparse.values = at::ones({3}); }) ==
          "[op.weight_sparse_values] must be a float16 vector; it is float32 [3]");
  REQUIRE(refusal([](auto& t) { t.sparse.columns = t.sparse.columns.slice(0, 0, 2); }) ==
          "[op.weight_sparse_columns] must be int32 [3]; it is int32 [2]");
  REQUIRE(refusal([](auto& t) { t.sparse.values[0] = INFINITY; }) ==
          "[op.weight_sparse_values] must hold finite values only");
  REQUIRE(refusal([](auto& t) { t.sparse.offsets[4] = 2; }) ==
          "[op.weight_sparse_offsets] must begin with 0 and end with 3; it begins with 0 and ends with 2");
  REQUIRE(refusal([](auto& t) { t.sparse.offsets[2] = 1; }) ==
          "[op.weight_sparse_offsets] must never decrease nor exceed 3; row 1 goes from 2 to 1");
  REQUIRE(refusal([](auto& t) { t.sparse.offsets[1] = 2'000'000'000; }) ==
          "[op.weight_sparse_offsets] must never decrease nor exceed 3; row 0 goes from 0 to 2000000000");
  REQUIRE(refusal([](auto& t) { t.sparse.columns[1] = 40; }) ==
          "[op.weight_sparse_columns] must ascend within a row and be below 40; row 0 has 40 after 1");
  REQUIRE(refusal([](auto& t) { t.sparse.columns[1] = 1; }) ==
          "[op.weight_sparse_columns] must ascend within a row and be below 40; row 0 has 1 after 1");
  REQUIRE(refusal([](auto& t) { t.sparse.columns[2] = -1; }) ==
          "[op.weight_sparse_columns] must ascend within a row and be below 40; row 2 has -1 after -1");
}
