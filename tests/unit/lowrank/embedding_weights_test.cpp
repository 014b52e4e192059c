// The weights that embeddings become: Kronecker products, morphemes, and rows that are exceptions.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/core/rng.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/row_patch_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/lowrank/tucker.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"

using namespace lcomp::lowrank;
using lcomp::Weight;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;
using lcomp::test::TensorMap;

namespace {

using Sizes = std::vector<int64_t>;

at::Tensor normal_floats(const Sizes& shape, const std::string& stream) {
  return normal_matrix(1, c10::multiply_integers(shape), stream).reshape(shape).to(at::kFloat);
}

at::Tensor random_index(int64_t words, int64_t order, int64_t morphemes) {
  lcomp::Rng rng(5, "index");
  at::Tensor index = at::empty({words, order}, at::kInt);
  for (int64_t i = 0; i < index.numel(); ++i)
    index.data_ptr<int32_t>()[i] = static_cast<int32_t>(rng.below(static_cast<uint64_t>(morphemes)));
  return index;
}

/// sum_k F_k1 (x) ... (x) F_kn, float64.
at::Tensor dense_kronecker(const at::Tensor& leaf) {
  at::Tensor sum;
  for (int64_t k = 0; k < leaf.size(1); ++k) {
    at::Tensor term = leaf[0][k].to(at::kDouble);
    for (int64_t j = 1; j < leaf.size(0); ++j) term = at::kron(term, leaf[j][k].to(at::kDouble));
    sum = sum.defined() ? sum + term : term;
  }
  return sum;
}

/// The rows of an embedding of morphemes, one after the other, float64, not cut.
at::Tensor dense_morphemes(const at::Tensor& tables, const at::Tensor& index) {
  std::vector<at::Tensor> rows;
  for (int64_t word = 0; word < index.size(0); ++word) {
    at::Tensor row;
    for (int64_t i = 0; i < tables.size(0); ++i) {
      at::Tensor term = at::ones({1}, at::kDouble);
      for (int64_t j = 0; j < index.size(1); ++j)
        term = at::kron(term, tables[i][index[word][j].item<int64_t>()].to(at::kDouble));
      row = row.defined() ? row + term : term;
    }
    rows.push_back(row);
  }
  return at::stack(rows);
}

void require_equals(const Weight& weight, const at::Tensor& matrix) {
  REQUIRE(weight.out_features() == matrix.size(0));
  REQUIRE(weight.in_features() == matrix.size(1));
  REQUIRE(relative_difference(weight.dense(), matrix) < 1e-5);
  for (const int64_t tokens : {1, 5, 33}) {
    const at::Tensor x = normal_matrix(tokens, matrix.size(1), "x").to(at::kFloat);
    const at::Tensor y = weight.apply(x);
    REQUIRE(y.is_contiguous());
    REQUIRE(relative_difference(y, x.to(at::kDouble).mm(matrix.t())) < 1e-5);
  }
  const at::Tensor ids = at::tensor({matrix.size(0) - 1, int64_t{0}, int64_t{3}, int64_t{3}}, at::kLong);
  REQUIRE(weight.rows(ids).equal(weight.dense().index_select(0, ids)));
  CHECK(weight.rows(at::empty({0}, at::kLong)).sizes() == at::IntArrayRef({0, matrix.size(1)}));
  CHECK_THAT(error_text([&] { weight.rows(at::tensor({matrix.size(0)}, at::kLong)); }),
             Catch::Contains("ids must lie in [0, "));
}

int64_t saved_bytes(const Weight& weight) {
  TensorMap saved;
  weight.save(saved, "op");
  int64_t bytes = 0;
  for (const auto& [name, tensor] : saved.all)
    bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
  return bytes;
}

KroneckerParts kronecker_parts(const KroneckerSumWeight& weight) {
  TensorMap saved;
  weight.save(saved, "op");
  return {saved.all.at("op.weight_kronecker_leaf"), saved.all.at("op.weight_kronecker_shape").clone()};
}

MorphemeParts morpheme_parts(const MorphemeWeight& weight) {
  TensorMap saved;
  weight.save(saved, "op");
  return {saved.all.at("op.weight_morpheme_tables"), saved.all.at("op.weight_morpheme_index").clone(),
          saved.all.at("op.weight_morpheme_shape").clone()};
}

RowPatchParts patch_parts(const RowPatchWeight& weight) {
  TensorMap saved;
  weight.save(saved, "op");
  return {saved.all.at("op.weight_patch_rows").clone(), saved.all.at("op.weight_patch_values"),
          saved.all.at("op.weight_patch_shape").clone()};
}

}  // namespace

TEST_CASE("a Kronecker sum multiplies and looks up as its matrix does", "[lowrank][weight]") {
  struct Case {
    int64_t order, rank, t, q, out, in;
  };
  for (const Case c :
       {Case{1, 3, 7, 9, 7, 9}, {2, 4, 5, 6, 23, 31}, {3, 2, 4, 3, 50, 20}, {4, 2, 3, 2, 81, 16}}) {
    CAPTURE(c.order, c.rank);
    const at::Tensor leaf = normal_floats({c.order, c.rank, c.t, c.q}, "leaf");
    const KroneckerSumWeight weight(c.out, c.in, leaf);
    require_equals(weight, dense_kronecker(leaf).narrow(0, 0, c.out).narrow(1, 0, c.in));
    CHECK(weight.parameters() == c.order * c.rank * c.t * c.q);
    CHECK(weight.bytes() == 4 * weight.parameters() + 16);
    CHECK(weight.bytes() == saved_bytes(weight));
  }
  const KroneckerSumWeight weight(50, 20, normal_floats({3, 2, 4, 3}, "leaf"));
  CHECK(weight.macs_per_token() == 2 * (4 * 27 + 16 * 9 + 64 * 3));
  // The figures of the paper's code: 224 numbers for a vocabulary of 30000.
  CHECK(KroneckerSumWeight(30000, 256, at::zeros({4, 1, 14, 4})).parameters() == 224);
  CHECK(KroneckerSumWeight(30000, 256, at::zeros({4, 2, 14, 4})).parameters() == 448);
}

TEST_CASE("a Kronecker sum is a tensor train with diagonal cores", "[lowrank][weight]") {
  const at::Tensor leaf = normal_floats({3, 2, 4, 3}, "leaf");
  const KroneckerSumWeight weight(50, 20, leaf);
  // [r, t, q, r] with the matrices on the diagonal of the ranks; ends summed.
  std::vector<at::Tensor> cores;
  for (int64_t j = 0; j < 3; ++j)
    cores.push_back(at::diag_embed(leaf[j].permute({1, 2, 0}), 0, 0, 3).contiguous());
  cores[0] = cores[0].sum(0, true);
  cores[2] = cores[2].sum(3, true);
  CHECK(relative_difference(TensorTrainWeight(50, 20, cores).dense(), weight.dense()) < 1e-6);
}

TEST_CASE("rows of morphemes are sums of tensor products", "[lowrank][weight]") {
  struct Case {
    int64_t rank, morphemes, q, order, words, in;
  };
  for (const Case c :
       {Case{2, 6, 3, 3, 40, 20}, {1, 9, 4, 2, 30, 16}, {3, 5, 12, 1, 10, 11}, {4, 7, 2, 4, 12, 16}}) {
    CAPTURE(c.rank, c.order);
    const at::Tensor tables = normal_floats({c.rank, c.morphemes, c.q}, "tables");
    const at::Tensor index = random_index(c.words, c.order, c.morphemes);
    const MorphemeWeight weight(tables, index, c.in);
    require_equals(weight, dense_morphemes(tables, index).narrow(1, 0, c.in));
    CHECK(weight.parameters() == tables.numel() + index.numel());
    CHECK(weight.bytes() == 4 * weight.parameters() + 16);
    CHECK(weight.bytes() == saved_bytes(weight));
  }
  const MorphemeWeight weight(at::zeros({7, 5757, 8}), at::zeros({15480, 3}, at::kInt), 512);
  CHECK(weight.parameters() == 368832);  // the paper's 0.37M for De-En
  CHECK(weight.row_macs() == 7 * (64 + 512));
  CHECK(weight.macs_per_token() == 15480 * (512 + 7 * (64 + 512)));
  CHECK(MorphemeWeight(at::zeros({7, 5, 8}), at::zeros({9, 1}, at::kInt), 8).row_macs() == 0);
}

TEST_CASE("the order of morphemes matters, equal ones give equal rows, and ranks are bounded",
          "[lowrank][weight]") {
  const at::Tensor tables = normal_floats({2, 6, 3}, "tables");
  const at::Tensor index = at::tensor({0, 1, 2, 1, 0, 2, 0, 1, 2}, at::kInt).reshape({3, 3});
  const at::Tensor rows = MorphemeWeight(tables, index, 27).dense();
  CHECK(rows[0].equal(rows[2]));
  CHECK(!rows[0].allclose(rows[1]));
  // Exchanging two morphemes exchanges two axes.
  CHECK(relative_difference(rows[1].reshape({3, 3, 3}), rows[0].reshape({3, 3, 3}).transpose(0, 1)) < 1e-6);
  for (const int64_t rank : {1, 2}) {
    const at::Tensor row =
        MorphemeWeight(tables.narrow(0, 0, rank), index, 27).dense()[0].reshape({3, 3, 3}).to(at::kDouble);
    for (const int64_t mode : {0, 1, 2}) {
      const auto s =
          Eigen::JacobiSVD<Eigen::MatrixXd>(lcomp::test::to_eigen(unfold(row, mode))).singularValues();
      CHECK(s[rank] < 1e-6 * s[0]);
    }
  }
}

TEST_CASE("a patch of rows is zero elsewhere and makes exceptions in a sum", "[lowrank][weight]") {
  const at::Tensor values = normal_floats({3, 8}, "values"), ids = at::tensor({1, 4, 9}, at::kLong);
  const RowPatchWeight patch(10, ids, values);
  at::Tensor matrix = at::zeros({10, 8}, at::kDouble);
  matrix.index_copy_(0, ids, values.to(at::kDouble));
  require_equals(patch, matrix);
  CHECK(patch.parameters() == 24);
  CHECK(patch.macs_per_token() == 24);
  CHECK(patch.bytes() == 3 * 8 + 24 * 4 + 16);
  CHECK(patch.bytes() == saved_bytes(patch));
  CHECK(patch.describe() == "3 rows (float32)");

  const auto table = std::make_shared<KroneckerSumWeight>(10, 8, normal_floats({2, 2, 4, 3}, "leaf"));
  const at::Tensor rest = values - table->rows(ids);
  const lcomp::SumWeight sum({table, std::make_shared<RowPatchWeight>(10, ids, rest)});
  CHECK(relative_difference(sum.rows(ids), values) < 1e-6);
  CHECK(sum.rows(at::tensor({0, 5}, at::kLong)).equal(table->rows(at::tensor({0, 5}, at::kLong))));
}

TEST_CASE("stored embeddings are read back bit by bit", "[lowrank][weight]") {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const KroneckerSumWeight kronecker(50, 20, normal_floats({3, 2, 4, 3}, "leaf").to(type));
    const auto leaf = KroneckerSumWeight::from_stored(kronecker_parts(kronecker), "op");
    CHECK(leaf.leaf().scalar_type() == type);
    CHECK(leaf.leaf().equal(kronecker.leaf()));
    CHECK(leaf.dense().equal(kronecker.dense()));

    const MorphemeWeight morphemes(normal_floats({2, 6, 3}, "tables").to(type), random_index(40, 3, 6), 20);
    const auto words = MorphemeWeight::from_stored(morpheme_parts(morphemes), "op");
    CHECK(words.tables().scalar_type() == type);
    CHECK(words.tables().equal(morphemes.tables()));
    CHECK(words.index().equal(morphemes.index()));
    CHECK(words.dense().equal(morphemes.dense()));

    const RowPatchWeight patch(10, at::tensor({1, 4}, at::kLong), normal_floats({2, 8}, "values").to(type));
    const auto rows = RowPatchWeight::from_stored(patch_parts(patch), "op");
    CHECK(rows.values().equal(patch.values()));
    CHECK(rows.row_ids().equal(patch.row_ids()));
    CHECK(rows.dense().equal(patch.dense()));
  }
  CHECK(KroneckerSumWeight(50, 20, at::zeros({3, 2, 4, 3})).describe() ==
        "Kronecker products of order 3, rank 2, 4x3 (float32)");
  CHECK(MorphemeWeight(at::zeros({2, 6, 3}), random_index(4, 3, 6), 20).describe() ==
        "6 morphemes, order 3, rank 2, vectors of 3 (float32)");
}

TEST_CASE("damaged Kronecker sums are refused with the name of the tensor", "[lowrank][weight]") {
  const KroneckerSumWeight weight(50, 20, normal_floats({3, 2, 4, 3}, "leaf"));
  const auto text_with = [&](const std::function<void(KroneckerParts&)>& damage) {
    return error_text([&] {
      KroneckerParts parts = kronecker_parts(weight);
      damage(parts);
      KroneckerSumWeight::from_stored(parts, "op");
    });
  };
  CHECK_THAT(text_with([](auto& p) { p.leaf = at::Tensor(); }),
             Catch::Contains("[op.weight_kronecker_leaf] must be [order, rank, rows, columns]") &&
                 Catch::Contains("it is missing"));
  CHECK_THAT(text_with([](auto& p) { p.leaf = p.leaf.to(at::kDouble); }), Catch::Contains("it is float64"));
  CHECK_THAT(text_with([](auto& p) { p.shape = at::ones({3}, at::kLong); }),
             Catch::Contains("[op.weight_kronecker_shape] must be int64 [2]; it is int64 [3]"));
  CHECK_THAT(text_with([](auto& p) { p.shape[0] = 65; }),
             Catch::Contains("[op.weight_kronecker_shape] must have a product of 3 factors (4 x 4 x 4) of at "
                             "least 65 rows"));
  CHECK_THAT(text_with([](auto& p) { p.shape[1] = 2; }), Catch::Contains("of at least 2 columns"));
  CHECK_THAT(text_with([](auto& p) { p.leaf = at::ones({17, 1, 2, 2}); }), Catch::Contains("17 factors"));
  CHECK_THAT(text_with([](auto& p) {
               p.leaf = at::ones({4, 1, 65536, 1}).narrow(1, 0, 1);
             }),
             Catch::Contains("65536 x 65536"));
  CHECK_THAT(error_text([] {
               KroneckerSumWeight(5, 5, at::ones({2, 2}));
             }),
             Catch::Contains("[KroneckerSumWeight] the kronecker_leaf must be"));
}

TEST_CASE("damaged morphemes are refused with the name of the tensor", "[lowrank][weight]") {
  const MorphemeWeight weight(normal_floats({2, 6, 3}, "tables"), random_index(40, 3, 6), 20);
  const auto text_with = [&](const std::function<void(MorphemeParts&)>& damage) {
    return error_text([&] {
      MorphemeParts parts = morpheme_parts(weight);
      damage(parts);
      MorphemeWeight::from_stored(parts, "op");
    });
  };
  CHECK_THAT(text_with([](auto& p) { p.tables = p.tables[0]; }),
             Catch::Contains("[op.weight_morpheme_tables] must be [rank, morphemes, columns]"));
  CHECK_THAT(text_with([](auto& p) { p.index = p.index.to(at::kLong); }),
             Catch::Contains("[op.weight_morpheme_index] must be int32 [vocabulary, order], not empty; it is "
                             "int64 [40, 3]"));
  CHECK_THAT(text_with([](auto& p) { p.index[7][1] = 6; }),
             Catch::Contains("[op.weight_morpheme_index] must lie in [0, 6), the morphemes; one is 6"));
  CHECK_THAT(text_with([](auto& p) { p.index[7][1] = -1; }), Catch::Contains("one is -1"));
  CHECK_THAT(
      text_with([](auto& p) { p.shape[0] = 41; }),
      Catch::Contains("[op.weight_morpheme_shape] must have as many rows as the index, 40; it has 41"));
  CHECK_THAT(text_with([](auto& p) { p.shape[1] = 28; }), Catch::Contains("of at least 28 columns"));
  CHECK_THAT(text_with([](auto& p) { p.shape = at::Tensor(); }), Catch::Contains("it is missing"));
  CHECK_THAT(error_text([] {
               MorphemeWeight(at::ones({2, 6, 3}), at::Tensor(), 20);
             }),
             Catch::Contains("[MorphemeWeight] the morpheme_index must be"));
}

TEST_CASE("damaged patches of rows are refused with the name of the tensor", "[lowrank][weight]") {
  const RowPatchWeight weight(10, at::tensor({1, 4}, at::kLong), normal_floats({2, 8}, "values"));
  const auto text_with = [&](const std::function<void(RowPatchParts&)>& damage) {
    return error_text([&] {
      RowPatchParts parts = patch_parts(weight);
      damage(parts);
      RowPatchWeight::from_stored(parts, "op");
    });
  };
  CHECK_THAT(text_with([](auto& p) { p.values = p.values.to(at::kInt); }),
             Catch::Contains("[op.weight_patch_values] must be [count, in]"));
  CHECK_THAT(text_with([](auto& p) { p.rows = p.rows.narrow(0, 0, 1); }),
             Catch::Contains("[op.weight_patch_rows] must be int64 [2]; it is int64 [1]"));
  CHECK_THAT(text_with([](auto& p) { p.rows[0] = 4; }),
             Catch::Contains("[op.weight_patch_rows] must ascend and lie in [0, 10); 4 comes after 4"));
  CHECK_THAT(text_with([](auto& p) { p.rows[1] = 10; }), Catch::Contains("10 comes after 1"));
  CHECK_THAT(text_with([](auto& p) { p.shape = p.shape.to(at::kInt); }),
             Catch::Contains("[op.weight_patch_shape] must be int64 [2]; it is int32 [2]"));
  CHECK_THAT(text_with([](auto& p) { p.shape[1] = 9; }),
             Catch::Contains("must have 2 to 2147483648 rows and 8 columns; it is [10, 9]"));
  CHECK_THAT(error_text([] { RowPatchWeight(5, at::Tensor(), at::Tensor()); }),
             Catch::Contains("[RowPatchWeight] the patch_values must be"));
}
