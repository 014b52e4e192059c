#pragma once

#include <cstdint>

namespace lcomp::eval {

/// What one token's logits add up to, gathered tile by tile over the vocabulary (online softmax): with m the
/// largest logit so far, `sum` = sum_v exp(z_v - m).
struct LogitSums {
  double max = -1e30;
  double sum = 0;
  double target = 0;  ///< logit of the token that follows
  int64_t best = 0;   ///< lowest id of the largest logit

  double log_normalizer() const;
};

/// The same for the reference's logits p beside the model's q: `cross` = sum_v exp(p_v - m) (p_v - q_v).
struct ReferenceSums {
  LogitSums own;
  double cross = 0;

  /// KL(p || q) in nats, q's sums being `model`.
  double divergence(const LogitSums& model) const;
};

/// Adds the logits of vocabulary entries [first_id, first_id + count).
void add_tile(const float* logits, int64_t first_id, int64_t count, LogitSums& sums);
void add_tile(const float* reference, const float* model, int64_t first_id, int64_t count,
              ReferenceSums& sums);

}  // namespace lcomp::eval
