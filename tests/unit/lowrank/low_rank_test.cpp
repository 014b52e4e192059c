#include "lcomp/lowrank/low_rank.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <limits>

#include "lcomp/core/product_weight.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/rounding_weight.h"
#include "support/tensor_map.h"
#include "support/test_data.h"

using namespace lcomp::lowrank;
using lcomp::DenseWeight;
using lcomp::ThreadPool;
using lcomp::WeightPtr;
using lcomp::io::SafetensorsFile;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;
using lcomp::test::shared_data;

namespace {

at::Tensor product(const Factors& f) {
  return f.left.mm(f.right);
}

double loss(const at::Tensor& d, const at::Tensor& h) {
  return d.mm(h).mul(d).sum().item<double>();
}

WeightPtr keep(const at::Tensor& values, const lcomp::Weight* = nullptr) {
  return std::make_shared<DenseWeight>(values);
}

struct Case {
  at::Tensor w, h;
};

/// Tall, wide and square.
std::vector<Case> cases() {
  std::vector<Case> made;
  for (const auto& [m, n] : {std::pair{24, 40}, {40, 24}, {30, 30}})
    made.push_back({normal_matrix(m, n, "w"), correlated_moment(n, 5 * n)});
  return made;
}

}  // namespace

TEST_CASE("low rank: goldens of the SVD family", "[lowrank][golden]") {
  const auto problem = shared_data("golden/methods/problem.safetensors");
  const auto golden = shared_data("golden/methods/lowrank.safetensors");
  if (!problem || !golden) {
    WARN("skipped: golden/methods/lowrank.safetensors is not there");
    return;
  }
  const SafetensorsFile inputs(*problem), expected(*golden);
  const at::Tensor w = inputs.read("w"), h = inputs.read("gram");
  const at::Tensor abs_mean = inputs.read("x").abs().mean(0);
  for (const double rho : {0.5, 0.8}) {
    const std::string at = fmt::format("rho{}.", rho);
    const auto size = static_cast<int64_t>(rho * static_cast<double>(w.numel()));
    const int64_t rank = largest_rank(Form::kPair, w.size(0), w.size(1), size);
    REQUIRE(rank == expected.read(at + "rank").item<int64_t>());
    const auto check = [&](const std::string& name, const InputMetric& metric) {
      for (const Solver solver : {Solver::kExact, Solver::kGram}) {
        CAPTURE(at, name, static_cast<int>(solver));
        const Factors found = low_rank(w, metric, rank, solver);
        CHECK(relative_difference(product(found), expected.read(at + name + ".w")) < 1e-7);
        const double e = expected.read(at + name + ".E").to(at::kDouble).item<double>();
        CHECK(loss(w - product(found), h) == Approx(e).epsilon(1e-6));
      }
    };
    check("svd", InputMetric::plain(w.size(1)));
    for (const double alpha : {0.5, 1.0}) {
      const std::string name = fmt::format("asvd{:.1f}", alpha);
      const at::Tensor scale = abs_mean.pow(alpha) + 1e-6;
      REQUIRE(relative_difference(scale, expected.read(at + name + ".scale")) < 1e-12);
      check(name, InputMetric::diagonal(scale));
    }
    const InputMetric moment = InputMetric::moment(h);
    check("svdllm", moment);
    const Factors exact = low_rank(w, moment, w.size(0), Solver::kExact);
    REQUIRE(relative_difference(at::tensor(exact.singular_values, at::kDouble),
                                expected.read(at + "svdllm.singular_values")) < 1e-9);
    const Factors projected = project_inputs(w, moment, rank);
    REQUIRE(relative_difference(product(projected), expected.read(at + "pca_input.w")) < 1e-7);
  }
  const at::Tensor d = expected.read("fwsvd.fisher").sum(0).sqrt() + 1e-6;
  const Factors weighted =
      low_rank(w, InputMetric::diagonal(d), expected.read("fwsvd.rank").item<int64_t>(), Solver::kExact);
  REQUIRE(relative_difference(product(weighted), expected.read("fwsvd.w")) < 1e-9);
  REQUIRE(weighted.tail == Approx(expected.read("fwsvd.loss").item<float>()).epsilon(1e-6));
}

TEST_CASE("low rank: corrections of a quantized matrix match the goldens", "[lowrank][golden]") {
  const auto problem = shared_data("golden/methods/problem.safetensors");
  const auto golden = shared_data("golden/methods/lowrank.safetensors");
  if (!problem || !golden) {
    WARN("skipped: golden/methods/lowrank.safetensors is not there");
    return;
  }
  const at::Tensor w = SafetensorsFile(*problem).read("w");
  const SafetensorsFile expected(*golden);
  const at::Tensor quantized = expected.read("lqer.wq"), scale = expected.read("lqer.scale");
  const at::Tensor plain = product(low_rank(w - quantized, InputMetric::plain(64), 8));
  REQUIRE(relative_difference(quantized + plain, expected.read("lqer.plain")) < 1e-8);
  const at::Tensor scaled = product(low_rank(w - quantized, InputMetric::diagonal(scale), 8));
  REQUIRE(relative_difference(quantized + scaled, expected.read("lqer.l2qer")) < 1e-8);
}

TEST_CASE("low rank: the loss is the sum of the cut squares, and no other rank-k matrix has less",
          "[lowrank]") {
  for (const auto& [w, h] : cases()) {
    CAPTURE(w.size(0), w.size(1));
    const InputMetric metric = InputMetric::moment(h);
    const std::vector<double> losses = component_losses(w, metric);
    const int64_t all = std::min(w.size(0), w.size(1));
    REQUIRE(static_cast<int64_t>(losses.size()) == all);
    double before = std::numeric_limits<double>::infinity();
    for (const int64_t rank : {int64_t{1}, all / 3, all - 1, all}) {
      CAPTURE(rank);
      const Factors found = low_rank(w, metric, rank);
      double tail = 0;
      for (auto i = static_cast<size_t>(rank); i < losses.size(); ++i) tail += losses[i];
      const double e = loss(w - product(found), h), energy = loss(w, h);
      REQUIRE(std::abs(e - tail) < 1e-9 * energy);
      REQUIRE(std::abs(found.tail - tail) < 1e-9 * energy);
      REQUIRE(found.energy == Approx(energy));
      REQUIRE(e < before);
      before = e;
      const double slack = 1e-9 * energy;
      REQUIRE(e <= loss(w - product(low_rank(w, InputMetric::plain(w.size(1)), rank)), h) + slack);
      const at::Tensor asvd = h.diagonal().sqrt().sqrt();
      REQUIRE(e <= loss(w - product(low_rank(w, InputMetric::diagonal(asvd), rank)), h) + slack);
      REQUIRE(e <= project_inputs(w, metric, rank).tail + slack);
      if (rank == all) REQUIRE(relative_difference(product(found), w) < 1e-9);
    }
  }
}

TEST_CASE("low rank: all solvers agree, with weights of the rows too", "[lowrank]") {
  for (const auto& [w, h] : cases()) {
    const InputMetric metric = InputMetric::moment(h);
    const at::Tensor rows = normal_matrix(1, w.size(0), "rows").square().flatten() + 0.1;
    for (const at::Tensor& weights : {at::Tensor(), rows}) {
      const Factors exact = low_rank(w, metric, 7, Solver::kExact, weights);
      for (const Solver solver : {Solver::kGram, Solver::kAuto, Solver::kRandomized}) {
        const Factors other = low_rank(w, metric, 7, solver, weights);
        REQUIRE(relative_difference(product(other), product(exact)) < 1e-4);
        REQUIRE(other.tail == Approx(exact.tail).epsilon(1e-6));
      }
      const at::Tensor d = w - product(exact);
      const at::Tensor e = weights.defined() ? weights : at::ones({w.size(0)}, at::kDouble);
      REQUIRE(exact.tail == Approx(loss(d * e.sqrt().unsqueeze(1), h)));
    }
  }
}

TEST_CASE("low rank: a singular second moment needs no damping", "[lowrank]") {
  // Fewer tokens than inputs, a dead input, and two that are equal.
  at::Tensor x = normal_matrix(20, 24, "few tokens");
  x.select(1, 3).zero_();
  x.select(1, 9).copy_(x.select(1, 4));
  const at::Tensor w = normal_matrix(40, 24, "w");
  const InputMetric metric = InputMetric::moment(x.t().mm(x));
  const Factors found = low_rank(w, metric, 6);
  REQUIRE(metric.is_singular());
  // Against the best approximation of the outputs themselves.
  const auto outputs = lcomp::linalg::truncated_svd(w.mm(x.t()), 6);
  const at::Tensor y = product(found).mm(x.t());
  REQUIRE((w.mm(x.t()) - y).square().sum().item<double>() == Approx(outputs.tail));
}

TEST_CASE("low rank: rotating the tokens changes nothing", "[lowrank]") {
  const at::Tensor w = normal_matrix(20, 30, "w"), x = normal_matrix(90, 30, "x");
  const at::Tensor turn = lcomp::linalg::orthonormal_columns(normal_matrix(90, 90, "turn"));
  const at::Tensor turned = turn.mm(x);
  const Factors a = low_rank(w, InputMetric::moment(x.t().mm(x)), 5);
  const Factors b = low_rank(w, InputMetric::moment(turned.t().mm(turned)), 5);
  REQUIRE(relative_difference(product(a), product(b)) < 1e-9);
}

TEST_CASE("updating the left factor never raises the loss, and is the least squares", "[lowrank]") {
  for (const auto& [w, h] : cases()) {
    const at::Tensor shifted = correlated_moment(w.size(1), 4 * w.size(1), 7);
    Factors factors = low_rank(w, InputMetric::moment(h), 8);
    const double before = loss(w - product(factors), shifted);
    update_left(factors, w, InputMetric::moment(shifted));
    REQUIRE(factors.tail == Approx(loss(w - product(factors), shifted)));
    REQUIRE(factors.tail <= before);
    const at::Tensor b = factors.right;
    const at::Tensor oracle = w.mm(shifted).mm(b.t()).mm(at::linalg_inv(b.mm(shifted).mm(b.t()))).mm(b);
    REQUIRE(relative_difference(product(factors), oracle) < 1e-8);
    const at::Tensor once = product(factors);
    update_left(factors, w, InputMetric::moment(shifted));
    REQUIRE(relative_difference(product(factors), once) < 1e-9);
  }
}

TEST_CASE("forms: sizes, ranks and the same product", "[lowrank]") {
  REQUIRE(factored_size(Form::kPair, 100, 60, 10) == 1600);
  REQUIRE(factored_size(Form::kPivoted, 100, 60, 10) == 1500);
  REQUIRE(factored_size(Form::kPivoted, 100, 60, 60) == 6000);
  for (const Form form : {Form::kPair, Form::kPivoted}) {
    for (const int64_t size : {0, 159, 160, 3000, 4800, 6000}) {
      for (const int64_t multiple : {1, 8}) {
        const int64_t rank = largest_rank(form, 100, 60, size, multiple);
        REQUIRE(rank % multiple == 0);
        REQUIRE(factored_size(form, 100, 60, rank) <= size);
        if (rank + multiple <= 60) REQUIRE(factored_size(form, 100, 60, rank + multiple) > size);
      }
    }
  }
  const at::Tensor w = normal_matrix(26, 18, "w"), x = normal_matrix(5, 18, "x").to(at::kFloat);
  const Factors factors = low_rank(w, InputMetric::plain(18), 7);
  for (const Form form : {Form::kPair, Form::kPivoted}) {
    const WeightPtr weight = factored_weight(factors, form, keep);
    REQUIRE(relative_difference(weight->dense(), product(factors)) < 1e-6);
    REQUIRE(relative_difference(weight->apply(x), at::matmul(x, weight->dense().t())) < 1e-5);
    REQUIRE(weight->parameters() == factored_size(form, 26, 18, 7));
    REQUIRE(weight->macs_per_token() == factored_size(form, 26, 18, 7));
    const at::Tensor ids = at::tensor({25, 0, 3}, at::kLong);
    REQUIRE(relative_difference(weight->rows(ids), weight->dense().index_select(0, ids)) < 1e-6);
  }
}

TEST_CASE("pivoted factors of less rank than they have columns become fewer", "[lowrank]") {
  const at::Tensor thin = normal_matrix(26, 3, "thin");
  const Factors superfluous{thin.mm(normal_matrix(3, 7, "mix")), normal_matrix(7, 18, "right"), {}};
  const WeightPtr weight = factored_weight(superfluous, Form::kPivoted, keep);
  REQUIRE(relative_difference(weight->dense(), product(superfluous)) < 1e-6);
  REQUIRE(weight->parameters() == factored_size(Form::kPivoted, 26, 18, 3));
  const Factors nothing{at::zeros({26, 7}, at::kDouble), normal_matrix(7, 18, "right"), {}};
  REQUIRE(factored_weight(nothing, Form::kPivoted, keep)->dense().abs().max().item<float>() < 1e-12F);
}

TEST_CASE("updating where the moment sees nothing leaves the factors, and says what they lose", "[lowrank]") {
  const at::Tensor w = normal_matrix(9, 6, "w");
  Factors factors = low_rank(w, InputMetric::plain(6), 3);
  const at::Tensor before = factors.product();
  update_left(factors, w, InputMetric::moment(at::zeros({6, 6}, at::kDouble)));
  REQUIRE(factors.product().equal(before));
  REQUIRE(factors.tail == 0);
  REQUIRE(factors.singular_values.empty());
}

TEST_CASE("few directions of a large matrix are found in a random subspace", "[lowrank]") {
  const at::Tensor w = normal_matrix(1024, 1024, "w");
  const auto metric = InputMetric::diagonal(normal_matrix(1024, 1, "s").squeeze(1).exp());
  const Factors found = low_rank(w, metric, 32);
  REQUIRE(found.left.equal(low_rank(w, metric, 32, Solver::kRandomized).left));
  REQUIRE(found.tail < 1.01 * low_rank(w, metric, 32, Solver::kGram).tail);
  REQUIRE(low_rank(w, metric, 33).left.equal(low_rank(w, metric, 33, Solver::kGram).left));
}

TEST_CASE("rows of the identity among others", "[lowrank]") {
  const at::Tensor rest = normal_matrix(3, 2, "rest");
  const IdentityRowsWeight weight(at::tensor({3, 1}, at::kInt), keep(rest));
  const at::Tensor expected = at::stack(
      {rest[0], at::tensor({0., 1.}, at::kDouble), rest[1], at::tensor({1., 0.}, at::kDouble), rest[2]});
  REQUIRE(weight.dense().equal(expected.to(at::kFloat)));
  lcomp::test::TensorMap saved;
  weight.save(saved, "op");
  REQUIRE(saved.all.size() == 2);
  REQUIRE(weight.bytes() == 2 * 4 + 6 * 8);
  CHECK(error_text([&] {
          IdentityRowsWeight(at::tensor({3, 3}, at::kInt), keep(rest));
        }) == "[IdentityRowsWeight] pivots must be different rows; 3 comes twice");
  CHECK(error_text([&] {
          IdentityRowsWeight(at::tensor({0, 5}, at::kInt), keep(rest));
        }) == "[IdentityRowsWeight] pivots must be rows below 5, or -1; one is 5");
  CHECK(error_text([&] {
          IdentityRowsWeight(at::tensor({3, 1}, at::kInt), lcomp::test::rounding_weight(3, 2));
        }) == "[IdentityRowsWeight] the rest must not round its input; it does");
}

TEST_CASE("low rank: metrics and weights of rows that mean nothing are refused", "[lowrank]") {
  const at::Tensor w = normal_matrix(4, 3, "w");
  CHECK(error_text([&] {
          InputMetric::moment(at::full({3, 3}, NAN, at::kDouble));
        }) == "[InputMetric] the moment must be finite; it is not");
  CHECK(error_text([&] {
          low_rank(w, InputMetric::plain(3), 2, Solver::kExact, at::zeros({4}, at::kDouble));
        }) == "[low_rank] the weights of the rows must be positive; some are not");
}

TEST_CASE("low rank: the same at any number of threads; bad arguments are refused", "[lowrank][threads]") {
  ThreadPool one(1), two(2);
  for (const auto& [w, h] : cases()) {
    const InputMetric metric = InputMetric::moment(h), again = InputMetric::moment(h);
    const Factors a = low_rank(w, metric, 9, Solver::kAuto, {}, &one);
    const Factors b = low_rank(w, again, 9, Solver::kAuto, {}, &two);
    REQUIRE(a.left.equal(b.left));
    REQUIRE(a.right.equal(b.right));
  }
  const at::Tensor w = normal_matrix(6, 8, "w");
  CHECK_THAT(error_text([&] { low_rank(w, InputMetric::plain(7), 2); }), Catch::Contains("must be [out, 7]"));
  CHECK_THAT(error_text([&] { low_rank(w, InputMetric::plain(8), 7); }),
             Catch::Contains("the rank must lie in [1, 6]; it is 7"));
  CHECK_THAT(error_text([&] { low_rank(w, InputMetric::plain(8), 2, Solver::kAuto, at::zeros({6})); }),
             Catch::Contains("must be positive"));
  CHECK(error_text([&] { InputMetric::moment(w); }) ==
        "[InputMetric] the moment must be a square matrix; it is [6, 8]");
}

TEST_CASE("metrics that are not finite, or negative, are refused", "[lowrank]") {
  at::Tensor scale = at::ones({4}, at::kDouble);
  scale[2] = std::numeric_limits<double>::quiet_NaN();
  CHECK(error_text([&] { InputMetric::diagonal(scale); }) ==
        "[InputMetric] the scale must be finite; it is not");
  CHECK(error_text([&] { InputMetric::diagonal(-at::ones({4})); }) ==
        "[InputMetric] the scale must be [in] and not negative");
}
