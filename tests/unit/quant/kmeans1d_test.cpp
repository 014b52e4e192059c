#include "lcomp/quant/kmeans1d.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <functional>
#include <limits>

#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "support/error_text.h"

using namespace lcomp;
using quant::Clustering;

namespace {

struct Points {
  std::vector<double> x, f;
};

Points random_points(size_t count, uint64_t seed) {
  Rng rng(seed, "points");
  Points p;
  for (size_t i = 0; i < count; ++i) {
    p.x.push_back(rng.normal());
    p.f.push_back(std::exp(3 * rng.normal()));
  }
  return p;
}

/// The least cost over every assignment of the points to k clusters, each with its weighted mean.
double brute_force(const Points& p, size_t k) {
  std::vector<size_t> to(p.x.size(), 0);
  double best = std::numeric_limits<double>::infinity();
  const std::function<void(size_t)> assign = [&](size_t i) {
    if (i < to.size()) {
      for (to[i] = 0; to[i] < k; ++to[i]) assign(i + 1);
      return;
    }
    std::vector<double> weight(k, 0), sum(k, 0);
    for (size_t j = 0; j < to.size(); ++j) {
      weight[to[j]] += p.f[j];
      sum[to[j]] += p.f[j] * p.x[j];
    }
    double cost = 0;
    for (size_t j = 0; j < to.size(); ++j)
      cost += p.f[j] == 0 ? 0 : p.f[j] * std::pow(p.x[j] - sum[to[j]] / weight[to[j]], 2);
    best = std::min(best, cost);
  };
  assign(0);
  return best;
}

}  // namespace

TEST_CASE("exact k-means finds what trying every assignment finds", "[quant][kmeans]") {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Points p = random_points(4 + seed % 5, seed);
    for (const int64_t k : {1, 2, 3, 4}) {
      CAPTURE(seed, k);
      const Clustering exact = quant::kmeans_exact(p.x, p.f, k);
      const double expected = brute_force(p, static_cast<size_t>(k));
      REQUIRE(exact.centers.size() == static_cast<size_t>(k));
      REQUIRE(std::is_sorted(exact.centers.begin(), exact.centers.end()));
      REQUIRE(std::abs(exact.cost - expected) <= 1e-9 * (1e-3 + expected));
    }
  }
}

TEST_CASE("exact k-means is never worse than Lloyd's iterations, from whatever start", "[quant][kmeans]") {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const Points p = random_points(300, seed);
    for (const int64_t k : {2, 4, 8, 16}) {
      CAPTURE(seed, k);
      const double exact = quant::kmeans_exact(p.x, p.f, k).cost;
      const auto quantiles = quant::quantile_centers(p.x, p.f, k);
      const double lloyd = quant::kmeans_lloyd(p.x, p.f, quantiles, 50).cost;
      REQUIRE(exact <= lloyd * (1 + 1e-12));
      REQUIRE(lloyd <= quant::clustering_cost(p.x, p.f, quantiles));
    }
  }
}

TEST_CASE("the cost never increases from one of Lloyd's iterations to the next", "[quant][kmeans]") {
  const Points p = random_points(200, 5);
  const std::vector<double> start = {-50, -40, 0.1, 0.2, 60, 70, 80, 90};  // most of them empty
  double before = quant::clustering_cost(p.x, p.f, start);
  for (int64_t iterations = 1; iterations <= 30; ++iterations) {
    const double now = quant::kmeans_lloyd(p.x, p.f, start, iterations).cost;
    REQUIRE(now <= before * (1 + 1e-12));
    before = now;
  }
}

TEST_CASE("points far from zero are clustered as well as near it", "[quant][kmeans]") {
  const Points p = random_points(200, 7);
  Points far = p;
  for (double& x : far.x) x = std::ldexp(x + 1000, -20);
  const double near_cost = quant::kmeans_exact(p.x, p.f, 8).cost;
  const double far_cost = quant::kmeans_exact(far.x, far.f, 8).cost;
  REQUIRE(std::ldexp(far_cost, 40) == Approx(near_cost).epsilon(1e-6));
}

TEST_CASE("weights count by their ratios alone, and equal weights as none", "[quant][kmeans]") {
  const Points p = random_points(100, 3);
  std::vector<double> scaled = p.f;
  for (double& f : scaled) f = std::ldexp(f, -60);
  REQUIRE(quant::kmeans_exact(p.x, p.f, 8).centers == quant::kmeans_exact(p.x, scaled, 8).centers);
  const std::vector<double> ones(100, 1.0), zeros(100, 0.0);
  REQUIRE(quant::kmeans_exact(p.x, ones, 8).centers == quant::kmeans_exact(p.x, zeros, 8).centers);
}

TEST_CASE("points of weight 0 do not count, and few distinct points leave centers equal", "[quant][kmeans]") {
  const std::vector<double> x = {1, 1, 2, 100}, f = {1, 3, 2, 0};
  const Clustering exact = quant::kmeans_exact(x, f, 4);
  REQUIRE(exact.centers == std::vector<double>{1, 2, 2, 2});
  REQUIRE(exact.cost == 0);
  REQUIRE(quant::kmeans_exact(x, f, 1).centers[0] == Approx(4.0 / 3));
  REQUIRE(quant::kmeans_lloyd(x, f, {0, 5, 50}, 20).cost == 0);
}

TEST_CASE("the nearest center is the lower one of two equally near", "[quant][kmeans]") {
  const std::vector<double> centers = {-1, 1, 1, 4};
  REQUIRE(quant::nearest_center(-7, centers) == 0);
  REQUIRE(quant::nearest_center(0, centers) == 0);
  REQUIRE(quant::nearest_center(0.1, centers) == 1);
  REQUIRE(quant::nearest_center(2.5, centers) == 2);
  REQUIRE(quant::nearest_center(9, centers) == 3);
}

TEST_CASE("points and weights that make no sense are refused", "[quant][kmeans]") {
  const std::vector<double> two = {1, 2}, one = {1}, none, negative = {1, -1}, nan = {1, NAN};
  const auto refuse = [](const std::vector<double>& x, const std::vector<double>& f, int64_t k) {
    REQUIRE_THROWS_AS(quant::kmeans_exact(x, f, k), InvalidArgument);
    return test::error_text([&] { quant::kmeans_exact(x, f, k); });
  };
  REQUIRE(refuse(two, two, 0) == "[kmeans_exact] k must be at least 1; received 0");
  REQUIRE(refuse(none, none, 1) ==
          "[kmeans_exact] there must be points and as many weights; received 0 and 0");
  REQUIRE(refuse(two, one, 1) == "[kmeans_exact] there must be points and as many weights; received 2 and 1");
  REQUIRE(refuse(two, negative, 1) ==
          "[kmeans_exact] points must be finite and weights finite and at least 0; number 1 is 2 with the "
          "weight -1");
  REQUIRE_THROWS_AS(quant::kmeans_lloyd(nan, two, {0}, 1), InvalidArgument);
  REQUIRE_THROWS_AS(quant::quantile_centers(two, nan, 1), InvalidArgument);
}
