#pragma once

// GPTQ from its formulas, for tests: Eigen in double, one column at a time, an explicit inverse, no blocks,
// unsigned codes and zero points as the papers have them.
#include <Eigen/Dense>
#include <cmath>
#include <functional>
#include <vector>

namespace lcomp::reference {

using Matrix = Eigen::MatrixXd;
using Vector = Eigen::VectorXd;

/// Scale and zero point of one group: x^ = (q - z) s, q in [0, 2^bits - 1].
struct Point {
  double scale = 1;
  double zero = 0;
};

/// Fits one group; the formulas of the asymmetric extended range.
inline Point extended_point(const Vector& x, int bits) {
  double lo = std::min(x.minCoeff(), 0.0), hi = std::max(x.maxCoeff(), 0.0);
  if (lo == 0 && hi == 0) lo = -1, hi = 1;
  const double scale = (hi - lo) / (std::pow(2.0, bits) - 1);
  return {scale, std::nearbyint(-lo / scale)};
}

/// Fits one group symmetrically: the largest magnitude at the middle of the outermost steps.
inline Point mid_range_point(const Vector& x, int bits) {
  const double scale = x.cwiseAbs().maxCoeff() / ((std::pow(2.0, bits) - 1) / 2);
  return {scale == 0 ? 0x1p-52 : scale, std::pow(2.0, bits - 1)};
}

using Fit = std::function<Point(const Vector&, int)>;

inline double code(double x, const Point& p, int bits) {
  const double q = std::nearbyint(x / p.scale) + p.zero;
  return std::min(std::max(q, 0.0), std::pow(2.0, bits) - 1);
}

inline double decoded(double x, const Point& p, int bits) {
  return (code(x, p, bits) - p.zero) * p.scale;
}

/// Round to nearest, groups of `group` columns.
inline Matrix rtn(const Matrix& w, int bits, Eigen::Index group, const Fit& fit) {
  Matrix result(w.rows(), w.cols());
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    for (Eigen::Index c = 0; c < w.cols(); c += group) {
      const Point p = fit(w.row(r).segment(c, group), bits);
      for (Eigen::Index j = c; j < c + group; ++j) result(r, j) = decoded(w(r, j), p, bits);
    }
  }
  return result;
}

inline Matrix damped(const Matrix& h, double damping) {
  return h + damping * h.diagonal().mean() * Matrix::Identity(h.rows(), h.cols());
}

/// Optimal brain quantization in a fixed order (the form that GPTQ's Cholesky walk is equal to): after each
/// column its row and column are eliminated from the inverse.
inline Matrix gptq(const Matrix& weight, const Matrix& h, int bits, Eigen::Index group, const Fit& fit,
                   double damping = 0.01) {
  Matrix w = weight, result(weight.rows(), weight.cols());
  Matrix inverse = damped(h, damping).inverse();
  std::vector<Point> points(static_cast<size_t>(w.rows()));
  for (Eigen::Index j = 0; j < w.cols(); ++j) {
    for (Eigen::Index r = 0; r < w.rows(); ++r) {
      Point& p = points[static_cast<size_t>(r)];
      if (j % group == 0) p = fit(w.row(r).segment(j, group), bits);
      result(r, j) = decoded(w(r, j), p, bits);
      w.row(r) -= (w(r, j) - result(r, j)) / inverse(j, j) * inverse.row(j);
    }
    inverse -= (inverse.col(j) * inverse.row(j) / inverse(j, j)).eval();
  }
  return result;
}

/// How a group rounds a number, of whatever format.
using Round = std::function<double(double)>;
using FitRound = std::function<Round(const Vector&)>;

/// The same for groups that say themselves how they round.
inline Matrix gptq(const Matrix& weight, const Matrix& h, Eigen::Index group, const FitRound& fit,
                   double damping = 0.01) {
  Matrix w = weight, result(weight.rows(), weight.cols());
  Matrix inverse = damped(h, damping).inverse();
  std::vector<Round> rounds(static_cast<size_t>(w.rows()));
  for (Eigen::Index j = 0; j < w.cols(); ++j) {
    for (Eigen::Index r = 0; r < w.rows(); ++r) {
      Round& round = rounds[static_cast<size_t>(r)];
      if (j % group == 0) round = fit(w.row(r).segment(j, group));
      result(r, j) = round(w(r, j));
      w.row(r) -= (w(r, j) - result(r, j)) / inverse(j, j) * inverse.row(j);
    }
    inverse -= (inverse.col(j) * inverse.row(j) / inverse(j, j)).eval();
  }
  return result;
}

/// tr(D H D^T).
inline double energy(const Matrix& d, const Matrix& h) {
  return (d * h).cwiseProduct(d).sum();
}

}  // namespace lcomp::reference
