#include "lcomp/quant/awq.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"
#include "lcomp/quant/grid.h"
#include "quant/scaled_rounding.h"

namespace lcomp::quant {
namespace {

/// Least scale of both formulas, and the constants of the clip search.
constexpr double kLeastScale = 1e-4;
constexpr int64_t kClipSteps = 20;
constexpr int64_t kClipTried = 10;

void check_moment(const at::Tensor& second_moment, int64_t in, std::string_view where) {
  const bool fits = second_moment.dim() == 2 && second_moment.size(0) == in && second_moment.size(1) == in;
  const bool type_fits =
      second_moment.scalar_type() == at::kFloat || second_moment.scalar_type() == at::kDouble;
  if (fits && type_fits) return;
  throw InvalidArgument(
      std::string(where),
      fmt::format("the second moment must be [{}, {}] of float32 or float64; received {} values", in, in,
                  second_moment.numel()));
}

/// Mean over the channels that share a scale, at each of them.
at::Tensor shared_mean(const at::Tensor& values, const at::Tensor& sources) {
  if (!sources.defined()) return values;
  const int64_t count = sources.max().item<int64_t>() + 1;
  const at::Tensor sum = at::zeros({count}, at::kDouble).index_add_(0, sources, values);
  const at::Tensor number = at::zeros({count}, at::kDouble).index_add_(0, sources, at::ones_like(values));
  return (sum / number).index_select(0, sources);
}

/// Mean over all rows of |w| / (max |w| of the row's group + 1e-6), per column.
at::Tensor relative_weights(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes) {
  at::Tensor sum = at::zeros({weights[0].size(1)}, at::kDouble);
  int64_t rows = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const int64_t out = weights[i].size(0), groups = schemes[i].groups(weights[i].size(1));
    const at::Tensor grouped = weights[i].abs().reshape({out, groups, -1});
    sum += (grouped / (grouped.amax(2, true) + 1e-6)).reshape({out, -1}).sum(0);
    rows += out;
  }
  return sum / static_cast<double>(rows);
}

void check_awq(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
               const at::Tensor& abs_mean, const at::Tensor& second_moment, const AwqOptions& options,
               const at::Tensor& sources) {
  constexpr const char* kWhere = "awq";
  AwqOptions copy = options;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, kWhere);
  if (weights.empty() || weights.size() != schemes.size()) {
    throw InvalidArgument(kWhere, fmt::format("there must be one scheme for each of at least one weight; "
                                              "received {} weights and {} schemes",
                                              weights.size(), schemes.size()));
  }
  const int64_t in = abs_mean.dim() == 1 ? abs_mean.size(0) : -1;
  for (size_t i = 0; i < weights.size(); ++i) {
    schemes[i].validate(weights[i].sizes(), kWhere);
    if (weights[i].size(1) != in) {
      throw InvalidArgument(kWhere,
                            fmt::format("abs_mean must have one value for each of the {} input columns; "
                                        "received {}",
                                        weights[i].size(1), abs_mean.numel()));
    }
    check_finite(weights[i], kWhere);
  }
  check_moment(second_moment, in, kWhere);
  if (sources.defined() &&
      (sources.dim() != 1 || sources.size(0) != in || sources.scalar_type() != at::kLong)) {
    throw InvalidArgument(kWhere,
                          fmt::format("sources must be int64 [{}]; received {} values", in, sources.numel()));
  }
}

/// One search: what candidates are made of, and what they cost.
class Search {
 public:
  Search(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
         const at::Tensor& abs_mean, const at::Tensor& second_moment, const AwqOptions& options,
         const at::Tensor& sources, ThreadPool* pool)
      : schemes_(schemes), second_moment_(second_moment), options_(options), pool_(pool) {
    for (size_t i = 0; i < weights.size(); ++i) {
      // Scales of the grid keep the type that the given weight asks for.
      schemes_[i] = with_scales_of(schemes[i], weights[i].scalar_type());
      weights_.push_back(weights[i].to(at::kDouble).contiguous());
    }
    activation_ = shared_mean(abs_mean.to(at::kDouble), sources);
    activation_ = activation_.clamp_min(options.channel_floor * activation_.mean().item<double>());
    if (options.scale_formula == AwqFormula::kActivationWeight)
      weight_ = shared_mean(relative_weights(weights_, schemes), sources);
  }

  at::Tensor candidate(double ratio) const {
    at::Tensor s = activation_.pow(ratio);
    if (weight_.defined()) s = s / (weight_.pow(1 - ratio) + kLeastScale);
    s = s.clamp_min(kLeastScale);
    s = s / (s.max() * s.min()).sqrt();
    return at::where(at::isfinite(s), s, at::ones_like(s));
  }

  /// `scale` undefined: s = 1.
  double loss(const at::Tensor& scale) const {
    double sum = 0;
    for (size_t i = 0; i < weights_.size(); ++i)
      sum += rounding_loss(weights_[i], scale, schemes_[i], second_moment_, pool_);
    return sum;
  }

  int64_t in() const { return activation_.size(0); }

 private:
  std::vector<at::Tensor> weights_;  // float64
  std::vector<QuantScheme> schemes_;
  at::Tensor second_moment_;
  AwqOptions options_;
  ThreadPool* pool_;
  at::Tensor activation_;
  at::Tensor weight_;  // undefined for the authors' formula
};

}  // namespace

void AwqOptions::visit(FieldVisitor& v) {
  v.field(
      "scale_formula", scale_formula,
      "scales of input channels from their mean magnitude (activation), or from that of inputs and weights "
      "(activation_weight)");
  v.field("ratios", ratios, {1, 1000}, "exponents i / ratios that the search tries, i = 0 ... ratios - 1");
  v.field("channel_floor", channel_floor, {0, 1},
          "least magnitude of an input channel in the formula, relative to the mean over channels");
}

AwqScale awq_scale(const std::vector<at::Tensor>& weights, const std::vector<QuantScheme>& schemes,
                   const at::Tensor& abs_mean, const at::Tensor& second_moment, const AwqOptions& options,
                   const at::Tensor& sources, ThreadPool* pool) {
  check_awq(weights, schemes, abs_mean, second_moment, options, sources);
  const Search search(weights, schemes, abs_mean, second_moment, options, sources, pool);
  AwqScale best;
  best.scale = at::ones({search.in()}, at::kDouble);
  best.loss = best.rtn_loss = search.loss({});
  if (!std::isfinite(best.loss))
    throw NumericalError("awq", fmt::format("the loss of rounding must be finite; it is {}", best.loss));
  for (int64_t i = 0; i < options.ratios; ++i) {
    const double ratio = static_cast<double>(i) / static_cast<double>(options.ratios);
    const bool is_one = i == 0 && options.scale_formula == AwqFormula::kActivation;
    const at::Tensor scale = is_one ? best.scale : search.candidate(ratio);
    const double loss = is_one ? best.rtn_loss : search.loss(scale);
    best.losses.push_back(loss);
    if (!(loss < best.loss)) continue;
    best.loss = loss;
    best.scale = scale;
    best.ratio = ratio;
    best.index = i;
  }
  return best;
}

AwqClip awq_clip(const at::Tensor& weight, const at::Tensor& second_moment, const QuantScheme& given,
                 ThreadPool* pool) {
  constexpr const char* kWhere = "awq_clip";
  given.validate(weight.sizes(), kWhere);
  if (given.granularity == Granularity::kTensor) {
    throw InvalidArgument(kWhere, "the scheme must have scales per channel or group; it has one per tensor");
  }
  check_moment(second_moment, weight.size(1), kWhere);
  check_finite(weight, kWhere);
  const QuantScheme scheme = with_scales_of(given, weight.scalar_type());
  const at::Tensor original = weight.to(at::kDouble).contiguous();
  const int64_t out = weight.size(0), in = weight.size(1), groups = scheme.groups(in), width = in / groups;
  std::vector<at::Tensor> diagonal;
  for (int64_t g = 0; g < groups; ++g)
    diagonal.push_back(
        second_moment.slice(0, g * width, (g + 1) * width).slice(1, g * width, (g + 1) * width));
  const at::Tensor blocks = at::stack(diagonal);
  AwqClip result{at::empty_like(original), at::empty({out, groups}, at::kDouble),
                 at::empty({out, groups}, at::kDouble)};
  parallel_for(pool, (out + kSearchRows - 1) / kSearchRows, [&](int64_t piece, int) {
    const int64_t first = piece * kSearchRows, last = std::min(out, first + kSearchRows);
    const at::Tensor rows = original.slice(0, first, last).reshape({last - first, groups, width});
    const at::Tensor largest = rows.abs().amax(2);
    at::Tensor limit = largest, least;
    for (int64_t i = 0; i < kClipTried; ++i) {
      const at::Tensor tried = largest * (1 - static_cast<double>(i) / kClipSteps);
      const at::Tensor bound = tried.unsqueeze(2);
      const at::Tensor clipped = at::minimum(at::maximum(rows, -bound), bound);
      const at::Tensor decoded =
          ScaledRounding(clipped.reshape({last - first, in}), {}, scheme, second_moment.diagonal())
              .rows(0, last - first);
      const at::Tensor difference =
          (decoded.reshape(rows.sizes()) - rows).transpose(0, 1).to(blocks.scalar_type());
      const at::Tensor error = at::bmm(difference, blocks).mul_(difference).sum(2, false, at::kDouble).t();
      const at::Tensor better = i == 0 ? at::ones_like(error, at::kBool) : error < least;
      limit = at::where(better, tried, limit);
      least = i == 0 ? error : at::where(better, error, least);
    }
    const at::Tensor bound = limit.unsqueeze(2);
    result.weight.slice(0, first, last)
        .copy_(at::minimum(at::maximum(rows, -bound), bound).reshape({last - first, in}));
    result.limit.slice(0, first, last).copy_(limit);
    result.error.slice(0, first, last).copy_(least);
  });
  return result;
}

}  // namespace lcomp::quant
