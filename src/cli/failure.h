#pragma once

#include <exception>
#include <string>
#include <vector>

namespace lcomp::cli {

/// Exit codes, which scripts rely on.
enum ExitCode : int {
  kDone = 0,
  kBug = 1,           ///< an internal error
  kBadUsage = 2,      ///< the command line or the job
  kBadInput = 3,      ///< an input file that is absent, unreadable, corrupt or not supported
  kNumerical = 4,     ///< numerical trouble in strict mode
  kResources = 5,     ///< out of the memory budget, memory, threads or disk space; failing system calls
  kInterrupted = 130  ///< stopped on request; the same command continues
};

/// Why a command ended.
struct Failure {
  ExitCode code = kBug;
  std::string kind;                   ///< "config", "corrupt_file" ...
  std::vector<std::string> messages;  ///< one error each
};

/// What an exception of the library, of LibTorch or of the standard library means for the command line.
Failure failure_of(const std::exception& error);

}  // namespace lcomp::cli
