#include "lcomp/lowrank/head_tucker.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "core/one_thread.h"
#include "lcomp/core/error.h"
#include "lcomp/lowrank/tucker.h"

namespace lcomp::lowrank {

HeadBases head_bases(const std::vector<at::Tensor>& slices, int64_t head_dim, int64_t hidden_rank,
                     int64_t head_rank) {
  std::vector<at::Tensor> heads;  // [heads, head_dim, hidden]
  for (const at::Tensor& slice : slices) {
    if (slice.dim() != 2 || slice.size(0) % head_dim != 0 || slice.size(1) != slices[0].size(-1)) {
      throw InvalidArgument("head_bases",
                            fmt::format("every slice must be [heads x {}, {}]; one is [{}]", head_dim,
                                        slices[0].size(-1), fmt::join(slice.sizes(), ", ")));
    }
    heads.push_back(slice.to(at::kDouble).reshape({-1, head_dim, slice.size(1)}));
  }
  const Tucker found = hooi(at::cat(heads).permute({2, 1, 0}).contiguous(), {hidden_rank, head_rank}, {0, 1});
  return {found.factors[0], found.factors[1], found.relative_error};
}

at::Tensor heads_projected(const at::Tensor& weight, const at::Tensor& head_basis) {
  const int64_t head_dim = head_basis.size(0), n = weight.size(1);
  // [heads, head_dim, n] x U_2^T along the heads' dimension.
  const at::Tensor by_head = weight.to(at::kDouble).reshape({-1, head_dim, n}).transpose(1, 2);
  const at::Tensor projected = one_thread_product(by_head.reshape({-1, head_dim}), head_basis);
  return projected.reshape({by_head.size(0), n, -1}).transpose(1, 2).reshape({-1, n}).contiguous();
}

}  // namespace lcomp::lowrank
