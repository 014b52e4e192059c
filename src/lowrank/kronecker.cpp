#include "lcomp/lowrank/kronecker.h"

#include <ATen/ATen.h>

namespace lcomp::lowrank {

KroneckerSum kronecker_sum(const at::Tensor& weight, const KroneckerShape& shape, int64_t rank,
                           linalg::SvdSolver solver) {
  const TrainMatrix matrix =
      tt_matrix(weight, {shape.m1, shape.m2}, {shape.n1, shape.n2}, {.ranks = {rank}, .solver = solver});
  KroneckerSum sum{
      .left = {}, .right = {}, .out = matrix.out, .in = matrix.in, .relative_error = matrix.relative_error};
  // The train has orthonormal columns on the left and the singular values on the right.
  const at::Tensor right = matrix.cores[1].squeeze(3);
  const at::Tensor roots = right.flatten(1).norm(2, 1).sqrt().reshape({-1, 1, 1});
  sum.left = (matrix.cores[0].squeeze(0).permute({2, 0, 1}) * roots).contiguous();
  sum.right = at::where(roots > 0, right / roots, right);
  return sum;
}

TrainMatrix KroneckerSum::train() const {
  return {.cores = {left.permute({1, 2, 0}).unsqueeze(0).contiguous(), right.unsqueeze(3)},
          .out = out,
          .in = in,
          .relative_error = relative_error};
}

at::Tensor KroneckerSum::full() const {
  return train().full();
}

}  // namespace lcomp::lowrank
