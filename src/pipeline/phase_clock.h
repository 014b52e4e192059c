#pragma once

#include <string>
#include <vector>

#include "core/stopwatch.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// Processor seconds of this process so far, in user mode and in the kernel.
struct CpuSeconds {
  double user = 0;
  double system = 0;
};
CpuSeconds cpu_seconds();

/// Highest resident set of this process so far, in bytes.
int64_t peak_rss_bytes();

/// Adds up wall and processor seconds by phase.
class PhaseClock {
 public:
  /// Measures from construction to destruction. The wall seconds are added to `also` as well, if it is given.
  class Scope {
   public:
    Scope(PhaseClock& clock, std::string phase, double* also = nullptr);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    double wall_seconds() const { return watch_.seconds(); }

   private:
    PhaseClock& clock_;
    std::string phase_;
    double* also_;
    Stopwatch watch_;
    CpuSeconds cpu_ = cpu_seconds();
  };

  Timings timings() const;

 private:
  Stopwatch watch_;
  CpuSeconds cpu_ = cpu_seconds();
  std::vector<PhaseRow> rows_;
};

/// What the report says of the machine; `compute` is the precision of the forward passes.
HostFacts host_facts(int threads, const std::string& compute);

/// "2024-05-01T12:00:00Z"
std::string utc_now();

}  // namespace lcomp::pipeline
