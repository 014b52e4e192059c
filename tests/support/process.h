#pragma once

#include <chrono>
#include <string>
#include <vector>

namespace lcomp::test {

/// How a program ended, and what it wrote.
struct ProcessResult {
  int exit_code = -1;  ///< 128 + the signal's number when one killed it
  std::string out;
  std::string err;
};

/// Runs a program to its end. `arguments[0]` is its path. Standard output and error go to files; neither is a
/// terminal.
ProcessResult run_process(const std::vector<std::string>& arguments);

/// Runs the `lcomp` under test ($LCOMP_BINARY) with these arguments.
ProcessResult run_lcomp(std::vector<std::string> arguments);

/// The same after a shell has run `limits`, say "ulimit -f 100".
ProcessResult run_lcomp_within(const std::string& limits, std::vector<std::string> arguments);

/// A program that runs beside the test.
class Process {
 public:
  explicit Process(const std::vector<std::string>& arguments, const std::string& out_file,
                   const std::string& err_file);
  /// Kills the program if it still runs.
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  int id() const { return pid_; }
  void send(int signal) const;
  /// The exit code, as in `ProcessResult`.
  int wait();
  /// Waits for so long at most; whether the program has ended.
  bool ends_within(std::chrono::microseconds time);

 private:
  int pid_ = -1;
  bool ended_ = false;
  int status_ = 0;
};

}  // namespace lcomp::test
