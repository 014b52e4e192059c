// x W^T from the stored elements, beside the dense product in double.
#include <ATen/ATen.h>

#include <hwy/targets.h>
#include <catch2/catch.hpp>

#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lcomp/sparse/sparsity.h"
#include "sparse/products.h"
#include "support/matrices.h"

using namespace lcomp::sparse;
using lcomp::ThreadPool;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

constexpr SparseFormat kFormats[] = {SparseFormat::kBitmask, SparseFormat::kCsr, SparseFormat::kTwoOfFour,
                                     SparseFormat::kBlockedEll, SparseFormat::kTiledCsl};

bool takes(SparseFormat format, const at::Tensor& matrix) {
  if (format == SparseFormat::kTiledCsl) return matrix.scalar_type() != at::kFloat;
  return format != SparseFormat::kTwoOfFour || is_two_of_four(matrix);
}

/// Random elements where `kept` of them are; every third row is empty, the last one full of what may be.
at::Tensor pruned(int64_t out, int64_t in, const Sparsity& sparsity, at::ScalarType type) {
  at::Tensor w = normal_matrix(out, in, "weight");
  w *= select_kept(magnitude(w), sparsity);
  for (int64_t r = 0; r + 1 < out; r += 3) w[r].zero_();
  return w.to(type);
}

void check_product(const at::Tensor& matrix, SparseFormat format, int64_t tokens) {
  CAPTURE(lcomp::name_of(format), matrix.size(0), matrix.size(1), tokens, matrix.scalar_type());
  const SparseWeight weight(matrix, format);
  const at::Tensor x = normal_matrix(tokens, matrix.size(1), "x").to(at::kFloat);
  const at::Tensor y = weight.apply(x);
  REQUIRE(y.sizes() == at::IntArrayRef({tokens, matrix.size(0)}));
  REQUIRE(relative_difference(y, at::matmul(x.to(at::kDouble), matrix.to(at::kDouble).t())) < 1e-5);
}

/// The instruction sets of this machine that the kernels are compiled for.
std::vector<int64_t> instruction_sets() {
  std::vector<int64_t> sets;
  for (int64_t set : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_SCALAR}) {
    if ((hwy::SupportedTargets() & set) != 0) sets.push_back(set);
  }
  return sets;
}

/// Runs the kernels with one instruction set while this lives.
class OnlyWith {
 public:
  explicit OnlyWith(int64_t set) {
    hwy::SetSupportedTargetsForTest(set);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  ~OnlyWith() {
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
  OnlyWith(const OnlyWith&) = delete;
  OnlyWith& operator=(const OnlyWith&) = delete;
};

}  // namespace

TEST_CASE("products from stored elements are those of the matrix, for any shape, type and number of tokens",
          "[sparse][products]") {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const auto& [out, in] :
         {std::pair<int64_t, int64_t>{1, 4}, {3, 20}, {67, 64}, {129, 132}, {200, 252}}) {
      for (const Sparsity& sparsity : {Sparsity{.sparsity = 0.2}, Sparsity{.sparsity = 0.9},
                                       Sparsity{.sparsity = 1}, Sparsity{.pattern = "2:4"}}) {
        const at::Tensor matrix = pruned(out, in, sparsity, type);
        for (const SparseFormat format : kFormats) {
          if (!takes(format, matrix)) continue;
          for (const int64_t tokens : {1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 64, 65, 73, 129})
            check_product(matrix, format, tokens);
        }
      }
    }
  }
}

TEST_CASE("columns that are no multiple of anything are multiplied, by the formats that take them",
          "[sparse][products]") {
  for (const int64_t in : {1, 7, 63, 65, 131}) {
    const at::Tensor matrix = pruned(70, in, {.sparsity = 0.6}, at::kBFloat16);
    for (const SparseFormat format :
         {SparseFormat::kBitmask, SparseFormat::kCsr, SparseFormat::kBlockedEll, SparseFormat::kTiledCsl}) {
      for (const int64_t tokens : {1, 5, 12, 64}) check_product(matrix, format, tokens);
    }
  }
}

TEST_CASE("every instruction set that the kernels are compiled for gives the product", "[sparse][products]") {
  REQUIRE(instruction_sets().size() >= 2);
  for (const int64_t set : instruction_sets()) {
    CAPTURE(hwy::TargetName(set));
    const OnlyWith only(set);
    for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      for (const Sparsity& sparsity : {Sparsity{.sparsity = 0.8}, Sparsity{.pattern = "2:4"}}) {
        const at::Tensor matrix = pruned(67, 140, sparsity, type);
        for (const SparseFormat format : kFormats) {
          if (!takes(format, matrix)) continue;
          for (const int64_t tokens : {1, 2, 4, 8, 9, 32, 64}) check_product(matrix, format, tokens);
        }
      }
    }
  }
}

TEST_CASE("a product does not depend on the number of threads, nor a token on what else is in memory",
          "[sparse][products][determinism]") {
  const at::Tensor matrix = pruned(333, 260, {.pattern = "2:4"}, at::kBFloat16);
  ThreadPool two(2), three(3);
  for (const SparseFormat format : kFormats) {
    CAPTURE(lcomp::name_of(format));
    const SparseWeight weight(matrix, format);
    for (const int64_t tokens : {1, 8, 40, 130}) {
      const at::Tensor x = normal_matrix(tokens, 260, "x").to(at::kFloat);
      const at::Tensor y = weight.apply(x);
      REQUIRE(weight.apply(x, &two).equal(y));
      REQUIRE(weight.apply(x, &three).equal(y));
      // A NaN behind the input must not reach the result.
      const at::Tensor longer =
          at::full({tokens + 1, 260}, std::numeric_limits<float>::quiet_NaN(), at::kFloat);
      longer.narrow(0, 0, tokens).copy_(x);
      REQUIRE(weight.apply(longer.narrow(0, 0, tokens)).equal(y));
    }
  }
}
