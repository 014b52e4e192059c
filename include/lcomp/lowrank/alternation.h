#pragma once

#include <functional>
#include <vector>

#include "lcomp/lowrank/low_rank.h"

namespace lcomp::lowrank {

struct AlternationOptions {
  int64_t iterations = 1;
  /// Start from the low-rank part of the whole matrix, rather than from the other part.
  bool low_rank_first = false;

  void visit(FieldVisitor& v) {
    v.field("iterations", iterations, {1, 1000},
            "times that the low-rank part is fitted to what the other part leaves");
    v.field("low_rank_first", low_rank_first,
            "start from the low-rank part of the whole matrix, rather than from the other part");
  }
};

/// W ~ P + A B.
struct Alternation {
  WeightPtr part;              ///< P
  Factors low_rank;            ///< A, B
  double loss = 0;             ///< tr(D H D^T), D = W - P - A B
  std::vector<double> losses;  ///< the same after every iteration
};

/// The other part P of a matrix [out, in]: quantized, or sparse.
using PartOf = std::function<WeightPtr(const at::Tensor& target)>;

/// A matrix as the sum of a part of another kind and one of low rank, each fitted in turn to what the other
/// leaves:
///     P <- part_of(W - A B),   A B <- low_rank(W - P)   in the metric.
/// The best iterate is kept, since rounding is no projection on a convex set and may raise the loss; where
/// `part_of` is the best part in the metric (masks by Wanda's scores in a diagonal one), it never rises.
///     rounding, 1 iteration                   LQER (Zhang et al., ICML 2024; its scale, or better: H)
///     rounding, several                       LoftQ (Li et al., ICLR 2024), CALDERA (Saha et al. 2024)
///     rounding, low_rank_first                SVDQuant (Li et al., ICLR 2025, section 4.1)
///     pruning, low_rank_first, 80 iterations  OATS (Zhang and Papyan, ICLR 2025, algorithm 1)
/// The first fit of A B and the last are by `low_rank`, those between by one step of subspace iteration from
/// the one before, which costs out in rank instead of an eigenvalue problem.
///
/// weight: [out, in]. rank >= 1. Throws as `low_rank`.
Alternation alternate(const at::Tensor& weight, const InputMetric& metric, int64_t rank,
                      const PartOf& part_of, const AlternationOptions& options = {},
                      ThreadPool* pool = nullptr);

}  // namespace lcomp::lowrank
