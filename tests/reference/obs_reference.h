#pragma once

// Optimal brain surgeon and SparseGPT from their formulas, for tests: Eigen in double, explicit inverses, no
// blocks.
#include <Eigen/Dense>
#include <vector>

namespace lcomp::reference {

/// One removal after the other (Hassibi and Stork 1992): of all weights that are left the one with the least
/// w_q^2 / (2 P_qq), P the inverse of the Hessian over those left.
struct Obs {
  std::vector<Eigen::Index> order;
  std::vector<double> losses;
  Eigen::VectorXd weight;
};

inline Obs obs(Eigen::VectorXd w, const Eigen::MatrixXd& hessian, int removals) {
  Obs result;
  std::vector<Eigen::Index> left;
  for (Eigen::Index i = 0; i < w.size(); ++i) left.push_back(i);
  for (int k = 0; k < removals; ++k) {
    const auto n = static_cast<Eigen::Index>(left.size());
    Eigen::MatrixXd h(n, n);
    for (Eigen::Index i = 0; i < n; ++i) {
      for (Eigen::Index j = 0; j < n; ++j)
        h(i, j) = hessian(left[static_cast<size_t>(i)], left[static_cast<size_t>(j)]);
    }
    const Eigen::MatrixXd p = h.inverse();
    Eigen::Index best = 0;
    const auto loss = [&](Eigen::Index i) {
      return std::pow(w[left[static_cast<size_t>(i)]], 2) / (2 * p(i, i));
    };
    for (Eigen::Index i = 1; i < n; ++i) {
      if (loss(i) < loss(best)) best = i;
    }
    result.order.push_back(left[static_cast<size_t>(best)]);
    result.losses.push_back(loss(best));
    const double step = w[result.order.back()] / p(best, best);
    for (Eigen::Index i = 0; i < n; ++i) w[left[static_cast<size_t>(i)]] -= step * p(i, best);
    w[result.order.back()] = 0;
    left.erase(left.begin() + best);
  }
  result.weight = w;
  return result;
}

/// SparseGPT of one row with an N:M pattern: columns in order, each removed as OBS removes it from those not
/// yet visited; at every M-th column the M - N with the least w^2 / P_jj, P_jj taken when column j is its
/// turn.
inline Eigen::VectorXd sparsegpt_row(Eigen::VectorXd w, const Eigen::MatrixXd& a, int kept, int of) {
  const Eigen::Index n = w.size();
  std::vector<Eigen::MatrixXd> inverse;  // over the columns from j on
  for (Eigen::Index j = 0; j < n; ++j) inverse.push_back(a.bottomRightCorner(n - j, n - j).inverse());
  std::vector<bool> removed(static_cast<size_t>(n), false);
  for (Eigen::Index j = 0; j < n; ++j) {
    if (j % of == 0) {
      std::vector<std::pair<double, Eigen::Index>> scores;
      for (Eigen::Index k = j; k < j + of; ++k)
        scores.emplace_back(w[k] * w[k] / inverse[static_cast<size_t>(k)](0, 0), k);
      std::sort(scores.begin(), scores.end());
      for (int k = 0; k < of - kept; ++k)
        removed[static_cast<size_t>(scores[static_cast<size_t>(k)].second)] = true;
    }
    if (!removed[static_cast<size_t>(j)]) continue;
    const Eigen::MatrixXd& p = inverse[static_cast<size_t>(j)];
    w.tail(n - j) -= w[j] / p(0, 0) * p.col(0);
    w[j] = 0;
  }
  return w;
}

}  // namespace lcomp::reference
