#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace lcomp::eval {

/// How calls are timed.
struct TimingOptions {
  int64_t warmup = 2;      ///< rounds that do not count
  int64_t repeats = 15;    ///< rounds that do
  double shortest = 1e-3;  ///< seconds: a call that takes less is made several times in each round
  std::function<double()> clock = {};  ///< seconds; empty: wall time
};

/// The clock for calls that work on `threads` threads, the calling one among them. One thread: its processor
/// time, which is not lengthened by what other programs take. More: wall time, of a monotonic clock.
std::function<double()> clock_for(int threads);

/// Seconds of one call, as each round measured them.
struct Timing {
  std::vector<double> seconds;

  double median() const;
  /// The time that nine of ten rounds do not exceed (nearest rank).
  double p90() const;
  /// Adds another timing of as many rounds, round by round: what runs one after the other.
  Timing& operator+=(const Timing& other);
  Timing& operator*=(double factor);
};

/// Times calls in turn: every round makes each of them, so that what else the machine is doing hits all
/// alike. Throws InvalidArgument for fewer than one round, and what a call throws.
std::vector<Timing> time_in_turn(const std::vector<std::function<void()>>& calls,
                                 const TimingOptions& options = {});

/// How many times faster `mine` is than `rival`: the ratio of the medians.
double speedup(const Timing& mine, const Timing& rival);

/// Whether `mine` is faster than `rival`, timed in the same rounds: its median is lower, and it was faster in
/// at least three of four rounds. What noise could have decided does not count as faster.
bool is_faster(const Timing& mine, const Timing& rival);

}  // namespace lcomp::eval
