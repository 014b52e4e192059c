#include "lcomp/quant/smooth.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::quant;
using test::relative_difference;

namespace {

/// Inputs with one channel fifty times larger than the others, and one that is dead.
struct Problem {
  std::vector<at::Tensor> weights = {test::normal_matrix(24, 16, "a"), test::normal_matrix(40, 16, "b")};
  std::vector<QuantScheme> schemes =
      std::vector<QuantScheme>(2, {.bits = 8, .granularity = Granularity::kChannel});
  ActivationScheme activations;
  at::Tensor x = test::normal_matrix(64, 16, "x");
  at::Tensor abs_max;

  Problem() {
    x.select(1, 3).mul_(50);
    x.select(1, 7).zero_();
    // The largest value is then a code, not a tie between two that float32 and double break differently.
    for (QuantScheme& scheme : schemes) scheme.symmetric_convention = SymmetricConvention::kRestricted;
    activations.symmetric_convention = SymmetricConvention::kRestricted;
    abs_max = x.abs().amax(0);
  }
  SmoothSearch search(ThreadPool* pool = nullptr) const {
    return smooth_search(weights, schemes, activations, abs_max, x, {}, pool);
  }
};

/// The search's objective as its formula says, in double: rounding by restoring (q - z) s element by element.
at::Tensor round_rows(const at::Tensor& m) {
  const at::Tensor s = m.abs().amax(1, true).clamp_min(1e-5) / 127;
  return at::round(m / s).clamp(-128, 127) * s;
}

double output_error(const Problem& p, const at::Tensor& s) {
  const at::Tensor rounded = round_rows(p.x / s);
  double sum = 0;
  for (const at::Tensor& w : p.weights)
    sum +=
        (at::matmul(p.x, w.t()) - at::matmul(rounded, round_rows(w * s).t())).square().sum().item<double>();
  return sum;
}

}  // namespace

TEST_CASE("SmoothQuant gives the recorded scales", "[quant][smooth][golden]") {
  const auto path = test::shared_data("golden/methods/smoothquant.safetensors");
  const auto problem_path = test::shared_data("golden/methods/problem.safetensors");
  if (!path || !problem_path) {
    WARN("skipped: no golden/methods/smoothquant.safetensors");
    return;
  }
  const io::SafetensorsFile file(*path), problem(*problem_path);
  const at::Tensor w = problem.read("w"), abs_max = file.read("act_max");
  CHECK(abs_max.equal(problem.read("x").abs().amax(0)));
  for (const auto& [alpha, name] :
       {std::pair{0.0, "0.0"}, std::pair{0.5, "0.5"}, std::pair{0.8, "0.8"}, std::pair{1.0, "1.0"}}) {
    const std::string key = fmt::format("alpha{}.", name);
    CAPTURE(key);
    const at::Tensor scale = smooth_scale({w}, abs_max, alpha);
    CHECK(relative_difference(scale, file.read(key + "scale")) < 1e-9);
    CHECK(relative_difference(w * scale, file.read(key + "w")) < 1e-9);
    CHECK(relative_difference(abs_max / scale, file.read(key + "act_max")) < 1e-9);
  }
}

TEST_CASE("alpha divides the range between inputs and weights", "[quant][smooth]") {
  const Problem problem;
  const at::Tensor live = problem.abs_max > 0;
  const auto ranges = [&](double alpha) {
    const at::Tensor s = smooth_scale(problem.weights, problem.abs_max, alpha);
    const at::Tensor w = at::maximum(problem.weights[0].abs().amax(0), problem.weights[1].abs().amax(0)) * s;
    return std::pair{(problem.abs_max / s).masked_select(live), w.masked_select(live)};
  };
  const auto [a_half, w_half] = ranges(0.5);
  CHECK(relative_difference(a_half, w_half) < 1e-12);
  CHECK(relative_difference(ranges(1).first, at::ones_like(a_half)) < 1e-12);
  CHECK(relative_difference(ranges(0).second, at::ones_like(a_half)) < 1e-12);
  // Smoothing what is smooth already changes nothing.
  const at::Tensor s = smooth_scale(problem.weights, problem.abs_max, 0.5);
  const at::Tensor again =
      smooth_scale({problem.weights[0] * s, problem.weights[1] * s}, problem.abs_max / s, 0.5);
  CHECK(relative_difference(again, at::ones_like(again)) < 1e-12);
  CHECK(s[7].item<double>() == 1);  // dead
  // The worked example of the paper's formula.
  const at::Tensor w = at::tensor({0.5, 0.5, 2.0}, at::kDouble).unsqueeze(0);
  CHECK(at::allclose(smooth_scale({w}, at::tensor({8.0, 2.0, 0.5}, at::kDouble), 0.5),
                     at::tensor({4.0, 2.0, 0.5}, at::kDouble)));
}

TEST_CASE("channels of one source share the largest range", "[quant][smooth]") {
  const Problem problem;
  const at::Tensor sources = at::arange(8, at::kLong).repeat({2});
  const at::Tensor s = smooth_scale(problem.weights, problem.abs_max, 0.5, sources);
  CHECK(s.slice(0, 0, 8).equal(s.slice(0, 8)));
  const at::Tensor w = at::maximum(problem.weights[0].abs().amax(0), problem.weights[1].abs().amax(0));
  const auto largest = [](const at::Tensor& v, int64_t j) {
    return std::max(v[j].item<double>(), v[j + 8].item<double>());
  };
  CHECK(s[3].item<double>() == Approx(std::sqrt(largest(problem.abs_max, 3) / largest(w, 3))));
  CHECK(s[7].item<double>() > 0);  // dead in one of the two only
}

TEST_CASE("the search finds the alpha with the least output error", "[quant][smooth]") {
  const Problem problem;
  const SmoothSearch found = problem.search();
  REQUIRE(found.losses.size() == 14);
  CHECK(found.plain_loss == Approx(output_error(problem, at::ones({16}, at::kDouble))).epsilon(1e-2));
  size_t best = 0;
  for (size_t i = 0; i < 14; ++i) {
    const at::Tensor s = smooth_scale(problem.weights, problem.abs_max, 0.3 + 0.05 * static_cast<double>(i));
    CHECK(found.losses[i] == Approx(output_error(problem, s)).epsilon(1e-2));
    if (found.losses[i] < found.losses[best]) best = i;
  }
  CHECK(found.index == static_cast<int64_t>(best));
  CHECK(found.alpha == Approx(0.3 + 0.05 * static_cast<double>(best)));
  CHECK(found.loss < 0.4 * found.plain_loss);  // the planted outlier is gone
}

TEST_CASE("the search knows static and per-tensor ranges, and threads do not change it", "[quant][smooth]") {
  Problem problem;
  ThreadPool one(1), three(3);
  for (const bool dynamic : {true, false}) {
    problem.activations.granularity = ActivationGranularity::kTensor;
    problem.activations.dynamic = dynamic;
    for (const bool symmetric : {true, false}) {
      problem.activations.symmetric = symmetric;
      const SmoothSearch a = problem.search(&one), b = problem.search(&three);
      CHECK(a.losses == b.losses);
      CHECK(a.loss < 0.4 * a.plain_loss);
    }
  }
}

TEST_CASE("SmoothQuant refuses what does not fit", "[quant][smooth]") {
  Problem problem;
  CHECK(test::error_text([&] { smooth_scale({}, problem.abs_max, 0.5); }) ==
        "[smooth_scale] there must be at least one weight; received none");
  CHECK(
      test::error_text([&] { smooth_scale(problem.weights, at::ones({3}), 0.5); }) ==
      "[smooth_scale] abs_max must have one value for each input column of every weight; received 3 values");
  CHECK(test::error_text([&] { smooth_scale(problem.weights, problem.abs_max, 1.5); }) ==
        "[smooth_scale] alpha must be in [0, 1]; received 1.5");
  CHECK(test::error_text([&] {
          smooth_scale(problem.weights, problem.abs_max, 0.5, at::ones({3}, at::kLong));
        }) == "[smooth_scale] sources must be int64 [16]; received 3 values");
  problem.schemes[1].range = RangeRule::kHessian;
  CHECK(test::error_text([&] { problem.search(); }) ==
        "[smooth_search] range must be min_max or mse, since no second moment is given; it is hessian");
  problem.schemes.pop_back();
  CHECK(test::error_text([&] { problem.search(); }) ==
        "[smooth_search] there must be a scheme for each weight and samples [tokens, 16]; received 1 schemes "
        "and "
        "1024 values");
}
