#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/core/threads.h"

namespace lcomp::calib {

/// What a pass wants to know about the inputs of an operator.
struct Needs {
  bool second_moment = false;  ///< sum over tokens of x x^T
  bool abs_mean = false;       ///< mean over tokens of |x_j|
  bool abs_max = false;        ///< max over tokens of |x_j|

  bool any() const { return second_moment || abs_mean || abs_max; }
  Needs operator|(const Needs& other) const {
    return {second_moment || other.second_moment, abs_mean || other.abs_mean, abs_max || other.abs_max};
  }
};

/// Statistics of the inputs that one group of operators reads. Tensors that were not asked for are undefined.
struct InputStats {
  int64_t tokens = 0;
  at::Tensor second_moment;  ///< float32 `[in, in]`, symmetric: sum over tokens of x x^T
  at::Tensor abs_mean;       ///< float32 `[in]`
  at::Tensor abs_max;        ///< float32 `[in]`
};

/// Gathers InputStats batch by batch. The sums run over the tokens in the order they are given, in float32
/// within a batch (second moments) and in float64 (absolute sums), whatever the number of threads.
class StatsAccumulator {
 public:
  StatsAccumulator(int64_t features, const Needs& needs);

  /// x: `[tokens, features]`, contiguous.
  void add(ThreadPool* pool, const float* x, int64_t tokens);
  /// The statistics so far; leaves the accumulator empty.
  InputStats finish();

 private:
  int64_t features_;
  Needs needs_;
  InputStats stats_;
  at::Tensor abs_sum_;  // float64
};

}  // namespace lcomp::calib
