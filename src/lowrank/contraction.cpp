#include "lowrank/contraction.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "lcomp/core/checked.h"

namespace lcomp::lowrank {
namespace {

/// Products narrower than this are faster as one product of the rearranged state.
constexpr int64_t kNarrow = 16;

}  // namespace

at::Tensor contract(const at::Tensor& matrix, const at::Tensor& state) {
  const int64_t batch = state.size(0), columns = state.size(1), width = state.size(2);
  if (batch == 1) return matrix.mm(state[0]).unsqueeze(0);
  if (width >= kNarrow) return at::matmul(matrix, state);
  const at::Tensor vectors = state.transpose(1, 2).reshape({batch * width, columns});
  return vectors.mm(matrix.t()).reshape({batch, width, matrix.size(0)}).transpose(1, 2);
}

at::Tensor kronecker_rows(const std::vector<at::Tensor>& vectors) {
  const int64_t count = vectors.front().size(0), rank = vectors.front().size(1);
  if (vectors.size() == 1) return vectors.front().sum(1);
  at::Tensor left = vectors.front();
  for (size_t j = 1; j + 1 < vectors.size(); ++j)
    left = (left.unsqueeze(3) * vectors[j].unsqueeze(2)).reshape({count, rank, -1});
  return at::bmm(left.transpose(1, 2), vectors.back()).reshape({count, -1});
}

std::vector<at::Tensor> digits_of(const at::Tensor& ids, const std::vector<int64_t>& bases) {
  std::vector<at::Tensor> digits(bases.size());
  at::Tensor rest = ids;
  for (size_t k = bases.size(); k > 0; --k) {
    digits[k - 1] = at::remainder(rest, bases[k - 1]);
    rest = at::floor_divide(rest, bases[k - 1]);
  }
  return digits;
}

void in_pieces(int64_t count, int64_t most, const std::function<void(int64_t, int64_t)>& piece) {
  for (int64_t begin = 0; begin < count; begin += most) piece(begin, std::min(most, count - begin));
}

int64_t piece_size(int64_t each) {
  return std::max<int64_t>(1, kMostTemporary / std::max<int64_t>(1, each));
}

}  // namespace lcomp::lowrank
