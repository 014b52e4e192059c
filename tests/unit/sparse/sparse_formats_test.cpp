#include "lcomp/sparse/formats.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lcomp/sparse/sparsity.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::sparse;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

const std::vector<SparseFormat> kFormats = {SparseFormat::kBitmask, SparseFormat::kCsr,
                                            SparseFormat::kTwoOfFour, SparseFormat::kBlockedEll,
                                            SparseFormat::kTiledCsl};

at::Tensor pruned(int64_t out, int64_t in, const Sparsity& sparsity, at::ScalarType type) {
  const at::Tensor w = normal_matrix(out, in, "weight");
  return (w * select_kept(magnitude(w), sparsity)).to(type);
}

bool takes(SparseFormat format, const at::Tensor& matrix) {
  if (format == SparseFormat::kTiledCsl) return matrix.scalar_type() != at::kFloat;
  return format != SparseFormat::kTwoOfFour || is_two_of_four(matrix);
}

}  // namespace

TEST_CASE("every format gives the matrix back, and its bytes are those that were planned",
          "[sparse][formats]") {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [out, in] :
         {std::pair<int64_t, int64_t>{3, 8}, {130, 68}, {128, 64}, {1, 4}, {257, 200}}) {
      for (const Sparsity& sparsity :
           {Sparsity{.sparsity = 0}, Sparsity{.sparsity = 0.7}, Sparsity{.sparsity = 1},
            Sparsity{.pattern = "2:4"}, Sparsity{.pattern = "1:4"}}) {
        const at::Tensor matrix = pruned(out, in, sparsity, type);
        const int64_t nonzero = matrix.count_nonzero().item<int64_t>(),
                      element = static_cast<int64_t>(matrix.element_size());
        for (const SparseFormat format : kFormats) {
          CAPTURE(lcomp::name_of(format), out, in, sparsity.describe());
          if (!takes(format, matrix)) continue;
          const SparseTensors stored = encode(matrix, format);
          REQUIRE_NOTHROW(check_stored(stored, format, "op"));
          REQUIRE(decode(stored, format).equal(matrix));
          REQUIRE(stored.parts.contains(std::string(marker_of(format))));
          const int64_t planned = sparse_bytes(format, out, in, nonzero, element);
          if (format == SparseFormat::kTiledCsl) {
            REQUIRE(stored.bytes() <= planned);
          } else if (format == SparseFormat::kBlockedEll) {
            REQUIRE(stored.bytes() >= planned);
            REQUIRE(stored.bytes() ==
                    blocked_ell_bytes(out, in, stored.parts.at("_block_columns").size(1), element));
          } else {
            REQUIRE(stored.bytes() == planned);
          }
          const SparseWeight weight(matrix, format);
          REQUIRE(weight.bytes() == stored.bytes());
          REQUIRE(weight.kept().equal(matrix.ne(0)));
          for (const int64_t tokens : {1, 3, 40}) {
            const at::Tensor x = normal_matrix(tokens, in, "x").to(at::kFloat);
            const at::Tensor expected = at::matmul(x.to(at::kDouble), matrix.to(at::kDouble).t());
            const at::Tensor y = weight.apply(x);
            REQUIRE(y.sizes() == at::IntArrayRef({tokens, out}));
            REQUIRE((y - expected).abs().max().item<double>() < 1e-4);
          }
        }
      }
    }
  }
}

TEST_CASE("a negative zero is a zero", "[sparse][formats]") {
  at::Tensor matrix = at::zeros({2, 8}, at::kFloat);
  matrix[1][3] = -0.0F;
  matrix[0][5] = 2;
  for (const SparseFormat format : {SparseFormat::kBitmask, SparseFormat::kCsr}) {
    const SparseTensors stored = encode(matrix, format);
    REQUIRE(stored.parts.at("_values").numel() == 1);
    REQUIRE_FALSE(decode(stored, format).signbit().any().item<bool>());
  }
}

TEST_CASE("the smallest format is taken, and dense where nothing is saved", "[sparse][formats]") {
  const auto smallest = [](double sparsity, int64_t element, bool structured) {
    const int64_t count = 1024 * 1024;
    return smallest_format(1024, 1024, count - share_of(sparsity, count), element, structured);
  };
  REQUIRE(smallest(0.05, 2, false) == SparseFormat::kDense);  // a bit per element is a sixteenth
  REQUIRE(smallest(0.08, 2, false) == SparseFormat::kBitmask);
  REQUIRE(smallest(0.5, 2, true) == SparseFormat::kTwoOfFour);
  REQUIRE(smallest(0.75, 2, true) == SparseFormat::kBitmask);  // 1:4 stores fewer values so
  REQUIRE(smallest(0.9, 2, false) == SparseFormat::kBitmask);
  REQUIRE(smallest(0.99, 2, false) == SparseFormat::kCsr);
}

TEST_CASE("a 2 x 10 matrix is stored as documented", "[sparse][formats]") {
  at::Tensor matrix = at::zeros({2, 10}, at::kFloat);
  matrix[0][1] = 1;
  matrix[0][9] = 2;
  matrix[1][0] = 3;
  const SparseTensors bits = encode(matrix, SparseFormat::kBitmask);
  REQUIRE(bits.parts.at("_bitmask").equal(at::tensor({2, 2, 1, 0}, at::kByte).reshape({2, 2})));
  REQUIRE(bits.parts.at("_row_offsets").equal(at::tensor({0, 2}, at::kLong)));
  REQUIRE(bits.parts.at("_values").equal(at::tensor({1.0F, 2.0F, 3.0F})));
  const SparseTensors csr = encode(matrix, SparseFormat::kCsr);
  REQUIRE(csr.parts.at("_columns").equal(at::tensor({1, 9, 0}, at::kInt)));
  REQUIRE(csr.parts.at("_row_offsets").equal(at::tensor({0, 2, 3}, at::kInt)));
}

TEST_CASE("matrices that a format does not take are refused", "[sparse][formats]") {
  const at::Tensor matrix = normal_matrix(4, 8, "w").to(at::kFloat);
  const auto text = [](const at::Tensor& m, SparseFormat format) {
    return error_text([&] { encode(m, format); });
  };
  CHECK(text(matrix.to(at::kDouble), SparseFormat::kCsr) ==
        "[sparse::encode] the matrix must be float32, bfloat16 or float16 [out, in]; it is float64 [4, 8]");
  CHECK(
      text(matrix, SparseFormat::kTwoOfFour) ==
      "[sparse::encode] the matrix must have at most two elements other than 0 in each four columns; it has "
      "more");
  CHECK(text(matrix, SparseFormat::kTiledCsl) ==
        "[sparse::encode] the matrix must be bfloat16 or float16 for tiled_csl; it is float32");
}

TEST_CASE("more elements than 32 bits count are refused before they are copied", "[sparse][formats][slow]") {
  const at::Tensor matrix = at::ones({1, 1}).expand({1 << 16, 1 << 15});
  CHECK(error_text([&] { encode(matrix, SparseFormat::kCsr); }) ==
        "[sparse::encode] the matrix must have less than 2^31 elements other than 0 for csr; it has "
        "2147483648");
}

TEST_CASE("stored parts that do not fit are refused by name", "[sparse][formats]") {
  const at::Tensor matrix = pruned(6, 20, {.pattern = "2:4"}, at::kBFloat16);
  const auto text = [&](SparseFormat format, const std::string& part, const auto& damage) {
    SparseTensors stored = encode(matrix, format);
    for (auto& [suffix, tensor] : stored.parts) tensor = tensor.clone();
    damage(stored.parts[part]);
    return error_text([&] { SparseWeight::from_stored(stored, format, "op"); });
  };
  const auto gone = [](at::Tensor& t) { t = at::Tensor(); };
  REQUIRE(text(SparseFormat::kBitmask, "_bitmask", gone) ==
          "[op.weight_bitmask] must be there; it is absent");
  REQUIRE(text(SparseFormat::kBitmask, "_bitmask", [](at::Tensor& t) { t[2][2] = 0xFF; }) ==
          "[op.weight_bitmask] must have no bit beyond column 20; row 2 has");
  REQUIRE(text(SparseFormat::kBitmask, "_row_offsets", [](at::Tensor& t) { t[3] = 7; }) ==
          "[op.weight_row_offsets] must count the bits before each row; row 3 has 7 after 30");
  REQUIRE(text(SparseFormat::kBitmask, "_values", [](at::Tensor& t) { t = t.narrow(0, 0, 5); }) ==
          "[op.weight_values] must be one per bit; there are 5 of 60 bits");
  REQUIRE(text(SparseFormat::kCsr, "_columns", [](at::Tensor& t) { t[1] = 20; }) ==
          "[op.weight_columns] must ascend within a row and be below 20; row 0 has 20");
  REQUIRE(text(SparseFormat::kCsr, "_row_offsets", [](at::Tensor& t) { t[2] = 100; }) ==
          "[op.weight_row_offsets] must never decrease nor exceed 60; row 1 goes from 10 to 100");
  REQUIRE(text(SparseFormat::kTwoOfFour, "_positions", [](at::Tensor& t) { t[0][0] = 0; }) ==
          "[op.weight_positions] must ascend within each four columns; row 0 has 0 and 0");
  REQUIRE(text(SparseFormat::kBlockedEll, "_block_columns", [](at::Tensor& t) { t[0][0] = 1; }) ==
          "[op.weight_block_columns] must ascend and be below 1, then -1; row 0 has 1 after -1");
  REQUIRE(text(SparseFormat::kTiledCsl, "_tile_words", [](at::Tensor& t) { t[0] = -1; }) ==
          "[op.weight_tile_words] must have places below 8192; word 0 has another");
  REQUIRE(text(SparseFormat::kTiledCsl, "_tile_offsets", [](at::Tensor& t) { t[0] = 1; }) ==
          "[op.weight_tile_offsets] must go from 0 to the 60 words in units of 4, the last one twice");
  for (const SparseFormat format : kFormats) {
    REQUIRE(text(format, "_shape", gone) == "[op.weight_shape] must be int64 [2]; it is not");
    REQUIRE(text(format, "_shape", [](at::Tensor& t) { t = t.to(at::kInt); }) ==
            "[op.weight_shape] must be int64 [2]; it is not");
  }
  REQUIRE(text(SparseFormat::kCsr, "_shape", [](at::Tensor& t) { t[0] = 0; }) ==
          "[op.weight_shape] must be two numbers from 1 up; they are 0 and 20");
  REQUIRE(text(SparseFormat::kTwoOfFour, "_shape", [](at::Tensor& t) { t[1] = 21; }) ==
          "[op.weight_shape] must have a multiple of 4 columns; it has 21");
}
