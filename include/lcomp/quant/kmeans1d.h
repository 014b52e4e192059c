#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace lcomp::quant {

/// Centres of a line's points, ascending, and what they cost.
struct Clustering {
  std::vector<double> centers;  ///< exactly k of them; equal ones when there are fewer distinct points
  double cost = 0;              ///< sum_i f_i (x_i - nearest center)^2
};

/// Weighted k-means on a line, exact: the k centers with the least sum_i f_i (x_i - c_{a(i)})^2.
///
/// On a line the optimal clusters are intervals of the sorted points, and the cost of an interval follows
/// from prefix sums of f, f x and f x^2. With D(q, j) the least cost of the first j points in q clusters,
/// D(q, j) = min_i D(q - 1, i) + cost(i, j), where the best i never decreases with j; so each of the k rows
/// is filled by divide and conquer (Wang and Song 2011, Ckmeans.1d.dp; Gronlund et al. 2017, arXiv
/// 1701.07204, section 2). Cost O(n log n + k n log n), memory O(k n). Points are shifted to their weighted
/// mean first, which keeps the prefix sums from cancelling; equal points are merged.
///
/// x, f: the same length, finite, f >= 0. Points of weight 0 do not count; when all weights are 0 they count
/// as 1. k >= 1. Throws InvalidArgument otherwise.
Clustering kmeans_exact(std::span<const double> x, std::span<const double> f, int64_t k);

/// Weighted k-means by Lloyd's iterations from given centers: points to the nearest center, centers to the
/// weighted means of their points; a center without points goes to the point with the largest weighted error.
/// Ends when no point moves, or after `max_iterations`. The cost never increases. O(n log k) an iteration;
/// finds a local minimum only.
Clustering kmeans_lloyd(std::span<const double> x, std::span<const double> f, std::vector<double> start,
                        int64_t max_iterations);

/// `k` starting centers without chance: the midpoints of k equal shares of the total weight, in the order of
/// the points.
std::vector<double> quantile_centers(std::span<const double> x, std::span<const double> f, int64_t k);

/// The cost of given centers, each point going to the nearest.
double clustering_cost(std::span<const double> x, std::span<const double> f, std::span<const double> centers);

/// Position of the center nearest to `x` among ascending `centers`; the lower one of two equally near.
int64_t nearest_center(double x, std::span<const double> centers);

}  // namespace lcomp::quant
