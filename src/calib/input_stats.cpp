#include "lcomp/calib/input_stats.h"

#include <ATen/ATen.h>

#include <cstring>

#include "lcomp/core/rng.h"
#include "lcomp/linalg/gemm.h"
#include "linalg/value_range.h"

namespace lcomp::calib {

InputStats divided(const InputStats& stats, const at::Tensor& scale) {
  const at::Tensor inverse = scale.to(at::kDouble).reciprocal();
  const auto times = [](const at::Tensor& values, const at::Tensor& factor) {
    return values.defined() ? (values * factor).to(values.scalar_type()) : values;
  };
  InputStats out;
  out.tokens = stats.tokens;
  out.mean = times(stats.mean, inverse);
  out.abs_mean = times(stats.abs_mean, inverse);
  out.abs_max = times(stats.abs_max, inverse);
  out.samples = times(stats.samples, inverse);
  if (stats.second_moment.defined()) {
    // One factor per element, so that the result is symmetric to the bit.
    out.second_moment = times(stats.second_moment, at::outer(inverse, inverse));
  }
  return out;
}

namespace {

/// One position at random out of each of `count` equal stretches of [0, total).
std::vector<int64_t> choose_tokens(int64_t count, int64_t total) {
  Rng rng(0, "sampled tokens");
  std::vector<int64_t> chosen;
  for (int64_t k = 0; k < std::min(count, total); ++k) {
    const int64_t begin = count < total ? k * total / count : k;
    const int64_t end = count < total ? (k + 1) * total / count : k + 1;
    chosen.push_back(begin + static_cast<int64_t>(rng.below(static_cast<uint64_t>(end - begin))));
  }
  return chosen;
}

}  // namespace

StatsAccumulator::StatsAccumulator(int64_t features, const Needs& needs, int64_t total_tokens)
    : features_(features), needs_(needs) {
  const auto square = [&] { return at::zeros({features, features}, at::kFloat); };
  if (needs.halves) {
    for (size_t half = 0; half < 2; ++half) {
      stats_.half_moment[half] = square();
      stats_.half_mismatch[half] = square();
    }
  } else {
    if (needs.second_moment) stats_.second_moment = square();
    if (needs.mismatch) stats_.mismatch = square();
  }
  if (needs.mean) sum_ = at::zeros({features}, at::kDouble);
  if (needs.abs_mean) abs_sum_ = at::zeros({features}, at::kDouble);
  if (needs.abs_max) stats_.abs_max = at::zeros({features}, at::kFloat);
  if (needs.sampled_tokens > 0) {
    chosen_ = choose_tokens(needs.sampled_tokens, total_tokens);
    stats_.samples = at::zeros({static_cast<int64_t>(chosen_.size()), features}, at::kFloat);
  }
  if (needs.value_counts) stats_.value_counts = at::zeros({int64_t{1} << 16}, at::kLong);
  if (needs.outlier_threshold > 0) stats_.outlier_tokens = at::zeros({features}, at::kLong);
}

/// The difference is taken before the product: that of two nearly equal moments would lose most digits.
void StatsAccumulator::add_mismatch(ThreadPool* pool, const float* x, int64_t tokens, float* reference,
                                    size_t half) {
  parallel_for(pool, tokens, [&](int64_t t, int) {
    for (int64_t j = t * features_; j < (t + 1) * features_; ++j) reference[j] -= x[j];
  });
  at::Tensor& sum = needs_.halves ? stats_.half_mismatch.at(half) : stats_.mismatch;
  linalg::add_cross_products(pool, reference, x, tokens, features_, sum.data_ptr<float>());
}

void StatsAccumulator::add(ThreadPool* pool, const float* x, int64_t tokens, float* reference, size_t half) {
  keep_samples(x, stats_.tokens, tokens);
  stats_.tokens += tokens;
  if (needs_.second_moment || needs_.halves) {
    at::Tensor& moment = needs_.halves ? stats_.half_moment.at(half) : stats_.second_moment;
    linalg::syrk_upper(pool, x, tokens, features_, moment.data_ptr<float>());
  }
  if (needs_.mismatch || needs_.halves) add_mismatch(pool, x, tokens, reference, half);
  if (needs_.mean)
    sum_ += at::from_blob(const_cast<float*>(x), {tokens, features_}, at::kFloat).sum(0, false, at::kDouble);
  if (needs_.abs_mean || needs_.abs_max || needs_.outlier_threshold > 0) add_magnitudes(x, tokens);
  if (needs_.token_range || needs_.value_counts) add_ranges(x, tokens);
}

void StatsAccumulator::add_magnitudes(const float* x, int64_t tokens) {
  double* sum = needs_.abs_mean ? abs_sum_.data_ptr<double>() : nullptr;
  float* max = needs_.abs_max ? stats_.abs_max.data_ptr<float>() : nullptr;
  int64_t* outliers = needs_.outlier_threshold > 0 ? stats_.outlier_tokens.data_ptr<int64_t>() : nullptr;
  const auto threshold = static_cast<float>(needs_.outlier_threshold);
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * features_;
    for (int64_t j = 0; j < features_; ++j) {
      const float magnitude = std::abs(row[j]);
      if (sum != nullptr) sum[j] += magnitude;
      if (max != nullptr) max[j] = std::max(max[j], magnitude);
      if (outliers != nullptr) outliers[j] += magnitude >= threshold ? 1 : 0;
    }
  }
}

/// Copies the chosen ones of tokens [first, first + tokens).
void StatsAccumulator::keep_samples(const float* x, int64_t first, int64_t tokens) {
  for (; kept_ < chosen_.size() && chosen_[kept_] < first + tokens; ++kept_) {
    std::memcpy(stats_.samples.data_ptr<float>() + static_cast<int64_t>(kept_) * features_,
                x + (chosen_[kept_] - first) * features_, static_cast<size_t>(features_) * sizeof(float));
  }
}

void StatsAccumulator::add_ranges(const float* x, int64_t tokens) {
  if (needs_.token_range) {
    for (int64_t t = 0; t < tokens; ++t) {
      linalg::value_range(x + t * features_, features_, &lowest_.emplace_back(), &highest_.emplace_back());
    }
  }
  if (!needs_.value_counts) return;
  int64_t* counts = stats_.value_counts.data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens * features_; ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, x + i, sizeof bits);
    ++counts[bits >> 16U];
  }
}

InputStats StatsAccumulator::finish() {
  if (needs_.halves) {
    for (at::Tensor& moment : stats_.half_moment) linalg::mirror_upper(moment);
    stats_.second_moment = stats_.half_moment[0] + stats_.half_moment[1];
    stats_.mismatch = stats_.half_mismatch[0] + stats_.half_mismatch[1];
  } else if (needs_.second_moment) {
    linalg::mirror_upper(stats_.second_moment);
  }
  const auto tokens = static_cast<double>(std::max<int64_t>(1, stats_.tokens));
  if (needs_.mean) stats_.mean = (sum_ / tokens).to(at::kFloat);
  if (needs_.abs_mean) stats_.abs_mean = (abs_sum_ / tokens).to(at::kFloat);
  if (needs_.token_range) {
    stats_.token_lowest = at::tensor(lowest_, at::kFloat);
    stats_.token_highest = at::tensor(highest_, at::kFloat);
  }
  return std::move(stats_);
}

}  // namespace lcomp::calib
