#pragma once

#include <cstdint>
#include <string_view>

namespace lcomp {

/// Deterministic random numbers, the same on every platform (SplitMix64; Steele, Lea and Flood 2014).
/// A stream derives from (job seed, name), so neither order nor threads nor a resume changes what it yields.
class Rng {
 public:
  explicit Rng(uint64_t seed, std::string_view stream = "");

  uint64_t next();
  /// Uniform in [0, bound), bound > 0, without modulo bias.
  uint64_t below(uint64_t bound);
  /// Uniform in [0, 1).
  double uniform();
  /// Standard normal (Box-Muller).
  double normal();

 private:
  uint64_t state_;
};

}  // namespace lcomp
