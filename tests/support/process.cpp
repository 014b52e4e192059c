#include "support/process.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <thread>

#include "support/test_data.h"

extern char** environ;

namespace lcomp::test {
namespace {

std::string content(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

std::string lcomp_binary() {
  const char* binary = std::getenv("LCOMP_BINARY");
  if (binary == nullptr) throw std::runtime_error("LCOMP_BINARY must name the lcomp under test");
  return binary;
}

}  // namespace

Process::Process(const std::vector<std::string>& arguments, const std::string& out_file,
                 const std::string& err_file) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&actions, 1, out_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, err_file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const int status = posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (status != 0) throw std::runtime_error("cannot start " + arguments.at(0));
}

Process::~Process() {
  if (ended_) return;
  send(SIGKILL);
  wait();
}

void Process::send(int signal) const {
  kill(pid_, signal);
}

int Process::wait() {
  if (!ended_ && waitpid(pid_, &status_, 0) != pid_) throw std::runtime_error("cannot wait for the program");
  ended_ = true;
  return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
}

bool Process::ends_within(std::chrono::microseconds time) {
  const auto deadline = std::chrono::steady_clock::now() + time;
  while (!ended_) {
    const auto left = deadline - std::chrono::steady_clock::now();
    ended_ = waitpid(pid_, &status_, WNOHANG) == pid_;
    if (ended_ || left.count() <= 0) break;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(left, std::chrono::milliseconds(1)));
  }
  return ended_;
}

ProcessResult run_process(const std::vector<std::string>& arguments) {
  const TempDir dir;
  Process process(arguments, (dir / "out").string(), (dir / "err").string());
  ProcessResult result;
  result.exit_code = process.wait();
  result.out = content(dir / "out");
  result.err = content(dir / "err");
  return result;
}

ProcessResult run_lcomp(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), lcomp_binary());
  return run_process(arguments);
}

ProcessResult run_lcomp_within(const std::string& limits, std::vector<std::string> arguments) {
  const std::string script = limits + " && exec \"$0\" \"$@\"";
  arguments.insert(arguments.begin(), {"/bin/sh", "-c", script, lcomp_binary()});
  return run_process(arguments);
}

}  // namespace lcomp::test
