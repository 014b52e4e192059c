#pragma once

#include <cstdint>
#include <filesystem>

#include "pipeline/job_runs.h"

/// Runs in a process of their own, started afresh: to be killed, or to have their memory measured.
namespace lcomp::test {

struct ChildRun {
  bool finished = false;   ///< the run came to its end
  bool killed = false;     ///< by SIGKILL
  int64_t peak_bytes = 0;  ///< highest resident set of the process; 0 when it was killed
};

/// Runs `job` in a child process, which kills itself with SIGKILL at its sign of life number `kill_at` (as
/// `Watcher` counts them); never when that is negative. With `most_bytes` above 0 the system grants it no
/// more resident memory: a control group kills it at the first page beyond. Where none can be made,
/// RLIMIT_DATA refuses it mappings beyond so much, of which those that were there before the run and
/// untouched do not count.
ChildRun run_in_child(const Json& job, int kill_at = -1, int64_t most_bytes = 0);

/// Whether `most_bytes` is kept by a control group.
bool has_memory_groups();

}  // namespace lcomp::test
