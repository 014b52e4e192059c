#include "model/rotary.h"

#include <cmath>

namespace lcomp::model {

std::shared_ptr<const RotaryTable> RotaryTables::tables_for(int64_t tokens) const {
  const std::lock_guard lock(mutex_);
  // Most types share the longest table made so far.
  const bool exact = spec_.depends_on_length();
  if (latest_ && (exact ? latest_->tokens == tokens : latest_->tokens >= tokens)) return latest_;
  auto table = std::make_shared<RotaryTable>();
  table->tokens = tokens;
  const std::vector<float> frequencies = spec_.inverse_frequencies(tokens);
  const auto scaling = static_cast<float>(spec_.attention_scaling);
  table->cosines.reserve(static_cast<size_t>(tokens) * frequencies.size());
  table->sines.reserve(static_cast<size_t>(tokens) * frequencies.size());
  for (int64_t t = 0; t < tokens; ++t) {
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(t) * frequency;
      table->cosines.push_back(std::cos(angle) * scaling);
      table->sines.push_back(std::sin(angle) * scaling);
    }
  }
  latest_ = table;
  return table;
}

}  // namespace lcomp::model
