#pragma once

#include <ATen/ATen.h>

#include <Eigen/Dense>
#include <string>

#include "lcomp/core/rng.h"

namespace lcomp::test {

/// Standard normal float64 [rows, cols]; the stream's name makes it reproducible.
inline at::Tensor normal_matrix(int64_t rows, int64_t cols, const std::string& stream, uint64_t seed = 1) {
  Rng rng(seed, stream);
  at::Tensor matrix = at::empty({rows, cols}, at::kDouble);
  for (int64_t i = 0; i < matrix.numel(); ++i) matrix.data_ptr<double>()[i] = rng.normal();
  return matrix;
}

/// sum x x^T of `tokens` inputs with strongly correlated channels, channel 5 eight times larger: [in, in]
/// float64.
inline at::Tensor correlated_moment(int64_t in, int64_t tokens, uint64_t seed = 1) {
  const at::Tensor mix = at::eye(in, at::kDouble) + 0.7 * normal_matrix(in, in, "mix", seed) / std::sqrt(in);
  at::Tensor x = at::matmul(normal_matrix(tokens, in, "tokens", seed), mix);
  if (in > 5) x.select(1, 5).mul_(8);
  return at::matmul(x.t(), x);
}

inline Eigen::MatrixXd to_eigen(const at::Tensor& matrix) {
  const at::Tensor m = matrix.to(at::kDouble).contiguous();
  using RowMajor = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  return Eigen::Map<const RowMajor>(m.data_ptr<double>(), m.size(0), m.size(1));
}

/// max |a - b| / max |b|.
inline double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  const double scale = b.abs().max().to(at::kDouble).item<double>();
  const double off = (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
  return scale == 0 ? off : off / scale;
}

}  // namespace lcomp::test
