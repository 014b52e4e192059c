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
/// `Watcher` counts them); never when that is negative. With `most_bytes` above 0 the system refuses it
/// memory beyond so much: what it has mapped before the run without touching it (the libraries' buffers) does
/// not count.
ChildRun run_in_child(const Json& job, int kill_at = -1, int64_t most_bytes = 0);

}  // namespace lcomp::test
