#include "lcomp/calib/input_stats.h"

#include "lcomp/linalg/gemm.h"

namespace lcomp::calib {

StatsAccumulator::StatsAccumulator(int64_t features, const Needs& needs)
    : features_(features), needs_(needs) {
  if (needs.second_moment) stats_.second_moment = at::zeros({features, features}, at::kFloat);
  if (needs.abs_mean) abs_sum_ = at::zeros({features}, at::kDouble);
  if (needs.abs_max) stats_.abs_max = at::zeros({features}, at::kFloat);
}

void StatsAccumulator::add(ThreadPool* pool, const float* x, int64_t tokens) {
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

InputStats StatsAccumulator::finish() {
  if (needs_.second_moment) linalg::mirror_upper(stats_.second_moment);
  if (needs_.abs_mean) {
    stats_.abs_mean = (abs_sum_ / static_cast<double>(std::max<int64_t>(1, stats_.tokens))).to(at::kFloat);
  }
  return std::move(stats_);
}

}  // namespace lcomp::calib
