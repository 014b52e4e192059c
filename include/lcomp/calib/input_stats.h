#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"

namespace lcomp::calib {

/// What a pass wants to know about the inputs of an operator.
struct Needs {
  bool second_moment = false;  ///< sum over tokens of x x^T
  bool abs_mean = false;       ///< mean over tokens of |x_j|
  bool abs_max = false;        ///< max over tokens of |x_j|

  int64_t sampled_tokens = 0;  ///< inputs of that many tokens, kept as they are

  bool any() const { return second_moment || abs_mean || abs_max || sampled_tokens > 0; }
  /// Whether statistics taken for these needs serve `other` as well.
  bool covers(const Needs& other) const {
    return (second_moment || !other.second_moment) && (abs_mean || !other.abs_mean) &&
           (abs_max || !other.abs_max) && sampled_tokens >= other.sampled_tokens;
  }
  Needs operator|(const Needs& other) const {
    return {second_moment || other.second_moment, abs_mean || other.abs_mean, abs_max || other.abs_max,
            std::max(sampled_tokens, other.sampled_tokens)};
  }
};

/// Statistics of the inputs that one group of operators reads. Tensors that were not asked for are undefined.
struct InputStats {
  int64_t tokens = 0;
  at::Tensor second_moment;  ///< float32 `[in, in]`, symmetric: sum over tokens of x x^T
  at::Tensor abs_mean;       ///< float32 `[in]`
  at::Tensor abs_max;        ///< float32 `[in]`
  /// float32 `[sampled_tokens, in]` (all tokens when there are fewer): one token at random out of each of
  /// equal stretches of the tokens in their order, the same ones in every run.
  at::Tensor samples;
};

/// The statistics of the inputs x / scale, by algebra: H' = S^-1 H S^-1, and the others divided. scale:
/// `[in]`, positive.
InputStats divided(const InputStats& stats, const at::Tensor& scale);

/// Gathers InputStats batch by batch. The sums run over the tokens in the order they are given, in float32
/// within a batch (second moments) and in float64 (absolute sums), whatever the number of threads.
class StatsAccumulator {
 public:
  /// `total_tokens`: how many will be added in all; sampled tokens are chosen by it.
  StatsAccumulator(int64_t features, const Needs& needs, int64_t total_tokens = 0);

  /// x: `[tokens, features]`, contiguous.
  void add(ThreadPool* pool, const float* x, int64_t tokens);
  /// The statistics so far; leaves the accumulator empty.
  InputStats finish();

 private:
  void keep_samples(const float* x, int64_t first, int64_t tokens);

  int64_t features_;
  Needs needs_;
  InputStats stats_;
  std::vector<int64_t> chosen_;  // positions of the sampled tokens, ascending
  size_t kept_ = 0;
  at::Tensor abs_sum_;  // float64
};

}  // namespace lcomp::calib
