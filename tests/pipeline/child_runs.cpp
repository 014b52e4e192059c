#include "pipeline/child_runs.h"

#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <optional>

#include "cli/memory_policy.h"
#include "lcomp/core/threads.h"

namespace fs = std::filesystem;

namespace {

constexpr const char* kJobVariable = "LCOMP_TEST_CHILD_JOB";
constexpr const char* kKillVariable = "LCOMP_TEST_CHILD_KILL_AT";
constexpr const char* kLimitVariable = "LCOMP_TEST_CHILD_MOST_BYTES";
constexpr const char* kGroupVariable = "LCOMP_TEST_CHILD_GROUP";

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

bool write_value(const fs::path& file, int64_t value) {
  std::ofstream stream(file);
  stream << value << std::flush;
  return stream.good();
}

/// A control group below this process's own that limits memory, of cgroup v1 or v2; an empty path where there
/// is none or this process may not make one.
class MemoryGroup {
 public:
  MemoryGroup() {
    std::ifstream groups("/proc/self/cgroup");
    for (std::string line; std::getline(groups, line);) {
      const std::string path = line.substr(line.rfind(':') + 1);
      if (line.find(":memory:") != std::string::npos)
        make("/sys/fs/cgroup/memory" + path, "memory.limit_in_bytes");
      if (line.starts_with("0::")) make("/sys/fs/cgroup" + path, "memory.max");
    }
  }
  ~MemoryGroup() {
    if (!path_.empty()) ::rmdir(path_.c_str());
  }
  MemoryGroup(const MemoryGroup&) = delete;
  MemoryGroup& operator=(const MemoryGroup&) = delete;

  /// The file that takes the limit; empty without a group.
  fs::path limit_file() const { return path_.empty() ? fs::path() : path_ / limit_name_; }

 private:
  void make(const fs::path& parent, const std::string& limit_name) {
    const fs::path path = parent / ("lcomp-test-" + std::to_string(::getpid()));
    if (!path_.empty() || ::mkdir(path.c_str(), 0755) != 0) return;
    limit_name_ = limit_name;
    path_ = path;
    if (write_value(limit_file(), int64_t{1} << 40)) return;
    ::rmdir(path.c_str());
    path_.clear();
  }

  fs::path path_;
  std::string limit_name_;
};

/// Puts this process into the group of that limit, from where it cannot swap.
bool join_group(const fs::path& limit, int64_t bytes) {
  const fs::path group = limit.parent_path();
  if (!write_value(limit, bytes)) return false;
  std::ifstream swaps("/proc/swaps");
  const auto lines = std::count(std::istreambuf_iterator<char>(swaps), {}, '\n');
  if (lines > 1 && !write_value(group / "memory.memsw.limit_in_bytes", bytes) &&
      !write_value(group / "memory.swap.max", 0))
    return false;
  return write_value(group / "cgroup.procs", ::getpid());
}

/// Files in memory, which a working directory on a tmpfs has, would count.
bool is_in_memory(const fs::path& folder) {
  struct statfs facts {};
  return ::statfs(folder.c_str(), &facts) == 0 && facts.f_type == TMPFS_MAGIC;
}

bool can_limit_by_group() {
  const MemoryGroup group;
  if (group.limit_file().empty() || is_in_memory(fs::temp_directory_path())) return false;
  const pid_t child = ::fork();
  if (child == 0) ::_exit(join_group(group.limit_file(), int64_t{1} << 40) ? 0 : 1);
  int status = 1;
  return child > 0 && ::waitpid(child, &status, 0) == child && status == 0;
}

/// Leaves room for `bytes` of resident memory, by the group or, without one, by a limit of private mappings,
/// touched or not.
void limit_memory(int64_t bytes, int threads, const fs::path& group_limit) {
  const lcomp::ThreadPool pool(threads);  // OpenBLAS keeps the buffers that this makes it take
  const int64_t room = bytes - status_bytes("VmRSS");
  if (!group_limit.empty()) {  // what is resident stays charged to the group before
    REQUIRE(join_group(group_limit, room));
    return;
  }
  const auto data = static_cast<rlim_t>(room + status_bytes("VmData"));
  const rlimit limit{data, data};
  REQUIRE(::setrlimit(RLIMIT_DATA, &limit) == 0);
}

}  // namespace

namespace lcomp::test {

bool has_memory_groups() {
  static const bool has = can_limit_by_group();
  return has;
}

ChildRun run_in_child(const Json& job, int kill_at, int64_t most_bytes) {
  const TempDir dir;
  const fs::path file = dir / "job.json";
  write_text(file, job.dump());
  const std::string kill = std::to_string(kill_at);
  const std::string limit = std::to_string(most_bytes);
  std::optional<MemoryGroup> group;
  if (most_bytes > 0 && has_memory_groups()) group.emplace();
  const std::string group_limit = group ? group->limit_file().string() : "";
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::setenv(kJobVariable, file.c_str(), 1);
    ::setenv(kKillVariable, kill.c_str(), 1);
    ::setenv(kLimitVariable, limit.c_str(), 1);
    ::setenv(kGroupVariable, group_limit.c_str(), 1);
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
  const char* group = std::getenv(kGroupVariable);
  if (job_file == nullptr || kill_at == nullptr || most_bytes == nullptr || group == nullptr) return;
  lcomp::cli::set_memory_policy();
  const lcomp::test::Json job = lcomp::test::read_json(job_file);
  if (const int64_t bytes = std::atoll(most_bytes); bytes > 0)
    limit_memory(bytes, job.at("threads").get<int>(), group);
  lcomp::test::Watcher watcher;
  watcher.at_sign = [last = std::atoi(kill_at)](int sign) {
    if (sign == last) ::kill(::getpid(), SIGKILL);
  };
  lcomp::test::run(job, watcher);
  std::ofstream(result_file(job_file)) << status_bytes("VmHWM");
}
