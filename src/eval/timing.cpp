#include "lcomp/eval/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"

namespace lcomp::eval {
namespace {

/// The value that a share of all values does not exceed.
double quantile(std::vector<double> values, double share) {
  if (values.empty()) throw InvalidArgument("Timing", "there must be a round; there is none");
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(values.size())));
  const auto place = values.begin() + std::max<int64_t>(rank - 1, 0);
  std::nth_element(values.begin(), place, values.end());
  return *place;
}

}  // namespace

std::function<double()> clock_for(int threads) {
  if (threads == 1) return [] { return cpu_seconds(CLOCK_THREAD_CPUTIME_ID); };
  return [watch = Stopwatch()] { return watch.seconds(); };
}

double Timing::median() const {
  return quantile(seconds, 0.5);
}

double Timing::p90() const {
  return quantile(seconds, 0.9);
}

Timing& Timing::operator+=(const Timing& other) {
  if (seconds.empty()) seconds.resize(other.seconds.size());
  if (seconds.size() != other.seconds.size()) {
    throw InvalidArgument("Timing::operator+=",
                          fmt::format("both must have as many rounds; they have {} and {}", seconds.size(),
                                      other.seconds.size()));
  }
  for (size_t r = 0; r < seconds.size(); ++r) seconds[r] += other.seconds[r];
  return *this;
}

Timing& Timing::operator*=(double factor) {
  for (double& s : seconds) s *= factor;
  return *this;
}

std::vector<Timing> time_in_turn(const std::vector<std::function<void()>>& calls,
                                 const TimingOptions& options) {
  if (options.repeats < 1)
    throw InvalidArgument("time_in_turn",
                          fmt::format("repeats must be from 1 up; it is {}", options.repeats));
  const auto now = options.clock ? options.clock : clock_for(0);
  const auto seconds_of = [&](const std::function<void()>& call, int64_t times) {
    const double begin = now();
    for (int64_t i = 0; i < times; ++i) call();
    return (now() - begin) / static_cast<double>(times);
  };

  std::vector<int64_t> times(calls.size(), 1);
  for (int64_t round = 0; round < options.warmup; ++round) {
    for (size_t c = 0; c < calls.size(); ++c) {
      const double once = std::max(seconds_of(calls[c], times[c]), 1e-9);
      times[c] = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(options.shortest / once)));
    }
  }
  std::vector<Timing> timings(calls.size());
  for (int64_t round = 0; round < options.repeats; ++round) {
    for (size_t c = 0; c < calls.size(); ++c) timings[c].seconds.push_back(seconds_of(calls[c], times[c]));
  }
  return timings;
}

double speedup(const Timing& mine, const Timing& rival) {
  return rival.median() / mine.median();
}

bool is_faster(const Timing& mine, const Timing& rival) {
  if (mine.seconds.size() != rival.seconds.size()) {
    throw InvalidArgument("is_faster", fmt::format("both must have as many rounds; they have {} and {}",
                                                   mine.seconds.size(), rival.seconds.size()));
  }
  size_t won = 0;
  for (size_t r = 0; r < mine.seconds.size(); ++r) won += mine.seconds[r] < rival.seconds[r] ? 1 : 0;
  return mine.median() < rival.median() && 4 * won >= 3 * mine.seconds.size();
}

}  // namespace lcomp::eval
