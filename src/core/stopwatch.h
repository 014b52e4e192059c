#pragma once

#include <chrono>
#include <ctime>

namespace lcomp {

/// Wall seconds since it was made, of a monotonic clock.
class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// Processor seconds used so far: of the process (CLOCK_PROCESS_CPUTIME_ID) or of the calling thread
/// (CLOCK_THREAD_CPUTIME_ID).
inline double cpu_seconds(clockid_t clock) {
  timespec time{};
  clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Adds the processor seconds of its lifetime, those of the whole process, to a sum: what waits for other
/// programs does not count.
class CpuTimer {
 public:
  explicit CpuTimer(double& sum) : sum_(sum) {}
  ~CpuTimer() { sum_ += now() - start_; }
  CpuTimer(const CpuTimer&) = delete;
  CpuTimer& operator=(const CpuTimer&) = delete;

 private:
  static double now() { return cpu_seconds(CLOCK_PROCESS_CPUTIME_ID); }

  double& sum_;
  double start_ = now();
};

}  // namespace lcomp
