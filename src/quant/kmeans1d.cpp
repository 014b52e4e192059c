#include "lcomp/quant/kmeans1d.h"

#include <limits>
#include <numeric>

#include "lcomp/core/error.h"

namespace lcomp::quant {
namespace {

struct Point {
  double x;
  double f;
};

void check_points(const char* where, std::span<const double> x, std::span<const double> f, int64_t k) {
  if (k < 1) throw InvalidArgument(where, fmt::format("k must be at least 1; received {}", k));
  if (x.empty() || x.size() != f.size()) {
    throw InvalidArgument(where, fmt::format("there must be points and as many weights; received {} and {}",
                                             x.size(), f.size()));
  }
  for (size_t i = 0; i < x.size(); ++i) {
    if (!std::isfinite(x[i]) || !std::isfinite(f[i]) || f[i] < 0) {
      throw InvalidArgument(where,
                            fmt::format("points must be finite and weights finite and at least 0; number {} "
                                        "is {} with the weight {}",
                                        i, x[i], f[i]));
    }
  }
}

/// Whether any point counts by its weight; otherwise all count as 1.
bool any_weight(std::span<const double> f) {
  return std::any_of(f.begin(), f.end(), [](double v) { return v > 0; });
}

/// The points that count, ascending, equal ones merged.
std::vector<Point> sorted_points(std::span<const double> x, std::span<const double> f) {
  const bool weighted = any_weight(f);
  std::vector<Point> points;
  points.reserve(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    if (!weighted || f[i] > 0) points.push_back({x[i], weighted ? f[i] : 1.0});
  }
  std::stable_sort(points.begin(), points.end(), [](const Point& a, const Point& b) { return a.x < b.x; });
  size_t kept = 0;
  for (size_t i = 1; i < points.size(); ++i) {
    if (points[i].x == points[kept].x) {
      points[kept].f += points[i].f;
    } else {
      points[++kept] = points[i];
    }
  }
  points.resize(kept + 1);
  return points;
}

/// Cost and mean of any interval of sorted points, from prefix sums.
class Intervals {
 public:
  explicit Intervals(const std::vector<Point>& points) : points_(points) {
    double weight = 0;
    double sum = 0;
    for (const Point& p : points) {
      weight += p.f;
      sum += p.f * p.x;
    }
    shift_ = sum / weight;
    sums_.resize(points.size() + 1);
    for (size_t i = 0; i < points.size(); ++i) {
      const double x = points[i].x - shift_;
      sums_[i + 1] = {sums_[i].f + points[i].f, sums_[i].fx + points[i].f * x,
                      sums_[i].fxx + points[i].f * x * x};
    }
  }

  /// Of points [begin, end).
  double cost(size_t begin, size_t end) const {
    const double fx = sums_[end].fx - sums_[begin].fx;
    const double f = sums_[end].f - sums_[begin].f;
    if (!(f > 0)) return 0;  // weights that vanish beside those of the others
    return std::max(0.0, sums_[end].fxx - sums_[begin].fxx - fx * fx / f);
  }
  /// From the points: differences of the sums have lost the digits of small weights.
  double mean(size_t begin, size_t end) const {
    double f = 0, fx = 0;
    for (size_t i = begin; i < end; ++i) {
      f += points_[i].f;
      fx += points_[i].f * (points_[i].x - shift_);
    }
    return shift_ + fx / f;
  }

 private:
  struct Sums {
    double f = 0, fx = 0, fxx = 0;
  };
  const std::vector<Point>& points_;
  std::vector<Sums> sums_;
  double shift_ = 0;
};

/// Rows of D(q, j), each from the one before.
class Table {
 public:
  Table(const Intervals& intervals, size_t points, size_t clusters)
      : intervals_(intervals), points_(points), begins_(clusters, std::vector<uint32_t>(points + 1, 0)) {
    before_.assign(points + 1, 0);
    for (size_t j = 1; j <= points; ++j) before_[j] = intervals.cost(0, j);
    now_ = before_;
    for (size_t q = 1; q < clusters; ++q) {
      fill(q, q + 1, points, q, points - 1);
      std::swap(before_, now_);
    }
  }

  /// Ends of the optimal clusters, ascending.
  std::vector<size_t> ends() const {
    std::vector<size_t> out;
    size_t end = points_;
    for (size_t q = begins_.size(); q-- > 0; end = begins_[q][end]) out.push_back(end);
    std::reverse(out.begin(), out.end());
    return out;
  }

 private:
  /// D(q, j) for j in [low, high], the last cluster beginning in [from, to].
  void fill(size_t q, size_t low, size_t high, size_t from, size_t to) {
    if (low > high) return;
    const size_t middle = low + (high - low) / 2;
    double best = std::numeric_limits<double>::infinity();
    size_t best_begin = from;
    for (size_t i = from; i <= std::min(to, middle - 1); ++i) {
      const double cost = before_[i] + intervals_.cost(i, middle);
      if (cost < best) {
        best = cost;
        best_begin = i;
      }
    }
    now_[middle] = best;
    begins_[q][middle] = static_cast<uint32_t>(best_begin);
    fill(q, low, middle - 1, from, best_begin);
    fill(q, middle + 1, high, best_begin, to);
  }

  const Intervals& intervals_;
  size_t points_;
  std::vector<double> before_, now_;
  std::vector<std::vector<uint32_t>> begins_;  // per number of clusters and end, where the last one begins
};

}  // namespace

int64_t nearest_center(double x, std::span<const double> centers) {
  const auto above = std::lower_bound(centers.begin(), centers.end(), x);
  const auto i = above - centers.begin();
  if (above == centers.end()) return i - 1;
  if (above == centers.begin()) return 0;
  return x - centers[static_cast<size_t>(i - 1)] <= *above - x ? i - 1 : i;
}

double clustering_cost(std::span<const double> x, std::span<const double> f,
                       std::span<const double> centers) {
  const bool weighted = any_weight(f);
  double cost = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double off = x[i] - centers[static_cast<size_t>(nearest_center(x[i], centers))];
    cost += (weighted ? f[i] : 1.0) * off * off;
  }
  return cost;
}

Clustering kmeans_exact(std::span<const double> x, std::span<const double> f, int64_t k) {
  check_points("kmeans_exact", x, f, k);
  const std::vector<Point> points = sorted_points(x, f);
  const Intervals intervals(points);
  const size_t clusters = std::min(static_cast<size_t>(k), points.size());
  Clustering out;
  if (clusters == points.size()) {
    for (const Point& p : points) out.centers.push_back(p.x);
  } else {
    size_t begin = 0;
    for (const size_t end : Table(intervals, points.size(), clusters).ends()) {
      out.centers.push_back(intervals.mean(begin, end));
      begin = end;
    }
  }
  out.centers.resize(static_cast<size_t>(k), out.centers.back());
  out.cost = clustering_cost(x, f, out.centers);
  return out;
}

std::vector<double> quantile_centers(std::span<const double> x, std::span<const double> f, int64_t k) {
  check_points("quantile_centers", x, f, k);
  const std::vector<Point> points = sorted_points(x, f);
  double total = 0;
  for (const Point& p : points) total += p.f;
  std::vector<double> centers;
  double passed = 0;
  size_t i = 0;
  for (int64_t c = 0; c < k; ++c) {
    const double wanted = total * (static_cast<double>(c) + 0.5) / static_cast<double>(k);
    while (i + 1 < points.size() && passed + points[i].f < wanted) passed += points[i++].f;
    centers.push_back(points[i].x);
  }
  return centers;
}

Clustering kmeans_lloyd(std::span<const double> x, std::span<const double> f, std::vector<double> start,
                        int64_t max_iterations) {
  check_points("kmeans_lloyd", x, f, static_cast<int64_t>(start.size()));
  const std::vector<Point> points = sorted_points(x, f);
  std::vector<double> centers = std::move(start);
  std::sort(centers.begin(), centers.end());
  std::vector<int64_t> assigned(points.size(), -1);
  for (int64_t iteration = 0; iteration < max_iterations; ++iteration) {
    bool moved = false;
    std::vector<double> weight(centers.size(), 0), sum(centers.size(), 0);
    for (size_t i = 0; i < points.size(); ++i) {
      const int64_t to = nearest_center(points[i].x, centers);
      moved = moved || to != assigned[i];
      assigned[i] = to;
      weight[static_cast<size_t>(to)] += points[i].f;
      sum[static_cast<size_t>(to)] += points[i].f * (points[i].x - centers[static_cast<size_t>(to)]);
    }
    if (!moved) break;
    std::vector<double> error(points.size());
    for (size_t i = 0; i < points.size(); ++i) {
      const double off = points[i].x - centers[static_cast<size_t>(assigned[i])];
      error[i] = points[i].f * off * off;
    }
    for (size_t c = 0; c < centers.size(); ++c) {
      if (weight[c] > 0) {
        centers[c] += sum[c] / weight[c];
        continue;
      }
      const auto worst = std::max_element(error.begin(), error.end()) - error.begin();
      centers[c] = points[static_cast<size_t>(worst)].x;
      error[static_cast<size_t>(worst)] = 0;  // the next empty center goes elsewhere
    }
    std::sort(centers.begin(), centers.end());
  }
  Clustering out{std::move(centers), 0};
  out.cost = clustering_cost(x, f, out.centers);
  return out;
}

}  // namespace lcomp::quant
