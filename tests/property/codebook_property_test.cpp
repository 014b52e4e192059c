// What must hold of code books for any weight and any sensitivity. Seeds are in the captured values.
#include <ATen/ATen.h>

#include <catch2/catch.hpp>
#include <cmath>
#include <limits>
#include <map>

#include "lcomp/core/rng.h"
#include "lcomp/quant/squeezellm.h"
#include "support/matrices.h"
#include "support/tensor_map.h"

using namespace lcomp::quant;
using lcomp::test::normal_matrix;

namespace {

struct Problem {
  at::Tensor w, f;
  SqueezeLlmOptions options;
};

Problem random_problem(uint64_t seed) {
  lcomp::Rng rng(seed, "codebook problem");
  const auto out = static_cast<int64_t>(1 + rng.below(12)), in = static_cast<int64_t>(1 + rng.below(90));
  Problem p;
  p.w = (std::exp(2 * rng.normal()) * 0.1 * normal_matrix(out, in, "w", seed)).to(at::kFloat);
  p.f = (3 * normal_matrix(out, in, "f", seed)).exp().to(at::kFloat);
  p.f.masked_fill_(normal_matrix(out, in, "dead", seed) > 1, 0);
  p.options.bits = static_cast<int64_t>(2 + rng.below(4));
  p.options.solver = rng.below(2) == 0 ? CodebookSolver::kExact : CodebookSolver::kLloyd;
  p.options.codebook_dtype = static_cast<ScaleDtype>(1 + rng.below(3));
  if (rng.below(2) == 0) p.options.outliers = 0.02;
  if (rng.below(2) == 0) p.options.sensitive = 0.01;
  return p;
}

}  // namespace

TEST_CASE("sensitivities count by their ratios alone", "[property][codebook]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    const Problem p = random_problem(seed);
    const auto base = squeezellm(p.w, p.f, p.options);
    const auto scaled = squeezellm(p.w, p.f * 0x1p-40, p.options);
    REQUIRE(scaled.weight.dense().equal(base.weight.dense()));
  }
}

TEST_CASE("rows permuted in, rows permuted out; the order of columns does not matter",
          "[property][codebook]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Problem p = random_problem(seed);
    const at::Tensor rows = normal_matrix(p.w.size(0), 1, "rows", seed).squeeze(1).argsort();
    const at::Tensor base = squeezellm(p.w, p.f, p.options).weight.dense();
    const auto moved = squeezellm(p.w.index({rows}), p.f.index({rows}), p.options);
    REQUIRE(moved.weight.dense().equal(base.index({rows})));
    // Sums run in another order then, which may show in the last bit of a center.
    p.options.codebook_dtype = ScaleDtype::kFloat32;
    const at::Tensor columns = normal_matrix(p.w.size(1), 1, "columns", seed).squeeze(1).argsort();
    const at::Tensor plain = squeezellm(p.w, p.f, p.options).weight.dense();
    const auto turned = squeezellm(p.w.index_select(1, columns), p.f.index_select(1, columns), p.options);
    REQUIRE(at::allclose(turned.weight.dense(), plain.index_select(1, columns), 1e-5, 1e-9));
  }
}

TEST_CASE("weights scaled by a power of two give scaled results", "[property][codebook]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Problem p = random_problem(seed);
    p.options.codebook_dtype = ScaleDtype::kBFloat16;  // scaling changes no mantissa
    const at::Tensor base = squeezellm(p.w, p.f, p.options).weight.dense();
    REQUIRE(squeezellm(p.w * 0.125, p.f, p.options).weight.dense().equal(base * 0.125));
  }
}

TEST_CASE("more bits never lose more, and no solver loses more than the even grid", "[property][codebook]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Problem p = random_problem(seed);
    p.options.solver = CodebookSolver::kExact;
    p.options.codebook_dtype = ScaleDtype::kFloat32;
    double before = std::numeric_limits<double>::infinity();
    for (p.options.bits = 2; p.options.bits <= 6; ++p.options.bits) {
      const auto result = squeezellm(p.w, p.f, p.options);
      REQUIRE(result.loss <= before * (1 + 1e-6) + 1e-30);
      REQUIRE(result.loss <= result.grid_loss);
      before = result.loss;
    }
  }
}

TEST_CASE("what is read back decodes to the same bits", "[property][codebook]") {
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    const Problem p = random_problem(seed);
    const CodebookWeight weight = squeezellm(p.w, p.f, p.options).weight;
    lcomp::test::TensorMap sink;
    weight.save(sink, "op");
    auto& t = sink.all;
    const auto back = CodebookWeight::from_stored(
        {t["op.weight_codes"],
         t["op.weight_codebook"],
         t["op.weight_shape"],
         {t["op.weight_sparse_offsets"], t["op.weight_sparse_columns"], t["op.weight_sparse_values"]}},
        p.options.bits, "op");
    REQUIRE(back.dense().equal(weight.dense()));
    REQUIRE(back.bytes() == weight.bytes());
  }
}
