#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "lcomp/model/architecture.h"

namespace lcomp::model {

/// Cosines and sines of every position's angles, `[tokens, dims / 2]` each, float32.
struct RotaryTable {
  int64_t tokens = 0;
  std::vector<float> cosines;
  std::vector<float> sines;
};

/// Makes tables on demand and keeps them; safe to call from several threads.
class RotaryTables {
 public:
  explicit RotaryTables(RopeSpec spec) : spec_(std::move(spec)) {}

  /// A table of at least `tokens` positions for a sequence of `tokens` tokens.
  std::shared_ptr<const RotaryTable> tables_for(int64_t tokens) const;

 private:
  RopeSpec spec_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const RotaryTable> latest_;
};

}  // namespace lcomp::model
