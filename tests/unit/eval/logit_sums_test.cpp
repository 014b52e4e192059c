#include "eval/logit_sums.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

#include "lcomp/core/rng.h"

using namespace lcomp;
using eval::LogitSums;
using eval::ReferenceSums;

namespace {

std::vector<float> random_logits(size_t count, double deviation, const std::string& stream) {
  Rng rng(3, stream);
  std::vector<float> out(count);
  for (float& z : out) z = static_cast<float>(deviation * rng.normal());
  return out;
}

double log_sum_exp(const std::vector<float>& z) {
  const double top = *std::max_element(z.begin(), z.end());
  double sum = 0;
  for (const float x : z) sum += std::exp(x - top);
  return top + std::log(sum);
}

/// KL(softmax(p) || softmax(q)) by its definition.
double divergence(const std::vector<float>& p, const std::vector<float>& q) {
  const double np = log_sum_exp(p);
  const double nq = log_sum_exp(q);
  double sum = 0;
  for (size_t v = 0; v < p.size(); ++v) sum += std::exp(p[v] - np) * ((p[v] - np) - (q[v] - nq));
  return sum;
}

void add_in_tiles(const std::vector<float>& p, const std::vector<float>& q, size_t tile, ReferenceSums& own,
                  LogitSums& model) {
  for (size_t begin = 0; begin < p.size(); begin += tile) {
    const auto count = static_cast<int64_t>(std::min(tile, p.size() - begin));
    eval::add_tile(p.data() + begin, q.data() + begin, static_cast<int64_t>(begin), count, own);
    eval::add_tile(q.data() + begin, static_cast<int64_t>(begin), count, model);
  }
}

}  // namespace

TEST_CASE("sums over tiles of any size give the softmax of the whole row", "[eval][logits]") {
  for (const double deviation : {0.1, 3.0, 30.0}) {
    const auto p = random_logits(1000, deviation, "p");
    const auto q = random_logits(1000, deviation, "q");
    for (const size_t tile : {1, 7, 64, 999, 1000}) {
      CAPTURE(deviation, tile);
      ReferenceSums own;
      LogitSums model;
      add_in_tiles(p, q, tile, own, model);
      REQUIRE(model.log_normalizer() == Approx(log_sum_exp(q)).epsilon(1e-6));
      REQUIRE(own.own.log_normalizer() == Approx(log_sum_exp(p)).epsilon(1e-6));
      REQUIRE(own.divergence(model) == Approx(divergence(p, q)).epsilon(1e-5).margin(1e-7));
      REQUIRE(model.best == std::max_element(q.begin(), q.end()) - q.begin());
      REQUIRE(own.own.best == std::max_element(p.begin(), p.end()) - p.begin());
    }
  }
}

TEST_CASE("the lowest id wins among equal logits, across tiles too", "[eval][logits]") {
  const std::vector<float> z = {0, 2, 1, 2, 2, 0};
  for (const size_t tile : {1, 2, 3, 6}) {
    ReferenceSums own;
    LogitSums model;
    add_in_tiles(z, z, tile, own, model);
    REQUIRE(model.best == 1);
    REQUIRE(own.own.best == 1);
    REQUIRE(own.divergence(model) == Approx(0).margin(1e-7));
  }
}

TEST_CASE("logits far apart neither overflow nor vanish", "[eval][logits]") {
  const std::vector<float> z = {-1e4F, 5e3F, 1e4F, 1e4F - 1};
  ReferenceSums own;
  LogitSums model;
  add_in_tiles(z, z, 1, own, model);
  REQUIRE(model.log_normalizer() == Approx(1e4 + std::log1p(std::exp(-1.0))));
  REQUIRE(std::isfinite(own.divergence(model)));
}
