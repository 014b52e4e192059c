#include "lcomp/sparse/sparsegpt.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "reference/obs_reference.h"
#include "support/error_text.h"
#include "support/matrices.h"

using namespace lcomp::sparse;
using lcomp::test::correlated_moment;
using lcomp::test::error_text;
using lcomp::test::normal_matrix;
using lcomp::test::relative_difference;

namespace {

const Sparsity kHalf{.sparsity = 0.5};
const Sparsity kTwoOfFour{.pattern = "2:4"};

std::vector<Sparsity> all_sparsities() {
  return {
      kHalf, {.sparsity = 0.7, .scope = Scope::kTensor}, kTwoOfFour, {.pattern = "1:4"}, {.pattern = "4:8"}};
}

double energy(const at::Tensor& d, const at::Tensor& h) {
  return lcomp::activation_energy(d, h);
}

}  // namespace

TEST_CASE("an N:M pattern comes out as the formulas of one row say", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(5, 40, "weight"), h = correlated_moment(40, 200);
  const double damping = 0.01 * h.diagonal().mean().item<double>();
  const Eigen::MatrixXd a = lcomp::test::to_eigen(h + damping * at::eye(40, at::kDouble));
  for (const auto& [kept, of] : {std::pair{2, 4}, {1, 4}, {4, 8}, {3, 5}}) {
    CAPTURE(kept, of);
    for (const int64_t block : {1, 7, 32, 128}) {
      const auto result = sparsegpt(w, h, {.pattern = std::to_string(kept) + ":" + std::to_string(of)},
                                    {.block_size = block}, nullptr, at::kDouble);
      for (int64_t r = 0; r < 5; ++r) {
        const Eigen::VectorXd row =
            lcomp::reference::sparsegpt_row(lcomp::test::to_eigen(w[r].unsqueeze(1)), a, kept, of);
        for (int64_t j = 0; j < 40; ++j)
          REQUIRE(result.weight[r][j].item<double>() == Approx(row[j]).margin(1e-6));
      }
    }
  }
}

TEST_CASE("the loss of the walk is the damped loss of what came out", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(100, 64, "weight"), h = correlated_moment(64, 300);
  for (const Sparsity& sparsity : all_sparsities()) {
    CAPTURE(sparsity.describe());
    const auto result = sparsegpt(w, h, sparsity, {.block_size = 16}, nullptr, at::kDouble);
    const at::Tensor d = w - result.weight.to(at::kDouble);
    REQUIRE(result.loss == Approx(energy(d, h)).epsilon(1e-5));
    const double damped =
        energy(d, h) + result.damping * h.diagonal().mean().item<double>() * d.square().sum().item<double>();
    REQUIRE(result.damped_loss == Approx(damped).epsilon(1e-5));
    REQUIRE(result.kept.logical_not().sum().item<int64_t>() == sparsity.removed(100, 64));
    REQUIRE(result.weight.ne(0).equal(result.kept));
    REQUIRE(result.loss < result.masked_loss);
  }
}

TEST_CASE("rows and matrices lose exactly their share, also where blocks do not divide it",
          "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(130, 60, "weight"), h = correlated_moment(60, 300);
  for (const double share : {0.0, 0.31, 0.5, 0.77}) {
    for (const int64_t block : {7, 16, 60}) {
      CAPTURE(share, block);
      const auto by_row = sparsegpt(w, h, {.sparsity = share}, {.block_size = block});
      REQUIRE(by_row.kept.logical_not().sum(1).eq(share_of(share, 60)).all().item<bool>());
      const auto whole = sparsegpt(w, h, {.sparsity = share, .scope = Scope::kTensor}, {.block_size = block});
      REQUIRE(whole.kept.logical_not().sum().item<int64_t>() == share_of(share, 130 * 60));
    }
  }
  REQUIRE(sparsegpt(w, h, {.sparsity = 0}, {}, nullptr, at::kDouble).weight.equal(w.to(at::kFloat)));
}

TEST_CASE("a diagonal moment leaves kept weights alone, and the 2:4 mask is Wanda's", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(10, 32, "weight"), diagonal = normal_matrix(1, 32, "h")[0].abs() + 0.1;
  const auto result = sparsegpt(w, at::diag(diagonal), kTwoOfFour, {.damping = 0});
  REQUIRE(result.kept.equal(select_kept(wanda(w, diagonal), kTwoOfFour)));
  REQUIRE(result.weight.equal((w * result.kept).to(at::kFloat)));
}

TEST_CASE("a refit loses no more, and is the least squares of its mask", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(20, 48, "weight"), h = correlated_moment(48, 200);
  for (const Sparsity& sparsity : all_sparsities()) {
    CAPTURE(sparsity.describe());
    const auto walk = sparsegpt(w, h, sparsity, {}, nullptr, at::kDouble);
    const auto fitted = sparsegpt(w, h, sparsity, {.refit = true}, nullptr, at::kDouble);
    REQUIRE(fitted.kept.equal(walk.kept));
    REQUIRE(fitted.damped_loss < walk.damped_loss);
    const double damping = fitted.damping * h.diagonal().mean().item<double>();
    const at::Tensor a = h + damping * at::eye(48, at::kDouble);
    // The slope of the loss by every kept weight is 0.
    const at::Tensor slope = at::matmul(w - fitted.weight.to(at::kDouble), a) * fitted.kept;
    REQUIRE(slope.abs().max().item<double>() < 1e-4 * at::matmul(w, a).abs().max().item<double>());
  }
}

TEST_CASE("in one sweep with a grid weights lie on it, and zeros stay", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(40, 64, "weight"), h = correlated_moment(64, 300);
  using lcomp::quant::Granularity;
  using lcomp::quant::QuantScheme;
  for (const QuantScheme& scheme :
       {QuantScheme{.group_size = 16}, QuantScheme{.symmetric = false, .group_size = 16},
        QuantScheme{.bits = 3, .granularity = Granularity::kChannel},
        QuantScheme{.format = lcomp::quant::NumberFormat::kNf4, .group_size = 16},
        QuantScheme{.granularity = Granularity::kTensor},
        QuantScheme{.group_size = 16, .range = lcomp::quant::RangeRule::kHessian}}) {
    for (const Sparsity& sparsity : all_sparsities()) {
      CAPTURE(scheme.describe(), sparsity.describe());
      const auto result = sparsegpt(w, h, sparsity, {.block_size = 32}, &scheme);
      REQUIRE(result.quantized.has_value());
      REQUIRE(result.quantized->dense().equal(result.weight));
      REQUIRE((result.weight * result.kept.logical_not()).eq(0).all().item<bool>());
      REQUIRE(result.loss == Approx(energy(w - result.weight.to(at::kDouble), h)).epsilon(1e-5));
    }
  }
}

TEST_CASE("threads do not change the result, nor other rows that of an N:M pattern", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(200, 64, "weight"), h = correlated_moment(64, 300);
  lcomp::ThreadPool one(1), three(3);
  const lcomp::quant::QuantScheme scheme{.group_size = 16};
  for (const Sparsity& sparsity : all_sparsities()) {
    CAPTURE(sparsity.describe());
    REQUIRE(sparsegpt(w, h, sparsity, {}, nullptr, at::kBFloat16, &one)
                .weight.equal(sparsegpt(w, h, sparsity, {}, nullptr, at::kBFloat16, &three).weight));
    REQUIRE(sparsegpt(w, h, sparsity, {}, &scheme, at::kFloat, &one)
                .weight.equal(sparsegpt(w, h, sparsity, {}, &scheme, at::kFloat, &three).weight));
  }
  REQUIRE(sparsegpt(w.narrow(0, 90, 20), h, kTwoOfFour)
              .weight.equal(sparsegpt(w, h, kTwoOfFour).weight.narrow(0, 90, 20)));
}

TEST_CASE("data that break the mathematics end in Wanda's mask", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(6, 8, "weight");
  at::Tensor broken = at::full({8, 8}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
  broken.diagonal().fill_(1);
  const auto result = sparsegpt(w, broken, kTwoOfFour);
  REQUIRE(result.fell_back);
  REQUIRE(result.rung == lcomp::linalg::Rung::kFailed);
  REQUIRE(result.kept.sum().item<int64_t>() == 24);
  REQUIRE(error_text([&] {
            sparsegpt(w, broken, kTwoOfFour, {.strict = true});
          }).starts_with("[sparsegpt] the damped second moment must have a Cholesky factor; tried "));
}

TEST_CASE("strict mode refuses a result that loses more than Wanda's", "[sparse][sparsegpt]") {
  bool found = false;
  for (int seed = 0; seed < 400 && !found; ++seed) {
    const std::string name = std::to_string(seed);
    const at::Tensor w = normal_matrix(1, 4, "weight" + name);
    const at::Tensor x = normal_matrix(4, 5, "inputs" + name).to(at::kDouble);
    const at::Tensor h = x.mm(x.t());
    const auto result = sparsegpt(w, h, kTwoOfFour);
    if (!result.fell_back) continue;
    found = true;
    REQUIRE(result.rung == lcomp::linalg::Rung::kPlain);
    REQUIRE(error_text([&] {
              sparsegpt(w, h, kTwoOfFour, {.strict = true});
            }).starts_with("[sparsegpt] strict mode must not lose more than Wanda; "));
  }
  REQUIRE(found);
}

TEST_CASE("what does not fit is refused", "[sparse][sparsegpt]") {
  const at::Tensor w = normal_matrix(6, 8, "weight"), h = at::eye(8, at::kDouble);
  CHECK(error_text([&] {
          const lcomp::quant::QuantScheme nested{.bits = 4, .group_size = 8, .double_quant = true};
          check_sparse_grid(kTwoOfFour, {}, &nested);
        }) == "[sparsegpt] double_quant must be off");
  const auto text = [&](const Sparsity& sparsity, const SparseGptOptions& options = {},
                        const lcomp::quant::QuantScheme* scheme = nullptr) {
    return error_text([&] { sparsegpt(w, h, sparsity, options, scheme); });
  };
  REQUIRE(text({.pattern = "2:3"}) == "[sparsegpt] pattern 2:3 must divide the 8 input columns; 3 does not");
  REQUIRE(text({.pattern = "4:4"}) ==
          "[sparsegpt] pattern must be unstructured, or N:M with 1 <= N < M <= 64; received '4:4'");
  REQUIRE(text({.sparsity = 1.5}) == "[sparsegpt] sparsity must be in [0, 1]; received 1.5");
  const auto ordered = lcomp::quant::gptq_factor(h, {.granularity = lcomp::quant::Granularity::kChannel},
                                                 {.act_order = lcomp::quant::ActOrder::kActivation});
  REQUIRE(error_text([&] { sparsegpt(w, ordered, kHalf); }) ==
          "[sparsegpt] the factor must be in the plain order of columns; it is in another");
  const lcomp::quant::QuantScheme raw{
      .symmetric = false, .group_size = 4, .asymmetric_convention = lcomp::quant::AsymmetricConvention::kRaw};
  REQUIRE(text(kHalf, {}, &raw) ==
          "[sparsegpt] asymmetric_convention must be extended, so that 0 is a point of the grid; it is raw");
  const lcomp::quant::QuantScheme groups{.group_size = 2};
  REQUIRE(text(kTwoOfFour, {}, &groups) ==
          "[sparsegpt] group_size must be a multiple of the 4 columns of pattern 2:4; it is 2");
  REQUIRE(text(kHalf, {.refit = true}, &groups) ==
          "[sparsegpt] refit must be off where the kept weights are quantized");
}
