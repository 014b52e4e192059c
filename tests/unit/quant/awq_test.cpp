#include "lcomp/quant/awq.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/quant/rtn.h"
#include "reference/awq_reference.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::quant;
using test::relative_difference;

namespace {

QuantScheme awq_scheme(int64_t bits, int64_t group) {
  QuantScheme scheme{.bits = bits, .symmetric = false, .group_size = group};
  scheme.asymmetric_convention = AsymmetricConvention::kRaw;
  return scheme;
}

/// Inputs with correlated channels of very different size.
at::Tensor inputs(int64_t tokens, int64_t in) {
  const at::Tensor mix = at::eye(in, at::kDouble) + 0.5 * test::normal_matrix(in, in, "mix") / std::sqrt(in);
  at::Tensor x = at::matmul(test::normal_matrix(tokens, in, "tokens"), mix);
  x.select(1, 2).mul_(20);
  x.select(1, 5).mul_(8);
  x.select(1, 7).mul_(0.05);
  return x;
}

struct Problem {
  std::vector<at::Tensor> weights = {test::normal_matrix(24, 32, "a"), test::normal_matrix(8, 32, "b")};
  std::vector<QuantScheme> schemes = {awq_scheme(3, 16), awq_scheme(3, 16)};
  at::Tensor x = inputs(90, 32);
  at::Tensor mean = x.abs().mean(0);
  at::Tensor moment = at::matmul(x.t(), x);

  AwqScale search(const AwqOptions& options = {}, const at::Tensor& sources = {},
                  ThreadPool* pool = nullptr) const {
    return awq_scale(weights, schemes, mean, moment, options, sources, pool);
  }
};

}  // namespace

TEST_CASE("the search's losses are the output errors of the inputs that the statistics came from",
          "[quant][awq]") {
  const Problem problem;
  const AwqScale found = problem.search({.channel_floor = 0});
  std::vector<test::MatrixXd> weights;
  for (const at::Tensor& w : problem.weights) weights.push_back(test::to_eigen(w));
  const auto x = test::to_eigen(problem.x);
  size_t best = 0;
  std::vector<double> expected;
  for (size_t i = 0; i < 20; ++i) {
    const auto s = test::awq_candidate(x, static_cast<double>(i) / 20);
    expected.push_back(test::scaled_output_error(weights, x, s, 3, 16));
    CHECK(found.losses[i] == Approx(expected[i]).epsilon(1e-9));
    if (expected[i] < expected[best]) best = i;
  }
  REQUIRE(best > 0);
  CHECK(found.index == static_cast<int64_t>(best));
  CHECK(found.ratio == Approx(static_cast<double>(best) / 20));
  CHECK(found.loss == Approx(expected[best]).epsilon(1e-9));
  CHECK(found.rtn_loss == Approx(expected[0]).epsilon(1e-9));
  CHECK(found.scale.max().item<double>() * found.scale.min().item<double>() == Approx(1));
}

TEST_CASE("AWQ gives the recorded losses, scales and clipping limits", "[quant][awq][golden]") {
  const auto path = test::shared_data("golden/methods/awq.safetensors");
  const auto problem_path = test::shared_data("golden/methods/problem.safetensors");
  if (!path || !problem_path) {
    WARN("skipped: no golden/methods/awq.safetensors");
    return;
  }
  const io::SafetensorsFile file(*path), problem(*problem_path);
  const at::Tensor w = problem.read("w"), x = problem.read("x"), moment = at::matmul(x.t(), x);
  const double outputs = static_cast<double>(x.size(0) * w.size(0));
  for (const int64_t bits : {3, 4}) {
    const QuantScheme scheme = awq_scheme(bits, 16);
    for (const AwqFormula formula : {AwqFormula::kActivation, AwqFormula::kActivationWeight}) {
      const std::string key =
          fmt::format("{}.b{}.", formula == AwqFormula::kActivation ? "llm-awq" : "autoawq", bits);
      CAPTURE(key);
      AwqOptions options{.scale_formula = formula, .channel_floor = 0};
      const AwqScale found = awq_scale({w}, {scheme}, x.abs().mean(0), moment, options);
      const at::Tensor losses = file.read(key + "losses");
      for (int64_t i = 0; i < 20; ++i)
        CHECK(found.losses[static_cast<size_t>(i)] / outputs ==
              Approx(losses[i].item<double>()).epsilon(1e-9));
      const auto best = losses.argmin().item<int64_t>();
      REQUIRE(best == file.read(key + "best_index").item<int64_t>());
      const at::Tensor scale = file.read(key + "scale");
      if (found.loss < found.rtn_loss) {
        CHECK(found.index == best);
        CHECK(relative_difference(found.scale, scale) < 1e-9);
      }
      const at::Tensor scaled_moment = moment / at::outer(scale, scale);
      const AwqClip clip = awq_clip(w * scale, scaled_moment, scheme);
      CHECK(relative_difference(clip.limit, file.read(key + "clip_max")) < 1e-9);
      const at::Tensor error = clip.error / static_cast<double>(x.size(0));
      CHECK(relative_difference(error, file.read(key + "clip_error")) < 1e-9);
    }
  }
}

TEST_CASE("the worked examples of the scale formula", "[quant][awq]") {
  // One ratio beside r = 0; a weight on which every candidate is the same would hide the scale, so read it
  // off.
  const at::Tensor mean = at::tensor({4.0, 1.0, 0.25, 1e-6}, at::kDouble);
  const at::Tensor w = test::normal_matrix(64, 4, "w");
  const at::Tensor moment = at::diag(at::tensor({1e3, 1.0, 1e-3, 1e-9}, at::kDouble));
  const AwqScale found = awq_scale({w}, {awq_scheme(2, 4)}, mean, moment, {.ratios = 2, .channel_floor = 0});
  REQUIRE(found.index == 1);
  const at::Tensor expected = at::tensor({44.7214, 22.3607, 11.1803, 0.022361}, at::kDouble);
  CHECK(at::allclose(found.scale, expected, 1e-4, 0));
  // With the floor the dead channel is not sent far away from the others.
  const AwqScale floored =
      awq_scale({w}, {awq_scheme(2, 4)}, mean, moment, {.ratios = 2, .channel_floor = 0.1});
  CHECK((floored.scale.max() / floored.scale.min()).item<double>() ==
        Approx(std::sqrt(4 / 0.1312500025)).epsilon(1e-6));
}

TEST_CASE("the chosen scale never loses against rounding, and s = 1 stays where nothing is better",
          "[quant][awq]") {
  Problem problem;
  for (const AwqFormula formula : {AwqFormula::kActivation, AwqFormula::kActivationWeight}) {
    const AwqScale found = problem.search({.scale_formula = formula});
    CHECK(found.loss <= found.rtn_loss);
    CHECK((found.scale > 0).all().item<bool>());
    double rtn_loss = 0;
    for (size_t i = 0; i < 2; ++i) {
      const at::Tensor off = problem.weights[i] - rtn(problem.weights[i], problem.schemes[i]).dense();
      rtn_loss += activation_energy(off, problem.moment);
    }
    CHECK(found.rtn_loss == Approx(rtn_loss).epsilon(1e-6));
  }
  // A matrix on the grid is kept as it is by s = 1 only.
  QuantScheme scheme{.bits = 4, .group_size = 16};
  const at::Tensor on_grid = rtn(problem.weights[0], scheme).dense().to(at::kDouble);
  const AwqScale found = awq_scale({on_grid}, {scheme}, problem.mean, problem.moment,
                                   {.scale_formula = AwqFormula::kActivationWeight});
  CHECK(found.index == -1);
  CHECK(found.ratio == 0);
  CHECK(found.scale.equal(at::ones({32}, at::kDouble)));
}

TEST_CASE("channels of one source get one scale", "[quant][awq]") {
  const Problem problem;
  const at::Tensor sources = at::arange(16, at::kLong).repeat({2});
  for (const AwqFormula formula : {AwqFormula::kActivation, AwqFormula::kActivationWeight}) {
    const AwqScale found = problem.search({.scale_formula = formula}, sources);
    REQUIRE(found.loss < found.rtn_loss);
    CHECK(found.scale.slice(0, 0, 16).equal(found.scale.slice(0, 16)));
  }
}

TEST_CASE("scaled inputs and unscaled weights describe one operator: the errors agree", "[quant][awq]") {
  // W' = Q(W S) on inputs x / s: tr((W S - W') H' (W S - W')^T) is the loss that was reported.
  const Problem problem;
  const AwqScale found = problem.search();
  const at::Tensor moment = problem.moment / at::outer(found.scale, found.scale);
  double loss = 0;
  for (size_t i = 0; i < 2; ++i) {
    const at::Tensor scaled = problem.weights[i] * found.scale;
    loss += activation_energy(scaled - rtn(scaled, problem.schemes[i]).dense(), moment);
  }
  CHECK(loss == Approx(found.loss).epsilon(1e-5));
}

TEST_CASE("the search is the same at any number of threads, and in float32 nearly so", "[quant][awq]") {
  Problem problem;
  problem.weights = {test::normal_matrix(200, 32, "a"), test::normal_matrix(150, 32, "b")};
  ThreadPool one(1), three(3);
  const AwqScale a = problem.search({}, {}, &one), b = problem.search({}, {}, &three);
  CHECK(a.losses == b.losses);
  CHECK(a.scale.equal(b.scale));
  const AwqClip c = awq_clip(problem.weights[0], problem.moment, problem.schemes[0], &one);
  const AwqClip d = awq_clip(problem.weights[0], problem.moment, problem.schemes[0], &three);
  CHECK(c.limit.equal(d.limit));
  problem.moment = problem.moment.to(at::kFloat);
  CHECK(problem.search().loss == Approx(a.loss).epsilon(1e-4));
}

TEST_CASE("rounding per tensor, channel and symmetric can be searched too", "[quant][awq]") {
  Problem problem;
  for (const Granularity granularity : {Granularity::kTensor, Granularity::kChannel, Granularity::kGroup}) {
    QuantScheme scheme{.bits = 4, .granularity = granularity, .group_size = 8};
    problem.schemes = {scheme, scheme};
    const AwqScale found = problem.search();
    double rtn_loss = 0;
    for (size_t i = 0; i < 2; ++i)
      rtn_loss +=
          activation_energy(problem.weights[i] - rtn(problem.weights[i], scheme).dense(), problem.moment);
    CHECK(found.rtn_loss == Approx(rtn_loss).epsilon(1e-6));
    CHECK(found.loss < found.rtn_loss);
  }
}

TEST_CASE("clipping never makes a group worse, and cuts only extremes", "[quant][awq]") {
  const Problem problem;
  const AwqClip clip = awq_clip(problem.weights[0], problem.moment, problem.schemes[0]);
  const at::Tensor largest = problem.weights[0].reshape({24, 2, 16}).abs().amax(2);
  CHECK((clip.limit <= largest).all().item<bool>());
  CHECK((clip.limit >= 0.549 * largest).all().item<bool>());
  CHECK((clip.limit < largest).any().item<bool>());
  for (int64_t g = 0; g < 2; ++g) {
    const at::Tensor part = problem.weights[0].slice(1, g * 16, g * 16 + 16).contiguous();
    const at::Tensor off = part - rtn(part, problem.schemes[0]).dense();
    const at::Tensor moment = problem.moment.slice(0, g * 16, g * 16 + 16).slice(1, g * 16, g * 16 + 16);
    const at::Tensor unclipped = (at::matmul(off, moment) * off).sum(1);
    CHECK((clip.error.select(1, g) <= unclipped * (1 + 1e-6)).all().item<bool>());
  }
}

TEST_CASE("AWQ refuses what does not fit", "[quant][awq]") {
  Problem problem;
  const auto error = [&] { return test::error_text([&] { problem.search(); }); };
  problem.schemes.pop_back();
  CHECK(error() ==
        "[awq] there must be one scheme for each of at least one weight; received 2 weights and 1 schemes");
  problem = {};
  problem.mean = at::ones({31}, at::kDouble);
  CHECK(error() == "[awq] abs_mean must have one value for each of the 32 input columns; received 31");
  problem = {};
  problem.moment = at::ones({31, 32}, at::kDouble);
  CHECK(error() == "[awq] the second moment must be [32, 32] of float32 or float64; received 992 values");
  problem = {};
  problem.moment[0][0] = std::numeric_limits<double>::quiet_NaN();
  CHECK(error() == "[awq] the loss of rounding must be finite; it is nan");
  problem = {};
  problem.weights[1][3][4] = std::numeric_limits<double>::infinity();
  CHECK(error() == "[awq] the weight must be finite; received inf at [3, 4]");
  problem = {};
  CHECK(test::error_text([&] { problem.search({}, at::ones({3}, at::kLong)); }) ==
        "[awq] sources must be int64 [32]; received 3 values");
  CHECK(test::error_text([&] { problem.search({.ratios = 0}); }) ==
        "[awq] ratios must be in [1, 1000]; received 0");
  QuantScheme tensor{.granularity = Granularity::kTensor};
  CHECK(test::error_text([&] { awq_clip(problem.weights[0], problem.moment, tensor); }) ==
        "[awq_clip] the scheme must have scales per channel or group; it has one per tensor");
}

TEST_CASE("searches per tensor read other number formats as what they are", "[quant][awq]") {
  const at::Tensor weight = test::normal_matrix(16, 32, "weight"), h = test::correlated_moment(32, 100);
  const at::Tensor mean = h.diagonal().sqrt();
  for (const NumberFormat format : {NumberFormat::kNf4, NumberFormat::kFp8E4m3}) {
    CAPTURE(lcomp::name_of(format));
    const QuantScheme scheme{.format = format, .granularity = Granularity::kTensor};
    for (const auto type : {at::kDouble, at::kBFloat16}) {
      const at::Tensor w = weight.to(type);
      const AwqScale found = awq_scale({w}, {scheme}, mean, h);
      const at::Tensor off = w.to(at::kDouble) - rtn(w, scheme).dense();
      const double direct = (at::matmul(off, h) * off).sum().item<double>();
      REQUIRE(found.rtn_loss == Approx(direct).epsilon(1e-4));
      REQUIRE(found.loss <= found.rtn_loss);
    }
  }
}
