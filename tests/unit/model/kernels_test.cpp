#include "model/kernels.h"

#include <catch2/catch.hpp>
#include <cmath>
#include <vector>

using namespace lcomp::model;

TEST_CASE("activations hold for inputs of any size", "[model][kernels]") {
  const std::vector<float> x = {-3e38F, -1e12F, -1e6F, -1000, -200, -105, -104, -103, -90,  -20,
                                -1,     0,      1,     20,    90,   103,  105,  200,  1e6F, 3e38F};
  const auto count = static_cast<int64_t>(x.size());
  std::vector<float> y(x.size());
  const auto logistic = [](double u) { return 1 / (1 + std::exp(-u)); };
  kernels::activate(Activation::kSilu, x.data(), count, y.data());
  for (size_t i = 0; i < x.size(); ++i) {
    CAPTURE(x[i]);
    const double exact = static_cast<double>(x[i]) * logistic(x[i]);
    CHECK(y[i] == Approx(exact).margin(1e-30));
  }
  for (const Activation activation : {Activation::kGeluTanh, Activation::kGelu}) {
    kernels::activate(activation, x.data(), count, y.data());
    for (size_t i = 0; i < x.size(); ++i) {
      CAPTURE(x[i]);
      if (std::abs(x[i]) >= 20) CHECK(y[i] == Approx(x[i] > 0 ? x[i] : 0).margin(1e-30));
    }
  }
}
