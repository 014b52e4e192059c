#include "lcomp/lowrank/alternation.h"

#include <ATen/ATen.h>

namespace lcomp::lowrank {

Alternation alternate(const at::Tensor& weight, const InputMetric& metric, int64_t rank,
                      const PartOf& part_of, const AlternationOptions& options, ThreadPool* pool) {
  const at::Tensor w = weight.to(at::kDouble);
  Alternation best;
  Factors current;
  if (options.low_rank_first) current = low_rank(w, metric, rank, Solver::kAuto, {}, pool);
  for (int64_t i = 0; i < options.iterations; ++i) {
    WeightPtr part = part_of(current.left.defined() ? w - current.product() : w);
    const at::Tensor rest = w - part->dense();
    const bool exact = !current.left.defined() || i + 1 == options.iterations;
    current = exact ? low_rank(rest, metric, rank, Solver::kAuto, {}, pool)
                    : low_rank_from(rest, metric, current, pool);
    best.losses.push_back(current.tail);
    if (best.part != nullptr && current.tail >= best.loss) continue;
    best.part = std::move(part);
    best.low_rank = current;
    best.loss = current.tail;
  }
  return best;
}

}  // namespace lcomp::lowrank
