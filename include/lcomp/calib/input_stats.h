#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"

namespace lcomp::calib {

/// What a pass wants to know about an operator: of its inputs, and of the loss.
struct Needs {
  bool second_moment = false;    ///< sum over tokens of x x^T
  bool mean = false;             ///< mean over tokens of x_j
  bool abs_mean = false;         ///< mean over tokens of |x_j|
  bool abs_max = false;          ///< max over tokens of |x_j|
  bool token_range = false;      ///< least and largest x_j of every token
  bool value_counts = false;     ///< how often each value occurs, by its upper 16 bits
  double outlier_threshold = 0;  ///< above 0: number of tokens with |x_j| of at least this, per j
  int64_t sampled_tokens = 0;    ///< inputs of that many tokens, kept as they are
  /// Sum over samples of the squared gradients of the language-model loss by the weights of the model as it
  /// was before any pass; made by a sweep of its own (calib/gradients.h).
  bool gradient_squares = false;
  /// Sums with the squared gradients of that loss by the outputs, from the same sweep: of x x^T weighted by
  /// those of the token, and by themselves.
  bool gradient_moments = false;
  /// The weights times the sum over samples of those gradients, from the same sweep.
  bool gradient_products = false;
  /// Gradients of that loss by factors of the units that make a group's input, per sample.
  bool unit_gradients = false;
  /// Besides, sums with the inputs x that the operator gets in the model as the pass found it, x~ being those
  /// that it gets now: takes a second stream of samples. With `halves` each half of them by itself too.
  bool mismatch = false;
  bool halves = false;

  /// Whether anything of the inputs is wanted.
  bool any() const {
    return second_moment || mean || abs_mean || abs_max || mismatch || halves || sampled_tokens > 0 ||
           !follow_scales();
  }
  /// Whether the gradient sweep must run.
  bool gradients() const {
    return gradient_squares || gradient_moments || gradient_products || unit_gradients;
  }
  /// Whether what the sweep makes for these needs serves `other` as well.
  bool covers_gradients(const Needs& other) const {
    return (gradient_squares || !other.gradient_squares) && (gradient_moments || !other.gradient_moments) &&
           (gradient_products || !other.gradient_products) && (unit_gradients || !other.unit_gradients);
  }
  /// Whether the statistics of scaled inputs follow from those of the inputs by algebra (see `divided`).
  bool follow_scales() const { return !token_range && !value_counts && outlier_threshold == 0; }
  /// Whether statistics taken for these needs serve `other` as well.
  bool covers(const Needs& other) const {
    return (second_moment || !other.second_moment) && (mean || !other.mean) &&
           (abs_mean || !other.abs_mean) && (abs_max || !other.abs_max) &&
           (token_range || !other.token_range) && (value_counts || !other.value_counts) &&
           (mismatch || !other.mismatch) && (halves || !other.halves) &&
           sampled_tokens >= other.sampled_tokens &&
           (other.outlier_threshold == 0 || outlier_threshold == other.outlier_threshold);
  }
  Needs operator|(const Needs& other) const {
    return {.second_moment = second_moment || other.second_moment,
            .mean = mean || other.mean,
            .abs_mean = abs_mean || other.abs_mean,
            .abs_max = abs_max || other.abs_max,
            .token_range = token_range || other.token_range,
            .value_counts = value_counts || other.value_counts,
            .outlier_threshold = std::max(outlier_threshold, other.outlier_threshold),
            .sampled_tokens = std::max(sampled_tokens, other.sampled_tokens),
            .gradient_squares = gradient_squares || other.gradient_squares,
            .gradient_moments = gradient_moments || other.gradient_moments,
            .gradient_products = gradient_products || other.gradient_products,
            .unit_gradients = unit_gradients || other.unit_gradients,
            .mismatch = mismatch || other.mismatch,
            .halves = halves || other.halves};
  }
};

/// Statistics of the inputs that one group of operators reads. Tensors that were not asked for are undefined.
struct InputStats {
  int64_t tokens = 0;
  at::Tensor second_moment;               ///< float32 `[in, in]`, symmetric: sum over tokens of x x^T
  at::Tensor mean;                        ///< float32 `[in]`
  at::Tensor abs_mean;                    ///< float32 `[in]`
  at::Tensor abs_max;                     ///< float32 `[in]`
  at::Tensor token_lowest;                ///< float32 `[tokens]`, in the order of the samples
  at::Tensor token_highest;               ///< float32 `[tokens]`
  at::Tensor value_counts;                ///< int64 `[65536]`: elements whose float32 has these upper 16 bits
  at::Tensor outlier_tokens;              ///< int64 `[in]`: tokens with |x_j| >= outlier_threshold
  at::Tensor mismatch;                    ///< float32 `[in, in]`: sum over tokens of (x - x~) x~^T
  std::array<at::Tensor, 2> half_moment;  ///< second moments of the halves; they add up to the whole
  std::array<at::Tensor, 2> half_mismatch;  ///< likewise
  /// float32 `[sampled_tokens, in]` (all tokens when there are fewer): one token at random out of each of
  /// equal stretches of the tokens in their order, the same ones in every run.
  at::Tensor samples;
  /// Per operator of the group, float32 `[out, in]`; a function on one matrix sees its own alone.
  std::vector<at::Tensor> gradient_squares;
  std::vector<at::Tensor> gradient_products;  ///< likewise
  /// float32 `[samples, units]`, of the dependency group whose units make the input; undefined where none do.
  at::Tensor unit_gradients;
  /// With the gradients g of the loss by the outputs of all operators of the group:
  /// float32 `[in, in]`, sum over tokens of |g|^2 x x^T,
  at::Tensor gradient_moment;
  /// and per operator, float32 `[out]`, sum over tokens of g_o^2.
  std::vector<at::Tensor> output_gradients;
};

/// The statistics of the inputs x / scale, by algebra: H' = S^-1 H S^-1, and the others divided. scale:
/// `[in]`, positive. Ranges, distributions and outliers do not follow and are left undefined.
InputStats divided(const InputStats& stats, const at::Tensor& scale);

/// Gathers InputStats batch by batch. The sums run over the tokens in the order they are given, in float32
/// within a batch (second moments) and in float64 (absolute sums), whatever the number of threads.
class StatsAccumulator {
 public:
  /// `total_tokens`: how many will be added in all; sampled tokens are chosen by it.
  StatsAccumulator(int64_t features, const Needs& needs, int64_t total_tokens = 0);

  /// x: `[tokens, features]`, contiguous. For the mismatch, reference: the same tokens in the model as the
  /// pass found it (overwritten), and which half they belong to.
  void add(ThreadPool* pool, const float* x, int64_t tokens, float* reference = nullptr, size_t half = 0);
  /// The statistics so far; leaves the accumulator empty.
  InputStats finish();

 private:
  void keep_samples(const float* x, int64_t first, int64_t tokens);
  void add_magnitudes(const float* x, int64_t tokens);
  void add_ranges(const float* x, int64_t tokens);
  void add_mismatch(ThreadPool* pool, const float* x, int64_t tokens, float* reference, size_t half);

  int64_t features_;
  Needs needs_;
  InputStats stats_;
  std::vector<int64_t> chosen_;  // positions of the sampled tokens, ascending
  size_t kept_ = 0;
  at::Tensor sum_, abs_sum_;  // float64
  std::vector<float> lowest_, highest_;
};

}  // namespace lcomp::calib
