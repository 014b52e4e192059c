#pragma once

// Sweeps and refits from their formulas, for tests: Eigen in double, one column and one row at a time.
#include <Eigen/Dense>
#include <algorithm>
#include <cmath>

namespace lcomp::reference {

/// A rounding with one scale and zero point per row and group of `group` columns; signed codes.
struct Rounding {
  Eigen::MatrixXd codes;   // [out, in]
  Eigen::MatrixXd scales;  // [out, groups]
  Eigen::MatrixXd zeros;   // [out, groups]
  Eigen::Index group = 1;
  double lowest = 0, highest = 0;

  Eigen::MatrixXd levels() const {
    Eigen::MatrixXd c = codes;
    for (Eigen::Index r = 0; r < c.rows(); ++r) {
      for (Eigen::Index j = 0; j < c.cols(); ++j) c(r, j) -= zeros(r, j / group);
    }
    return c;
  }

  Eigen::MatrixXd dense() const {
    Eigen::MatrixXd w = levels();
    for (Eigen::Index r = 0; r < w.rows(); ++r) {
      for (Eigen::Index j = 0; j < w.cols(); ++j) w(r, j) *= scales(r, j / group);
    }
    return w;
  }
};

/// One pass of coordinate descent: q_j <- nearest code to w^_j + (D A)_j / A_jj.
inline void sweep(Rounding& q, const Eigen::MatrixXd& target, const Eigen::MatrixXd& a) {
  for (Eigen::Index r = 0; r < target.rows(); ++r) {
    for (Eigen::Index j = 0; j < target.cols(); ++j) {
      const Eigen::VectorXd error = (target - q.dense()).row(r);
      const double s = q.scales(r, j / q.group), z = q.zeros(r, j / q.group);
      const double wanted = (q.codes(r, j) - z) * s + error.dot(a.col(j)) / a(j, j);
      q.codes(r, j) = std::clamp(std::nearbyint(wanted / s) + z, q.lowest, q.highest);
    }
  }
}

/// The scales with the least (w - sum_g s_g c_g) A (.)^T of one row, groups without codes left out.
inline Eigen::VectorXd best_scales(const Rounding& q, const Eigen::MatrixXd& target, const Eigen::MatrixXd& a,
                                   Eigen::Index row) {
  const Eigen::MatrixXd levels = q.levels();
  Eigen::MatrixXd basis = Eigen::MatrixXd::Zero(q.scales.cols(), target.cols());
  for (Eigen::Index j = 0; j < target.cols(); ++j) basis(j / q.group, j) = levels(row, j);
  const Eigen::MatrixXd m = basis * a * basis.transpose();
  const Eigen::VectorXd r = basis * a * target.row(row).transpose();
  return m.ldlt().solve(r);
}

}  // namespace lcomp::reference
