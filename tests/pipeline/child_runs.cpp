#include "pipeline/child_runs.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>

#include "cli/memory_policy.h"
#include "lcomp/core/threads.h"

namespace fs = std::filesystem;

namespace {

constexpr const char* kJobVariable = "LCOMP_TEST_CHILD_JOB";
constexpr const char* kKillVariable = "LCOMP_TEST_CHILD_KILL_AT";
constexpr const char* kLimitVariable = "LCOMP_TEST_CHILD_MOST_BYTES";

fs::path result_file(const fs::path& job) {
  return job.string() + ".peak";
}

/// A line of /proc/self/status: of this program's memory alone, unlike ru_maxrss, which is inherited from the
/// parent.
int64_t status_bytes(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with(key + ":")) return 1024 * std::stoll(line.substr(key.size() + 1));
  }
  return 0;
}

/// Leaves room for `bytes` of resident memory. The limit is one of private mappings, touched or not.
void limit_memory(int64_t bytes, int threads) {
  const lcomp::ThreadPool pool(threads);  // OpenBLAS keeps the buffers that this makes it take
  const auto room = static_cast<rlim_t>(bytes - status_bytes("VmRSS") + status_bytes("VmData"));
  const rlimit limit{room, room};
  REQUIRE(::setrlimit(RLIMIT_DATA, &limit) == 0);
}

}  // namespace

namespace lcomp::test {

ChildRun run_in_child(const Json& job, int kill_at, int64_t most_bytes) {
  const TempDir dir;
  const fs::path file = dir / "job.json";
  write_text(file, job.dump());
  const std::string kill = std::to_string(kill_at);
  const std::string limit = std::to_string(most_bytes);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::setenv(kJobVariable, file.c_str(), 1);
    ::setenv(kKillVariable, kill.c_str(), 1);
    ::setenv(kLimitVariable, limit.c_str(), 1);
    // A new program: threads of this one (OpenMP, BLAS) do not survive a fork.
    ::execl("/proc/self/exe", "lcomp_pipeline_tests", "[child-process]", "-o", (dir / "log").c_str(),
            nullptr);
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) REQUIRE(errno == EINTR);
  ChildRun result;
  result.killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
  result.finished = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (result.finished) result.peak_bytes = std::stoll(io::read_file(result_file(file)));
  return result;
}

}  // namespace lcomp::test

// Not a test of its own: what `run_in_child` runs. Does nothing when it is run by hand.
TEST_CASE("child process of a test", "[.][child-process]") {
  const char* job_file = std::getenv(kJobVariable);
  const char* kill_at = std::getenv(kKillVariable);
  const char* most_bytes = std::getenv(kLimitVariable);
  if (job_file == nullptr || kill_at == nullptr || most_bytes == nullptr) return;
  lcomp::cli::set_memory_policy();
  const lcomp::test::Json job = lcomp::test::read_json(job_file);
  if (const int64_t bytes = std::atoll(most_bytes); bytes > 0)
    limit_memory(bytes, job.at("threads").get<int>());
  lcomp::test::Watcher watcher;
  watcher.at_sign = [last = std::atoi(kill_at)](int sign) {
    if (sign == last) ::kill(::getpid(), SIGKILL);
  };
  lcomp::test::run(job, watcher);
  std::ofstream(result_file(job_file)) << status_bytes("VmHWM");
}
