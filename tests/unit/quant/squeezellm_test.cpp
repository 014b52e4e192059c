#include "lcomp/quant/squeezellm.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/quant/kmeans1d.h"
#include "lcomp/quant/rtn.h"
#include "support/error_text.h"
#include "support/matrices.h"
#include "support/test_data.h"

using namespace lcomp;
using quant::CodebookSolver;
using quant::CodebookWeighting;
using quant::ScaleDtype;
using quant::SqueezeLlmOptions;

namespace {

/// Entries that are far away from all others.
constexpr std::pair<int64_t, int64_t> kFar[] = {{1, 3}, {5, 7}, {9, 60}};

at::Tensor some_weight(int64_t out = 12, int64_t in = 96) {
  at::Tensor w = 0.05 * test::normal_matrix(out, in, "w");
  for (const auto& [row, column] : kFar) {
    if (row < out) w[row][column] = 0.8;
  }
  return w.to(at::kFloat);
}
at::Tensor some_fisher(int64_t out = 12, int64_t in = 96) {
  return (2 * test::normal_matrix(out, in, "f")).exp().to(at::kFloat);
}

double weighted_error(const at::Tensor& w, const at::Tensor& decoded, const at::Tensor& f) {
  const at::Tensor off = w.to(at::kDouble) - decoded.to(at::kDouble);
  return (off * off * f.to(at::kDouble)).sum().item<double>();
}

const SqueezeLlmOptions kExact32{.bits = 3, .codebook_dtype = ScaleDtype::kFloat32};

}  // namespace

TEST_CASE("the golden code books are met: centers, codes, costs", "[quant][squeezellm][golden]") {
  const auto path = test::shared_data("golden/methods/squeezellm.safetensors");
  if (!path) {
    WARN("skipped: golden/methods/squeezellm.safetensors is not in LCOMP_TEST_DATA");
    return;
  }
  const io::SafetensorsFile file(*path);
  const at::Tensor w = file.read("w").contiguous(), f = file.read("fisher").contiguous();
  const at::Tensor ones = at::ones_like(f);
  const auto row_of = [](const at::Tensor& t, int64_t r) {
    return std::span<const double>(t.data_ptr<double>() + r * t.size(1), static_cast<size_t>(t.size(1)));
  };
  for (const int64_t bits : {2, 3}) {
    const std::string key = "b" + std::to_string(bits);
    for (const std::string kind : {".", ".unweighted_"}) {
      const at::Tensor centers = file.read(key + kind + "centroids").contiguous();
      const at::Tensor cost = file.read(key + kind + "cost");
      const at::Tensor& weights = kind == "." ? f : ones;
      for (int64_t r = 0; r < w.size(0); ++r) {
        const auto found = quant::kmeans_exact(row_of(w, r), row_of(weights, r), int64_t{1} << bits);
        REQUIRE(found.cost == Approx(cost[r].item<double>()).epsilon(1e-9));
        for (size_t c = 0; c < found.centers.size(); ++c)
          REQUIRE(found.centers[c] == Approx(row_of(centers, r)[c]).epsilon(1e-9));
      }
    }
    // The whole method, in the precision that it stores.
    const auto result = quant::squeezellm(w, f, {.bits = bits, .codebook_dtype = ScaleDtype::kFloat32});
    REQUIRE(result.weight.codes().to(at::kInt).equal(file.read(key + ".assign")));
    REQUIRE(result.loss == Approx(file.read(key + ".cost").sum().item<double>()).epsilon(1e-5));
  }
}

TEST_CASE("the golden outliers are found, and kept entries come back as they were",
          "[quant][squeezellm][golden]") {
  const auto path = test::shared_data("golden/methods/squeezellm.safetensors");
  const auto problem = test::shared_data("golden/methods/problem.safetensors");
  if (!path || !problem) {
    WARN("skipped: golden/methods is not in LCOMP_TEST_DATA");
    return;
  }
  const io::SafetensorsFile file(*path);
  const at::Tensor w = io::SafetensorsFile(*problem).read("w");
  REQUIRE(quant::outlier_threshold(w, 1.8) ==
          Approx(file.read("outlier.threshold").item<double>()).epsilon(1e-6));
  SqueezeLlmOptions options{.outlier_range = 1.8};
  REQUIRE(quant::kept_entries(w, {}, options).equal(file.read("outlier.mask")));
}

TEST_CASE("the loss that is reported is that of the stored matrix", "[quant][squeezellm]") {
  const at::Tensor w = some_weight(), f = some_fisher();
  for (const ScaleDtype type : {ScaleDtype::kFloat16, ScaleDtype::kBFloat16, ScaleDtype::kFloat32}) {
    for (const CodebookSolver solver : {CodebookSolver::kExact, CodebookSolver::kLloyd}) {
      SqueezeLlmOptions options{.bits = 3, .solver = solver, .codebook_dtype = type};
      const auto result = quant::squeezellm(w, f, options);
      REQUIRE(result.loss == Approx(weighted_error(w, result.weight.dense(), f)).epsilon(1e-9));
      REQUIRE(result.loss <= result.grid_loss);
      // No other code of its row would do better by any entry.
      const at::Tensor all = (w.unsqueeze(2) - result.weight.codebook().to(at::kFloat).unsqueeze(1)).abs();
      const at::Tensor used = (w - result.weight.dense()).abs();
      REQUIRE((used <= std::get<0>(all.min(2))).all().item<bool>());
    }
  }
}

TEST_CASE("the exact solver is at least as good as Lloyd's, as round to nearest and as plain k-means",
          "[quant][squeezellm]") {
  const at::Tensor w = some_weight(), f = some_fisher();
  const double exact = quant::squeezellm(w, f, kExact32).loss;
  SqueezeLlmOptions lloyd = kExact32;
  lloyd.solver = CodebookSolver::kLloyd;
  REQUIRE(exact <= quant::squeezellm(w, f, lloyd).loss);
  SqueezeLlmOptions plain = kExact32;
  plain.weighting = CodebookWeighting::kNone;
  const auto unweighted = quant::squeezellm(w, {}, plain);
  REQUIRE(exact < weighted_error(w, unweighted.weight.dense(), f));
  REQUIRE(
      quant::squeezellm(w, at::full_like(w, 3), kExact32).weight.dense().equal(unweighted.weight.dense()));
  for (const bool symmetric : {true, false}) {
    const auto rtn =
        quant::rtn(w, {.bits = 3, .symmetric = symmetric, .granularity = quant::Granularity::kChannel});
    REQUIRE(exact < weighted_error(w, rtn.dense(), f));
  }
}

TEST_CASE("a kept entry is restored to the precision of what is stored, and only the asked share is kept",
          "[quant][squeezellm]") {
  const at::Tensor w = some_weight(), f = some_fisher();
  SqueezeLlmOptions options{.bits = 3, .sensitive = 0.005, .outliers = 0.004};
  const auto result = quant::squeezellm(w, f, options);
  const at::Tensor kept = quant::kept_entries(w, f, options);
  REQUIRE(result.weight.sparse().count() == kept.sum().item<int64_t>());
  REQUIRE(result.weight.sparse().count() <= options.planned_entries(w.numel()));
  REQUIRE(result.weight.sparse().count() >= options.planned_entries(w.numel()) - 2);
  const at::Tensor off = (result.weight.dense() - w).abs().masked_select(kept);
  REQUIRE(off.max().item<double>() < 0.8 / 2048);
  for (const auto& [row, column] : kFar) REQUIRE(kept[row][column].item<bool>());
  // Without them the others are coded better.
  const auto whole = quant::squeezellm(w, f, {.bits = 3});
  const at::Tensor rest = f.masked_fill(kept, 0);
  REQUIRE(weighted_error(w, result.weight.dense(), rest) < weighted_error(w, whole.weight.dense(), rest));
}

TEST_CASE("any number of threads gives the same bits", "[quant][squeezellm][determinism]") {
  const at::Tensor w = some_weight(40, 64), f = some_fisher(40, 64);
  SqueezeLlmOptions options{.bits = 3, .sensitive = 0.002, .outliers = 0.004};
  const at::Tensor one = quant::squeezellm(w, f, options).weight.dense();
  for (const int threads : {2, 5}) {
    ThreadPool pool(threads);
    REQUIRE(quant::squeezellm(w, f, options, &pool).weight.dense().equal(one));
  }
}

TEST_CASE("rows of zeros, of one value, of no sensitivity and of kept entries alone are coded",
          "[quant][squeezellm]") {
  at::Tensor w = some_weight(4, 16), f = some_fisher(4, 16);
  w[0].zero_();
  w[1].fill_(0.25);
  f[2].zero_();
  const auto result = quant::squeezellm(w, f, {.bits = 4, .codebook_dtype = ScaleDtype::kFloat32});
  REQUIRE(result.weight.dense().slice(0, 0, 3).equal(w.slice(0, 0, 3)));  // 16 values for 16 entries
  w[3].fill_(3.0);
  SqueezeLlmOptions options{.bits = 2, .outlier_range = 1.8};
  const auto kept = quant::squeezellm(w, f, options);
  REQUIRE(quant::kept_entries(w, f, options)[3].all().item<bool>());
  REQUIRE(kept.weight.dense()[3].equal(w[3]));
  REQUIRE_FALSE(quant::kept_entries(at::zeros({4, 16}), f, {.outliers = 0.1}).any().item<bool>());
}

TEST_CASE("what cannot be coded is refused", "[quant][squeezellm]") {
  const at::Tensor w = some_weight(), f = some_fisher();
  const auto text = [](const at::Tensor& weight, const at::Tensor& fisher, const SqueezeLlmOptions& options) {
    REQUIRE_THROWS_AS(quant::squeezellm(weight, fisher, options), InvalidArgument);
    return test::error_text([&] { quant::squeezellm(weight, fisher, options); });
  };
  REQUIRE(text(w[0], f, {}) ==
          "[squeezellm] the weight must be a matrix [out, in] that is not empty; received shape [96]");
  REQUIRE(text(w, {}, {}) ==
          "[squeezellm] squared gradients must be there for every weight, [12, 96]; received none");
  REQUIRE(text(w, f.slice(1, 0, 5), {}) ==
          "[squeezellm] squared gradients must be there for every weight, [12, 96]; received [12, 5]");
  REQUIRE(text(w, -f, {}) == "[squeezellm] squared gradients must be at least 0; one is not");
  const auto beyond = [&] { quant::squeezellm(w, at::full_like(w, 1e308, at::kDouble), {}); };
  REQUIRE_THROWS_AS(beyond(), NumericalError);
  REQUIRE(test::error_text(beyond) == "[squeezellm] squared gradients must be finite in float32; one is not");
  REQUIRE_THAT(text(w, f, {.bits = 9}), Catch::Contains("bits must be in [2, 8]; received 9"));
  REQUIRE_THAT(text(at::full({2, 8}, NAN), f, {}), Catch::StartsWith("[squeezellm] "));
  const auto infinite = [&] { quant::squeezellm(at::full({2, 8}, 1e6), at::ones({2, 8}), {}); };
  REQUIRE_THROWS_AS(infinite(), NumericalError);
  REQUIRE(
      test::error_text(infinite) ==
      "[squeezellm] a row must have a code book of finite loss in float16, in which it is stored; none has");
  const auto overflow = [&] { quant::squeezellm(w * 1e6, f, {}); };
  REQUIRE_THROWS_AS(overflow(), NumericalError);
  REQUIRE_THAT(
      test::error_text(overflow),
      Catch::StartsWith("[squeezellm] values of the code books must fit float16; the largest weight is "));
}
