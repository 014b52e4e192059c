#include "lcomp/quant/smooth.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <tuple>

#include "lcomp/core/error.h"
#include "lcomp/quant/activations.h"
#include "lcomp/quant/grid.h"
#include "quant/scaled_rounding.h"

namespace lcomp::quant {
namespace {

constexpr const char* kSmoothScale = "smooth_scale";
/// Constants of the published code, and the grid of the search.
constexpr double kLeast = 1e-5;
constexpr double kFirstAlpha = 0.3, kAlphaStep = 0.05;
constexpr int64_t kAlphas = 14;

/// Largest value among the channels that share a scale, at each of them.
at::Tensor shared_max(const at::Tensor& values, const at::Tensor& sources) {
  if (!sources.defined()) return values;
  std::vector<double> largest(static_cast<size_t>(sources.max().item<int64_t>()) + 1, 0.0);
  const double* value = values.data_ptr<double>();
  const int64_t* source = sources.data_ptr<int64_t>();
  for (int64_t j = 0; j < values.numel(); ++j) {
    double& of_source = largest[static_cast<size_t>(source[j])];
    of_source = std::max(of_source, value[j]);
  }
  at::Tensor out = at::empty_like(values);
  for (int64_t j = 0; j < values.numel(); ++j)
    out.data_ptr<double>()[j] = largest[static_cast<size_t>(source[j])];
  return out;
}

void check_inputs(const std::vector<at::Tensor>& weights, const at::Tensor& abs_max,
                  const at::Tensor& sources) {
  if (weights.empty())
    throw InvalidArgument(kSmoothScale, "there must be at least one weight; received none");
  for (const at::Tensor& weight : weights) {
    if (weight.dim() != 2 || abs_max.dim() != 1 || weight.size(1) != abs_max.size(0)) {
      throw InvalidArgument(kSmoothScale,
                            fmt::format("abs_max must have one value for each input column of every weight; "
                                        "received {} values",
                                        abs_max.numel()));
    }
    check_finite(weight, kSmoothScale);
  }
  if (sources.defined() && (sources.sizes() != abs_max.sizes() || sources.scalar_type() != at::kLong)) {
    throw InvalidArgument(kSmoothScale, fmt::format("sources must be int64 [{}]; received {} values",
                                                    abs_max.numel(), sources.numel()));
  }
}

/// Inputs and weights of one group, and what rounding both does to the outputs.
class OutputError {
 public:
  OutputError(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
              const ActivationScheme& activations, const at::Tensor& abs_max, const at::Tensor& samples,
              ThreadPool* pool)
      : schemes_(schemes),
        activations_(activations),
        abs_max_(abs_max),
        samples_(samples.to(at::kFloat)),
        pool_(pool) {
    for (size_t i = 0; i < weights.size(); ++i) {
      schemes_[i] = with_scales_of(schemes[i], weights[i].scalar_type());
      weights_.push_back(weights[i].to(at::kDouble).contiguous());
    }
  }

  /// `scale` undefined: 1.
  double operator()(const at::Tensor& scale) const {
    const at::Tensor rounded = rounded_inputs(scale);
    double sum = 0;
    for (size_t i = 0; i < weights_.size(); ++i) sum += of_operator(i, scale, rounded);
    return sum;
  }

 private:
  at::Tensor rounded_inputs(const at::Tensor& scale) const {
    const at::Tensor x =
        scale.defined() ? (samples_ / scale).to(at::kFloat).contiguous() : samples_.contiguous();
    if (activations_.granularity == ActivationGranularity::kToken)
      return dequantize_activations(quantize_activations(x, activations_));
    // One range for all tokens, of which the samples are only some.
    ActivationScheme whole = activations_;
    whole.dynamic = false;
    auto low = x.min().item<float>(), high = x.max().item<float>();
    if (!activations_.dynamic && activations_.percentile < 1) {
      std::tie(low, high) = covered_by_samples(x);
    } else if (activations_.symmetric) {
      const at::Tensor reach = scale.defined() ? abs_max_ / scale : abs_max_;
      high = std::max(high, reach.max().to(at::kFloat).item<float>());
    }
    return dequantize_activations(quantize_activations(x, whole, activation_grid(low, high, whole)));
  }

  /// The static range with a percentile, which only the samples can tell after scaling.
  std::pair<float, float> covered_by_samples(const at::Tensor& x) const {
    if (activations_.percentile_of == PercentileOf::kTokens)
      return covered_range({x.amin(1).contiguous(), x.amax(1).contiguous(), {}}, activations_);
    const at::Tensor values = std::get<0>(x.flatten().sort());
    const int64_t count = values.numel();
    const auto last = std::max<int64_t>(
        0, static_cast<int64_t>(std::ceil(activations_.percentile * static_cast<double>(count))) - 1);
    return {values[count - 1 - last].item<float>(), values[last].item<float>()};
  }

  double of_operator(size_t i, const at::Tensor& scale, const at::Tensor& rounded) const {
    const ScaledRounding rounding(weights_[i], scale, schemes_[i]);
    const int64_t out = weights_[i].size(0), pieces = (out + kSearchRows - 1) / kSearchRows;
    std::vector<double> errors(static_cast<size_t>(pieces));
    parallel_for(pool_, pieces, [&](int64_t piece, int) {
      const int64_t first = piece * kSearchRows, last = std::min(out, first + kSearchRows);
      at::Tensor decoded = rounding.rows(first, last);  // Q(W S) S^-1
      if (scale.defined()) decoded = decoded * scale;
      const at::Tensor off = at::matmul(samples_, weights_[i].slice(0, first, last).to(at::kFloat).t()) -
                             at::matmul(rounded, decoded.to(at::kFloat).t());
      errors[static_cast<size_t>(piece)] = off.square().sum(at::kDouble).item<double>();
    });
    return std::accumulate(errors.begin(), errors.end(), 0.0);
  }

  std::vector<at::Tensor> weights_;  // float64
  std::vector<QuantScheme> schemes_;
  ActivationScheme activations_;
  at::Tensor abs_max_;
  at::Tensor samples_;
  ThreadPool* pool_;
};

}  // namespace

void SmoothOptions::visit(FieldVisitor& v) {
  v.field("alpha", alpha, {0, 1},
          "share of an input channel's range that moves into the weights, as an exponent");
  v.field("search_alpha", search_alpha,
          "choose alpha for each group from 0.3, 0.35, ... 0.95 and no scale, by the error of its outputs");
}

at::Tensor smooth_scale(const std::vector<at::Tensor>& weights, const at::Tensor& abs_max, double alpha,
                        const at::Tensor& sources) {
  check_inputs(weights, abs_max, sources);
  if (!(alpha >= 0 && alpha <= 1))
    throw InvalidArgument(kSmoothScale, fmt::format("alpha must be in [0, 1]; received {}", alpha));
  at::Tensor weight_max = at::zeros_like(abs_max, at::kDouble);
  for (const at::Tensor& weight : weights)
    weight_max = at::maximum(weight_max, weight.to(at::kDouble).abs().amax(0));
  const at::Tensor a = shared_max(abs_max.to(at::kDouble).contiguous(), sources);
  const at::Tensor w = shared_max(weight_max.contiguous(), sources).clamp_min(kLeast);
  const at::Tensor s = (a.pow(alpha) / w.pow(1 - alpha)).clamp_min(kLeast);
  return at::where(a > 0, s, at::ones_like(s));
}

SmoothSearch smooth_search(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
                           const ActivationScheme& activations, const at::Tensor& abs_max,
                           const at::Tensor& samples, const at::Tensor& sources, ThreadPool* pool) {
  for (const QuantScheme& scheme : schemes) {
    if (scheme.range == RangeRule::kHessian)
      throw InvalidArgument("smooth_search",
                            "range must be min_max or mse, since no second moment is given; it is hessian");
  }
  check_inputs(weights, abs_max, sources);
  if (schemes.size() != weights.size() || samples.dim() != 2 || samples.size(1) != abs_max.size(0)) {
    throw InvalidArgument(
        "smooth_search",
        fmt::format("there must be a scheme for each weight and samples [tokens, {}]; received {} "
                    "schemes and {} values",
                    abs_max.numel(), schemes.size(), samples.numel()));
  }
  activations.validate("smooth_search");
  const OutputError error(weights, schemes, activations, abs_max, samples, pool);
  SmoothSearch best;
  best.scale = at::ones({abs_max.size(0)}, at::kDouble);
  best.loss = best.plain_loss = error({});
  if (!std::isfinite(best.loss))
    throw NumericalError("smooth_search",
                         fmt::format("the loss of rounding must be finite; it is {}", best.loss));
  for (int64_t i = 0; i < kAlphas; ++i) {
    const double alpha = kFirstAlpha + kAlphaStep * static_cast<double>(i);
    const at::Tensor scale = smooth_scale(weights, abs_max, alpha, sources);
    const double loss = error(scale);
    best.losses.push_back(loss);
    if (!(loss < best.loss)) continue;
    best.loss = loss;
    best.scale = scale;
    best.alpha = alpha;
    best.index = i;
  }
  return best;
}

}  // namespace lcomp::quant
