#include "pipeline/passes/sparsity_plan.h"

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/sparse/sparse_weight.h"

namespace lcomp::pipeline {
namespace {

using sparse::SparseFormat;

std::optional<SparseFormat> asked_for(SparseStorage storage) {
  switch (storage) {
    case SparseStorage::kDense:
      return SparseFormat::kDense;
    case SparseStorage::kBitmask:
      return SparseFormat::kBitmask;
    case SparseStorage::kCsr:
      return SparseFormat::kCsr;
    case SparseStorage::kTwoOfFour:
      return SparseFormat::kTwoOfFour;
    case SparseStorage::kBlockedEll:
      return SparseFormat::kBlockedEll;
    case SparseStorage::kTiledCsl:
      return SparseFormat::kTiledCsl;
    case SparseStorage::kAuto:
      break;
  }
  return std::nullopt;
}

/// At most two of four are kept: the pattern is 2:4, 1:4, 4:8 is not.
bool fits_two_of_four(const sparse::Sparsity& sparsity) {
  const auto structure = sparsity.n_of_m();
  return structure && structure->of == 4 && structure->kept <= 2;
}

/// A share that a pattern leaves no room for, and one that leaves nothing.
void refuse_idle(const sparse::Sparsity& sparsity, const char* method) {
  const auto pattern = sparsity.n_of_m();
  if (!pattern && sparsity.sparsity == 1)
    throw InvalidArgument(method, "sparsity must be below 1, at which no weight is left; it is 1");
  if (!pattern || sparsity.sparsity == sparse::Sparsity{}.sparsity) return;
  const double removed = 1 - static_cast<double>(pattern->kept) / static_cast<double>(pattern->of);
  if (std::abs(sparsity.sparsity - removed) < 1e-9) return;
  throw InvalidArgument(method,
                        fmt::format("sparsity must be left out with pattern {}, which removes {:.4g}; it "
                                    "is {}",
                                    sparsity.pattern, removed, sparsity.sparsity));
}

}  // namespace

void SparseStorageOptions::visit(FieldVisitor& v) {
  v.field("storage", storage,
          "format of the pruned matrices: auto takes the smallest, dense where none is smaller than that");
}

PlannedWeight plan_sparse(const sparse::Sparsity& sparsity, const SparseStorageOptions& storage,
                          const char* method, const PlannedOperator& op) {
  const int64_t out = op.out_features, in = op.in_features;
  sparsity.validate(in, method, op.name);
  refuse_idle(sparsity, method);
  const auto element = static_cast<int64_t>(c10::elementSize(op.dtype));
  const int64_t nonzero = out * in - sparsity.removed(out, in);
  const bool structured = fits_two_of_four(sparsity);
  const auto asked = asked_for(storage.storage);
  if (asked == SparseFormat::kTwoOfFour && !structured)
    throw InvalidArgument(method, "pattern must be 2:4 or 1:4 for storage 2:4; it is " + sparsity.pattern);
  if (asked == SparseFormat::kTiledCsl && op.dtype == at::kFloat)
    throw InvalidArgument(method,
                          "the model must be bfloat16 or float16 for storage tiled_csl; it is float32");
  const SparseFormat format = asked ? *asked : sparse::smallest_format(out, in, nonzero, element, structured);
  if (format == SparseFormat::kBlockedEll) {
    // A block is left out only where all of it is 0, which nothing but the weights can tell.
    return {fmt::format("{}, blocked_ell (at most all blocks)", sparsity.describe()),
            sparse::blocked_ell_bytes(out, in, ceil_div(in, sparse::kStoredBlockEdge), element)};
  }
  return {fmt::format("{}, {}", sparsity.describe(), name_of(format)),
          sparse::sparse_bytes(format, out, in, nonzero, element)};
}

WeightPtr store_sparse(const at::Tensor& pruned, const SparseStorageOptions& storage,
                       at::ScalarType model_dtype) {
  const at::Tensor matrix = pruned.to(model_dtype);
  const auto asked = asked_for(storage.storage);
  const SparseFormat format =
      asked ? *asked
            : sparse::smallest_format(matrix.size(0), matrix.size(1), matrix.count_nonzero().item<int64_t>(),
                                      static_cast<int64_t>(matrix.element_size()),
                                      sparse::is_two_of_four(matrix));
  return std::make_shared<sparse::SparseWeight>(matrix, format);
}

}  // namespace lcomp::pipeline
