#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lcomp::sparse {

/// How many of the scores of a matrix lie where, in bins by the upper 16 bits of their float32: 128 to each
/// power of two, and exact for magnitudes of bfloat16 weights. Scores are not negative.
class ScoreHistogram {
 public:
  ScoreHistogram() = default;
  /// scores: any shape. Throws InvalidArgument for negative or non-finite ones.
  explicit ScoreHistogram(const at::Tensor& scores);

  /// The same as a list of numbers, and back.
  std::vector<double> numbers() const;
  static ScoreHistogram from_numbers(const std::vector<double>& numbers);

  /// Adds the scores of another matrix.
  void merge(const ScoreHistogram& other);

  int64_t count() const;
  double mean() const;
  /// Scores in bins below `bin`.
  int64_t count_below(int64_t bin) const;
  /// The share of scores above `threshold`; those of its bin count as spread evenly over it.
  double share_above(double threshold) const;
  /// One past the last bin that holds a score; 0 when there is none.
  int64_t end() const { return first_ + static_cast<int64_t>(counts_.size()); }

 private:
  double sum_ = 0;
  int64_t first_ = 0;
  std::vector<int64_t> counts_;  // from bin first_ on
};

/// How many weights of a matrix may be removed.
struct RemovalBounds {
  int64_t least = 0;
  int64_t most = 0;
};

/// One threshold over the scores of all matrices: how many each loses so that the `count` lowest go, within
/// its bounds (those held back by them leave others to go). Of the bin that the threshold falls into every
/// matrix loses the same share, so that the counts add up to `count` exactly. Throws InvalidArgument when the
/// bounds exclude the count.
std::vector<int64_t> removed_below_threshold(const std::vector<ScoreHistogram>& scores,
                                             const std::vector<RemovalBounds>& bounds, int64_t count);

/// 100 times the share of scores above `factor` times their mean: the layer-wise outlier distribution of OWL.
double outlier_ratio(const at::Tensor& scores, double factor = 5);

/// Outlier-weighed layer-wise sparsity: what is added to the sparsity of each layer (block), from `spread`
/// for the one with the least outliers to -`spread` for the one with the most, linear in their ratios
/// between, less the mean:
///     shift_l = mean_k(z_k) - z_l,   z_l = 2 spread (D_l - min D) / (max D - min D).
/// Yin et al.: Outlier Weighed Layerwise Sparsity (OWL), ICML 2024, section 3.2. The mean is weighted by
/// `weights`, the numbers of weights of the layers, so that as many go as without it. All ratios equal: 0.
std::vector<double> owl_shifts(const std::vector<double>& outlier_ratios, const std::vector<double>& weights,
                               double spread = 0.08);

}  // namespace lcomp::sparse
