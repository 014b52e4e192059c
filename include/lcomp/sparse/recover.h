#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/core/options.h"
#include "lcomp/sparse/sparsity.h"

namespace lcomp::sparse {

/// How the recovered weights lie.
enum class RecoveredAs {
  kRows,    ///< the best of each row, stored as CSR
  kBlocks,  ///< the best blocks of each row of blocks, stored as Blocked-ELL
};

struct RecoverOptions {
  double recover = 0.25;
  RecoveredAs recover_as = RecoveredAs::kRows;
  int64_t block_edge = 64;
  int64_t blocks_per_row = 8;

  void visit(FieldVisitor& v);
};

/// Which of the removed weights come back: bool [out, in], only where `kept` is false. WRP (Tan, Zhang, Wei:
/// WRP: Weight Recover Prune for Structured Sparsity, ACL 2024):
///   rows    of each row those among the floor(recover x in) largest scores that the pattern removed;
///   blocks  of each row of block_edge x block_edge blocks the `blocks_per_row` whose removed scores add up
///   to most,
///           all that the pattern removed of them.
/// scores: [out, in], such as `wanda`'s; kept: bool [out, in].
at::Tensor recovered(const at::Tensor& scores, const at::Tensor& kept, const RecoverOptions& options);

/// How many of each row come back if scores come in random order: recover_as rows, the mean over t in [0,
/// recover] of P(at least N of M - 1 others are larger) x in x recover; blocks, as many removed weights as
/// the blocks hold.
int64_t expected_recovered(int64_t in, const NofM& pattern, const RecoverOptions& options);

}  // namespace lcomp::sparse

namespace lcomp {
template <>
struct EnumNames<sparse::RecoveredAs> {
  static constexpr std::array<std::string_view, 2> names = {"rows", "blocks"};
};
}  // namespace lcomp
