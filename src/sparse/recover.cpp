#include "lcomp/sparse/recover.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"

namespace lcomp::sparse {
namespace {

/// The elements of the best blocks.
at::Tensor best_blocks(const at::Tensor& scores, const RecoverOptions& options) {
  const int64_t out = scores.size(0), in = scores.size(1), edge = options.block_edge;
  const int64_t rows = ceil_div(out, edge), columns = ceil_div(in, edge);
  at::Tensor padded = at::zeros({rows * edge, columns * edge}, at::kDouble);
  padded.narrow(0, 0, out).narrow(1, 0, in).copy_(scores);
  const at::Tensor sums = padded.reshape({rows, edge, columns, edge}).sum({1, 3});
  const double removed = static_cast<double>(std::max<int64_t>(0, columns - options.blocks_per_row));
  const at::Tensor best = select_kept(sums, {.sparsity = removed / static_cast<double>(columns)});
  return best.repeat_interleave(edge, 0).repeat_interleave(edge, 1).narrow(0, 0, out).narrow(1, 0, in);
}

}  // namespace

void RecoverOptions::visit(FieldVisitor& v) {
  v.field("recover", recover, {0, 1},
          "recover_as rows: of this share of each row with the largest scores, what the pattern removed "
          "comes back");
  v.field("recover_as", recover_as, "single weights of each row (rows), or whole blocks (blocks)");
  v.field("block_edge", block_edge, {1}, "rows and columns of a block");
  v.field("blocks_per_row", blocks_per_row, {1}, "blocks that come back in each row of blocks");
}

at::Tensor recovered(const at::Tensor& scores, const at::Tensor& kept, const RecoverOptions& options) {
  RecoverOptions copy = options;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, "recovered");
  if (kept.scalar_type() != at::kBool || kept.sizes() != scores.sizes())
    throw InvalidArgument("recovered", "the mask must be bool and of the shape of the scores");
  const at::Tensor removed = kept.logical_not();
  if (options.recover_as == RecoveredAs::kBlocks)
    return best_blocks(scores.to(at::kDouble) * removed, options).logical_and(removed);
  const int64_t in = scores.size(1), count = share_of(options.recover, in);
  const double share = static_cast<double>(in - count) / static_cast<double>(in);
  return select_kept(scores, {.sparsity = share}).logical_and(removed);
}

int64_t expected_recovered(int64_t in, const NofM& pattern, const RecoverOptions& options) {
  const auto columns = static_cast<double>(in);
  if (options.recover_as == RecoveredAs::kBlocks) {
    const auto removed = static_cast<double>(pattern.of - pattern.kept) / static_cast<double>(pattern.of);
    return static_cast<int64_t>(
        removed *
        std::min<double>(columns, static_cast<double>(options.block_edge * options.blocks_per_row)));
  }
  constexpr int kSteps = 200;
  double mean = 0;
  for (int i = 0; i < kSteps; ++i) {
    const double t = options.recover * (i + 0.5) / kSteps;  // how many are larger, as a share
    double fewer = 0, binomial = 1;                         // P(Bin(M - 1, t) < N), C(M - 1, k)
    for (int64_t k = 0; k < pattern.kept; ++k) {
      const auto left = static_cast<double>(pattern.of - 1 - k);
      fewer += binomial * std::pow(t, static_cast<double>(k)) * std::pow(1 - t, left);
      binomial *= left / static_cast<double>(k + 1);
    }
    mean += (1 - fewer) / kSteps;
  }
  return static_cast<int64_t>(std::lround(mean * options.recover * columns));
}

}  // namespace lcomp::sparse
