#include "lcomp/sparse/allocation.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "lcomp/core/error.h"

namespace lcomp::sparse {
namespace {

int64_t bin_of(float score) {
  return std::bit_cast<uint32_t>(score) >> 16;
}

/// The least score of a bin.
double lower_edge(int64_t bin) {
  return std::bit_cast<float>(static_cast<uint32_t>(bin) << 16);
}

/// Weights that go when all in bins below `bin` do that may.
int64_t bounded(const ScoreHistogram& scores, const RemovalBounds& bounds, int64_t bin) {
  return std::clamp(scores.count_below(bin), bounds.least, bounds.most);
}

}  // namespace

ScoreHistogram::ScoreHistogram(const at::Tensor& scores) {
  const at::Tensor values = scores.to(at::kFloat).contiguous().abs();
  if (scores.numel() == 0) return;
  if (!values.isfinite().all().item<bool>() || scores.lt(0).any().item<bool>())
    throw InvalidArgument("ScoreHistogram", "scores must be finite and not negative");
  sum_ = values.sum(at::kDouble).item<double>();
  const auto least = bin_of(values.min().item<float>()), most = bin_of(values.max().item<float>());
  first_ = least;
  counts_.assign(static_cast<size_t>(most - least + 1), 0);
  const float* from = values.data_ptr<float>();
  for (int64_t i = 0; i < values.numel(); ++i) ++counts_[static_cast<size_t>(bin_of(from[i]) - first_)];
}

std::vector<double> ScoreHistogram::numbers() const {
  std::vector<double> out = {sum_, static_cast<double>(first_)};
  out.insert(out.end(), counts_.begin(), counts_.end());
  return out;
}

ScoreHistogram ScoreHistogram::from_numbers(const std::vector<double>& numbers) {
  if (numbers.size() < 2)
    throw InvalidArgument("ScoreHistogram", "the numbers must be a sum, the first bin and counts");
  ScoreHistogram out;
  out.sum_ = numbers[0];
  out.first_ = static_cast<int64_t>(numbers[1]);
  for (size_t i = 2; i < numbers.size(); ++i) out.counts_.push_back(static_cast<int64_t>(numbers[i]));
  return out;
}

void ScoreHistogram::merge(const ScoreHistogram& other) {
  if (other.counts_.empty()) return;
  if (counts_.empty()) first_ = other.first_;
  const int64_t first = std::min(first_, other.first_), last = std::max(end(), other.end());
  counts_.insert(counts_.begin(), static_cast<size_t>(first_ - first), 0);
  first_ = first;
  counts_.resize(static_cast<size_t>(last - first), 0);
  for (size_t i = 0; i < other.counts_.size(); ++i)
    counts_[static_cast<size_t>(other.first_ - first) + i] += other.counts_[i];
  sum_ += other.sum_;
}

int64_t ScoreHistogram::count_below(int64_t bin) const {
  int64_t sum = 0;
  for (int64_t b = first_; b < std::min(bin, end()); ++b) sum += counts_[static_cast<size_t>(b - first_)];
  return sum;
}

int64_t ScoreHistogram::count() const {
  return count_below(end());
}

double ScoreHistogram::mean() const {
  return counts_.empty() ? 0 : sum_ / static_cast<double>(count());
}

double ScoreHistogram::share_above(double threshold) const {
  if (counts_.empty()) return 0;
  const int64_t bin = bin_of(static_cast<float>(threshold));
  auto above = static_cast<double>(count() - count_below(bin + 1));
  if (bin >= first_ && bin < end()) {
    const double low = lower_edge(bin), high = lower_edge(bin + 1);
    above += static_cast<double>(counts_[static_cast<size_t>(bin - first_)]) *
             std::clamp((high - threshold) / (high - low), 0.0, 1.0);
  }
  return above / static_cast<double>(count());
}

std::vector<int64_t> removed_below_threshold(const std::vector<ScoreHistogram>& scores,
                                             const std::vector<RemovalBounds>& bounds, int64_t count) {
  const auto total_at = [&](int64_t bin) {
    int64_t sum = 0;
    for (size_t i = 0; i < scores.size(); ++i) sum += bounded(scores[i], bounds[i], bin);
    return sum;
  };
  int64_t end = 0;
  for (const ScoreHistogram& of_matrix : scores) end = std::max(end, of_matrix.end());
  if (count < total_at(0) || count > total_at(end)) {
    throw InvalidArgument("removed_below_threshold",
                          fmt::format("the count must lie within the bounds, {} to {}; it is {}", total_at(0),
                                      total_at(end), count));
  }
  int64_t low = 0, high = end;  // total_at(low) <= count <= total_at(high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (total_at(middle) <= count ? low : high) = middle;
  }
  const int64_t below = total_at(low), bin = total_at(high) - below;
  const double share = bin > 0 ? static_cast<double>(count - below) / static_cast<double>(bin) : 0;
  std::vector<int64_t> removed;
  int64_t in_bin = 0, taken = 0;  // of the matrices so far
  for (size_t i = 0; i < scores.size(); ++i) {
    const int64_t least = bounded(scores[i], bounds[i], low);
    in_bin += bounded(scores[i], bounds[i], high) - least;
    const int64_t until = in_bin == bin ? count - below : std::llround(share * static_cast<double>(in_bin));
    removed.push_back(least + until - taken);
    taken = until;
  }
  return removed;
}

double outlier_ratio(const at::Tensor& scores, double factor) {
  const at::Tensor values = scores.to(at::kDouble);
  return 100 * values.gt(factor * values.mean()).to(at::kDouble).mean().item<double>();
}

std::vector<double> owl_shifts(const std::vector<double>& outlier_ratios, const std::vector<double>& weights,
                               double spread) {
  std::vector<double> shifts(outlier_ratios.size(), 0.0);
  if (shifts.empty()) return shifts;
  const auto [least, most] = std::minmax_element(outlier_ratios.begin(), outlier_ratios.end());
  if (!(*most > *least)) return shifts;
  double sum = 0, total = 0;
  for (size_t l = 0; l < shifts.size(); ++l) {
    shifts[l] = -2 * spread * (outlier_ratios[l] - *least) / (*most - *least);
    sum += shifts[l] * weights[l];
    total += weights[l];
  }
  for (double& shift : shifts) shift -= sum / total;
  return shifts;
}

}  // namespace lcomp::sparse
