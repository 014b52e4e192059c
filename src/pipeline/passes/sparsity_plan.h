#pragma once

#include "lcomp/core/weight.h"
#include "lcomp/pipeline/method.h"
#include "lcomp/sparse/formats.h"
#include "lcomp/sparse/sparsity.h"

namespace lcomp::pipeline {

/// How what is left of a pruned matrix is stored.
enum class SparseStorage { kAuto, kDense, kBitmask, kCsr, kTwoOfFour, kBlockedEll, kTiledCsl };

struct SparseStorageOptions {
  SparseStorage storage = SparseStorage::kAuto;

  void visit(FieldVisitor& v);
};

/// What pruning makes of an operator: checks the pattern against the shape and counts the bytes of the format
/// that will be taken.
PlannedWeight plan_sparse(const sparse::Sparsity& sparsity, const SparseStorageOptions& storage,
                          const char* method, const PlannedOperator& op);

/// A pruned float matrix [out, in] in the model's type and the format asked for.
WeightPtr store_sparse(const at::Tensor& pruned, const SparseStorageOptions& storage,
                       at::ScalarType model_dtype);

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::SparseStorage> {
  static constexpr std::array<std::string_view, 7> names = {"auto", "dense",       "bitmask",  "csr",
                                                            "2:4",  "blocked_ell", "tiled_csl"};
};
}  // namespace lcomp
