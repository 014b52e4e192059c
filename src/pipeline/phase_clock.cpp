#include "pipeline/phase_clock.h"

#include <sys/resource.h>
#include <unistd.h>

#include <ctime>
#include <fstream>

namespace lcomp::pipeline {
namespace {

double seconds_of(const timeval& t) {
  return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
}

/// The value of the first line of /proc/cpuinfo that begins with `key`.
std::string cpuinfo(const std::string& key) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.starts_with(key) && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

}  // namespace

CpuSeconds cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return {seconds_of(usage.ru_utime), seconds_of(usage.ru_stime)};
}

int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

PhaseClock::Scope::Scope(PhaseClock& clock, std::string phase, double* also)
    : clock_(clock), phase_(std::move(phase)), also_(also) {}

PhaseClock::Scope::~Scope() {
  const double seconds = wall_seconds();
  const CpuSeconds now = cpu_seconds();
  auto row = std::find_if(clock_.rows_.begin(), clock_.rows_.end(),
                          [&](const PhaseRow& r) { return r.phase == phase_; });
  if (row == clock_.rows_.end()) row = clock_.rows_.insert(row, PhaseRow{phase_, 0, 0});
  row->wall_seconds += seconds;
  if (also_ != nullptr) *also_ += seconds;
  row->cpu_seconds += now.user + now.system - cpu_.user - cpu_.system;
}

Timings PhaseClock::timings() const {
  const CpuSeconds now = cpu_seconds();
  Timings out;
  out.wall_seconds = watch_.seconds();
  out.cpu_user_seconds = now.user - cpu_.user;
  out.cpu_system_seconds = now.system - cpu_.system;
  out.peak_rss_bytes = peak_rss_bytes();
  out.phases = rows_;
  return out;
}

HostFacts host_facts(int threads, const std::string& compute) {
  HostFacts facts;
  facts.processor = cpuinfo("model name");
  const std::string flags = fmt::format(" {} ", cpuinfo("flags"));
  for (const char* name :
       {"avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}) {
    if (flags.find(fmt::format(" {} ", name)) != std::string::npos) facts.instructions.emplace_back(name);
  }
  facts.logical_cores = sysconf(_SC_NPROCESSORS_ONLN);
  facts.threads = threads;
  facts.memory_bytes = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
  facts.compute = compute;
  return facts;
}

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &utc);
  return text;
}

}  // namespace lcomp::pipeline
