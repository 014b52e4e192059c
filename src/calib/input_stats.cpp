#include "lcomp/calib/input_stats.h"

#include <ATen/ATen.h>

#include <cstring>

#include "lcomp/core/rng.h"
#include "lcomp/linalg/gemm.h"

namespace lcomp::calib {

InputStats divided(const InputStats& stats, const at::Tensor& scale) {
  const at::Tensor inverse = scale.to(at::kDouble).reciprocal();
  const auto times = [](const at::Tensor& values, const at::Tensor& factor) {
    return values.defined() ? (values * factor).to(values.scalar_type()) : values;
  };
  InputStats out = stats;
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
  if (needs.second_moment) stats_.second_moment = at::zeros({features, features}, at::kFloat);
  if (needs.abs_mean) abs_sum_ = at::zeros({features}, at::kDouble);
  if (needs.abs_max) stats_.abs_max = at::zeros({features}, at::kFloat);
  if (needs.sampled_tokens > 0) {
    chosen_ = choose_tokens(needs.sampled_tokens, total_tokens);
    stats_.samples = at::zeros({static_cast<int64_t>(chosen_.size()), features}, at::kFloat);
  }
}

void StatsAccumulator::add(ThreadPool* pool, const float* x, int64_t tokens) {
  keep_samples(x, stats_.tokens, tokens);
  stats_.tokens += tokens;
  if (needs_.second_moment)
    linalg::syrk_upper(pool, x, tokens, features_, stats_.second_moment.data_ptr<float>());
  double* sum = needs_.abs_mean ? abs_sum_.data_ptr<double>() : nullptr;
  float* max = needs_.abs_max ? stats_.abs_max.data_ptr<float>() : nullptr;
  if (sum == nullptr && max == nullptr) return;
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * features_;
    for (int64_t j = 0; j < features_; ++j) {
      const float magnitude = std::abs(row[j]);
      if (sum != nullptr) sum[j] += magnitude;
      if (max != nullptr) max[j] = std::max(max[j], magnitude);
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

InputStats StatsAccumulator::finish() {
  if (needs_.second_moment) linalg::mirror_upper(stats_.second_moment);
  if (needs_.abs_mean) {
    stats_.abs_mean = (abs_sum_ / static_cast<double>(std::max<int64_t>(1, stats_.tokens))).to(at::kFloat);
  }
  return std::move(stats_);
}

}  // namespace lcomp::calib
