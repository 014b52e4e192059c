#pragma once

#include <Eigen/Dense>
#include <algorithm>
#include <cmath>
#include <vector>

/// AWQ as its formulas say, element by element in double, on inputs instead of statistics.
namespace lcomp::test {

using Eigen::MatrixXd;
using Eigen::VectorXd;

/// Asymmetric rounding of a row's groups with the raw range (AWQ's convention).
inline MatrixXd round_groups(const MatrixXd& w, int bits, Eigen::Index group) {
  MatrixXd out = w;
  const double top = std::pow(2.0, bits) - 1;
  for (Eigen::Index r = 0; r < w.rows(); ++r) {
    for (Eigen::Index g = 0; g < w.cols(); g += group) {
      const double low = w.row(r).segment(g, group).minCoeff(), high = w.row(r).segment(g, group).maxCoeff();
      const double scale = std::max(high - low, 1e-5) / top;
      const double zero = std::clamp(std::nearbyint(-low / scale), 0.0, top);
      for (Eigen::Index j = g; j < g + group; ++j)
        out(r, j) = (std::clamp(std::nearbyint(w(r, j) / scale) + zero, 0.0, top) - zero) * scale;
    }
  }
  return out;
}

/// Squared error of all outputs when W is rounded with its columns scaled by s.
inline double scaled_output_error(const std::vector<MatrixXd>& weights, const MatrixXd& x, const VectorXd& s,
                                  int bits, Eigen::Index group) {
  double sum = 0;
  for (const MatrixXd& w : weights) {
    const MatrixXd rounded = round_groups(w * s.asDiagonal(), bits, group) * s.cwiseInverse().asDiagonal();
    sum += (x * (w - rounded).transpose()).squaredNorm();
  }
  return sum;
}

inline VectorXd awq_candidate(const MatrixXd& x, double ratio) {
  VectorXd s(x.cols());
  for (Eigen::Index j = 0; j < x.cols(); ++j)
    s(j) = std::max(std::pow(x.col(j).cwiseAbs().mean(), ratio), 1e-4);
  return s / std::sqrt(s.maxCoeff() * s.minCoeff());
}

}  // namespace lcomp::test
