#include "lcomp/lowrank/tensor_train_weight.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/lowrank/kronecker.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/tensor_map.h"

using namespace lcomp::lowrank;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

using Sizes = std::vector<int64_t>;

TrainMatrix random_matrix(const Sizes& rows, const Sizes& columns, const Sizes& ranks, int64_t out,
                          int64_t in) {
  TrainMatrix matrix{.cores = {}, .out = out, .in = in};
  for (size_t k = 0; k < rows.size(); ++k) {
    matrix.cores.push_back(normal_matrix(ranks[k] * rows[k], columns[k] * ranks[k + 1], std::to_string(k))
                               .reshape({ranks[k], rows[k], columns[k], ranks[k + 1]}));
  }
  return matrix;
}

TensorTrainParts saved_parts(const TensorTrainWeight& weight) {
  lcomp::test::TensorMap saved;
  weight.save(saved, "op");
  TensorTrainParts parts{saved.all.at("op.weight_tt_shape").clone(), {}, {}};
  const int64_t d = TensorTrainWeight::core_count(parts.shape, "op");
  for (int64_t k = 0; k < d; ++k)
    parts.cores.push_back(saved.all.at("op.weight_tt_core" + std::to_string(k)));
  if (saved.all.count("op.weight_tt_input_scale") > 0)
    parts.input_scale = saved.all.at("op.weight_tt_input_scale");
  return parts;
}

void require_equals(const TensorTrainWeight& weight, const at::Tensor& matrix) {
  REQUIRE(relative_difference(weight.dense(), matrix) < 1e-5);
  for (const int64_t tokens : {1, 3, 40}) {
    const at::Tensor x = normal_matrix(tokens, matrix.size(1), "x").to(at::kFloat);
    const at::Tensor y = weight.apply(x);
    REQUIRE(y.is_contiguous());
    REQUIRE(relative_difference(y, x.to(at::kDouble).mm(matrix.t())) < 1e-5);
  }
  const at::Tensor ids = at::tensor({matrix.size(0) - 1, int64_t{0}, int64_t{2}, int64_t{2}}, at::kLong);
  REQUIRE(relative_difference(weight.rows(ids), matrix.index_select(0, ids)) < 1e-5);
}

}  // namespace

TEST_CASE("a tensor train multiplies and looks up as its matrix does", "[lowrank][weight]") {
  // Wide, so that the right side is cheaper; tall, so that the left one is; one core; two; four.
  struct Case {
    Sizes rows, columns, ranks;
    int64_t out, in;
  };
  const std::vector<Case> cases = {{{3, 4, 2}, {2, 3, 5}, {1, 4, 3, 1}, 24, 30},
                                   {{3, 4, 2}, {2, 3, 5}, {1, 4, 3, 1}, 22, 28},
                                   {{5, 6, 4}, {2, 2, 3}, {1, 2, 5, 1}, 119, 12},
                                   {{2, 8}, {8, 2}, {1, 3, 1}, 16, 16},
                                   {{8, 2}, {2, 8}, {1, 3, 1}, 15, 16},
                                   {{7}, {9}, {1, 1}, 7, 9},
                                   {{2, 3, 2, 3}, {3, 2, 3, 2}, {1, 2, 3, 2, 1}, 36, 36}};
  bool left = false, right = false;
  for (const Case& c : cases) {
    CAPTURE(c.rows, c.columns, c.out, c.in);
    const TrainMatrix matrix = random_matrix(c.rows, c.columns, c.ranks, c.out, c.in);
    const TensorTrainWeight weight(matrix, at::kFloat);
    require_equals(weight, matrix.full());
    const TrainCost cost = train_cost(c.rows, c.columns, c.ranks);
    CHECK(weight.macs_per_token() == std::min(cost.macs_left, cost.macs_right));
    CHECK(weight.parameters() == cost.parameters);
    CHECK(weight.bytes() == 4 * cost.parameters + 8 * static_cast<int64_t>(2 + 2 * c.rows.size()));
    (cost.macs_left < cost.macs_right ? left : right) = true;

    const at::Tensor scale = normal_matrix(1, c.in, "scale").squeeze(0).to(at::kFloat);
    const TensorTrainWeight scaled(matrix, at::kFloat, scale);
    require_equals(scaled, matrix.full() * scale);
    CHECK(scaled.macs_per_token() == cost.macs() + c.in);
    CHECK(scaled.parameters() == cost.parameters + c.in);
    CHECK(scaled.bytes() == weight.bytes() + 4 * c.in);
  }
  CHECK(left);
  CHECK(right);
}

TEST_CASE("a sum of Kronecker products is a train of two cores", "[lowrank][weight]") {
  const at::Tensor w = normal_matrix(12, 20, "w");
  const KroneckerSum sum = kronecker_sum(w, {.m1 = 3, .n1 = 4, .m2 = 4, .n2 = 5}, 5);
  require_equals(TensorTrainWeight(sum.train(), at::kFloat), sum.full());
}

TEST_CASE("many tokens and many rows are worked on in pieces", "[lowrank][weight][slow]") {
  const TrainMatrix matrix = random_matrix({64, 64}, {64, 64}, {1, 8, 1}, 4096, 4090);
  const TensorTrainWeight weight(matrix, at::kFloat);
  const at::Tensor dense = weight.dense(), x = normal_matrix(600, 4090, "x").to(at::kFloat);
  CHECK(relative_difference(weight.apply(x), x.mm(dense.t())) < 1e-5);
  const at::Tensor ids = at::remainder(at::arange(9000, at::kLong) * 7, 4096);
  CHECK(relative_difference(weight.rows(ids), dense.index_select(0, ids)) < 1e-5);
}

TEST_CASE("a stored tensor train is read back bit by bit", "[lowrank][weight]") {
  const TrainMatrix matrix = random_matrix({3, 4, 2}, {2, 3, 5}, {1, 4, 3, 1}, 22, 28);
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const at::Tensor& scale : {at::Tensor(), at::ones({28}, type)}) {
      const TensorTrainWeight weight(matrix, type, scale);
      const TensorTrainWeight again = TensorTrainWeight::from_stored(saved_parts(weight), "op");
      REQUIRE(again.cores().size() == 3);
      for (size_t k = 0; k < 3; ++k) {
        CHECK(again.cores()[k].scalar_type() == type);
        CHECK(again.cores()[k].equal(weight.cores()[k]));
      }
      CHECK(again.input_scale().defined() == scale.defined());
      CHECK(again.dense().equal(weight.dense()));
      CHECK(again.describe() == weight.describe());
      CHECK(again.bytes() == weight.bytes());
    }
  }
  CHECK(TensorTrainWeight(matrix, at::kHalf).describe() ==
        "tensor train of rows 3x4x2 and columns 2x3x5, ranks 4 3 (float16)");
}

TEST_CASE("damaged tensor trains are refused with the name of the tensor", "[lowrank][weight]") {
  const TensorTrainWeight weight(random_matrix({3, 4, 2}, {2, 3, 5}, {1, 4, 3, 1}, 22, 28), at::kFloat,
                                 at::ones({28}));
  const auto text_with = [&](const std::function<void(TensorTrainParts&)>& damage) {
    return error_text([&] {
      TensorTrainParts parts = saved_parts(weight);
      damage(parts);
      TensorTrainWeight::from_stored(parts, "op");
    });
  };
  CHECK_THAT(
      error_text([] { TensorTrainWeight::core_count(at::ones({5}, at::kLong), "op"); }),
      Catch::Contains("[op.weight_tt_shape] must be int64 [2 + 2 x number of cores]; it is int64 [5]"));
  CHECK_THAT(text_with([](auto& p) { p.shape = at::Tensor(); }),
             Catch::Contains("[op.weight_tt_shape] must be int64 [8]; it is missing"));
  CHECK_THAT(text_with([](auto& p) { p.cores.pop_back(); }), Catch::Contains("[op.weight_tt_shape]"));
  CHECK_THAT(text_with([](auto& p) { p.cores[1] = p.cores[1].to(at::kHalf); }),
             Catch::Contains("[op.weight_tt_core1] must be [4, rows, columns, rank]"));
  CHECK_THAT(text_with([](auto& p) { p.cores[2] = p.cores[1]; }),
             Catch::Contains("[op.weight_tt_core2] must be [3, rows") &&
                 Catch::Contains("it is float32 [4, 4, 3, 3]"));
  CHECK_THAT(text_with([](auto& p) { p.cores[0] = p.cores[0].to(at::kDouble); }),
             Catch::Contains("[op.weight_tt_core0]"));
  CHECK_THAT(text_with([](auto& p) {
               p.cores[2] = at::ones({3, 2, 5, 2});
             }),
             Catch::Contains("[op.weight_tt_core2] must have rank 1 at the end; it has 2"));
  CHECK_THAT(text_with([](auto& p) { p.shape[2] = 4; }),
             Catch::Contains("[op.weight_tt_shape] must be the shape of the cores"));
  CHECK_THAT(text_with([](auto& p) { p.shape[0] = 25; }),
             Catch::Contains("must have a product of 3 factors (3 x 4 x 2) of at least 25 rows"));
  CHECK_THAT(text_with([](auto& p) { p.shape[1] = 1; }),
             Catch::Contains("of at least 1 columns and at most 2^3 times that"));
  CHECK_THAT(text_with([](auto& p) { p.shape[0] = -1; }), Catch::Contains("[op.weight_tt_shape]"));
  CHECK_THAT(text_with([](auto& p) { p.input_scale = at::ones({27}); }),
             Catch::Contains("[op.weight_tt_input_scale] must be float32, bfloat16 or float16 [28]"));
}

TEST_CASE("tensor trains: wrong arguments are refused", "[lowrank][weight]") {
  const TrainMatrix matrix = random_matrix({3, 4}, {2, 3}, {1, 4, 1}, 12, 6);
  CHECK_THAT(error_text([&] { TensorTrainWeight(4, 4, {}); }),
             Catch::Contains("[TensorTrainWeight] the tt_core0 must be there"));
  CHECK_THAT(error_text([&] { TensorTrainWeight(matrix, at::kDouble); }),
             Catch::Contains("the type must be float32, bfloat16 or float16; it is float64"));
  CHECK_THAT(error_text([&] { TensorTrainWeight(matrix, at::kFloat, at::ones({5})); }),
             Catch::Contains("the tt_input_scale must be"));
  const TensorTrainWeight weight(matrix, at::kFloat);
  CHECK_THAT(error_text([&] { weight.rows(at::tensor({12}, at::kLong)); }),
             Catch::Contains("ids must lie in [0, 12); one is 12"));
  CHECK_THAT(error_text([&] { weight.rows(at::tensor({1}, at::kInt)); }),
             Catch::Contains("ids must be an int64 vector; they are "));
  CHECK(weight.rows(at::empty({0}, at::kLong)).sizes() == at::IntArrayRef({0, 6}));
}
