#include "lcomp/io/work_dir.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <thread>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "support/child_process.h"
#include "support/error_text.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

TEST_CASE("nothing stands under the output's name until publish, and then all of it", "[io][work_dir]") {
  const test::TempDir dir;
  WorkDir work(dir / "out/", "job");  // a trailing slash is no other name
  REQUIRE(work.output() == dir / "out");
  REQUIRE(work.path() == dir / "out.lcomp-work");
  REQUIRE(work.discarded().empty());
  write_file_atomic(work.staging() / "a", "1");
  make_directories(work.staging() / "sub");
  write_file_atomic(work.staging() / "sub/b", "2");
  work.journal().commit({.step = "s", .key = "k", .files = {}, .note = ""});
  REQUIRE_FALSE(is_there(dir / "out"));
  work.publish();
  REQUIRE(work.published());
  REQUIRE(read_file(dir / "out/a") == "1");
  REQUIRE(read_file(dir / "out/sub/b") == "2");
  REQUIRE(list_directory(dir / "out").size() == 2);
  REQUIRE(list_directory(dir.path()) == std::vector<std::filesystem::path>{dir / "out"});
  REQUIRE_THROWS_WITH(work.publish(),
                      "[WorkDir::publish] must be called once; the output is already published");
}

TEST_CASE("an output that exists is refused at the start and at the end", "[io][work_dir]") {
  const test::TempDir dir;
  write_file_atomic(dir / "out", "precious");
  REQUIRE_THROWS_AS(WorkDir(dir / "out", "job"), ConfigError);
  REQUIRE_THROWS_WITH(WorkDir(dir / "out", "job"),
                      Contains("out] the output must not exist yet; it does, and nothing is overwritten"));
  REQUIRE_FALSE(is_there(dir / "out.lcomp-work"));
  std::filesystem::create_symlink("nowhere", dir / "link");
  REQUIRE_THROWS_AS(WorkDir(dir / "link", "job"), ConfigError);

  WorkDir work(dir / "late", "job");
  std::filesystem::create_directory(dir / "late");  // even an empty directory
  REQUIRE_THROWS_AS(work.publish(), ConfigError);
  REQUIRE(is_there(work.staging()));
  std::filesystem::remove(dir / "late");
  work.publish();
  REQUIRE(is_there(dir / "late"));
}

TEST_CASE("a working directory that leads elsewhere, or is another user's, is refused", "[io][work_dir]") {
  const test::TempDir dir;
  std::filesystem::create_directory(dir / "elsewhere");
  std::filesystem::create_directory_symlink(dir / "elsewhere", dir / "out.lcomp-work");
  REQUIRE_THROWS_WITH(WorkDir(dir / "out", "job"), Contains("must be a directory of this user") &&
                                                       Contains("it is a symbolic link. Remove it"));
  REQUIRE(list_directory(dir / "elsewhere").empty());
  std::filesystem::create_directory(dir / "other.lcomp-work");
  if (::chown((dir / "other.lcomp-work").c_str(), 12345, static_cast<gid_t>(-1)) != 0) return;  // not root
  REQUIRE_THROWS_WITH(WorkDir(dir / "other", "job"), Contains("it is of user 12345"));
}

TEST_CASE("an output needs a name", "[io][work_dir]") {
  REQUIRE_THROWS_AS(WorkDir("", "job"), ConfigError);
  REQUIRE_THROWS_WITH(WorkDir("", "job"), "[output] must be the name of a directory to create; it is \"\"");
  REQUIRE_THROWS_WITH(WorkDir("/", "job"), "[output] must be the name of a directory to create; it is \"/\"");
}

TEST_CASE("a second run on the same output is refused and told who is at it", "[io][work_dir]") {
  const test::TempDir dir;
  const WorkDir first(dir / "out", "job");
  const std::string error = test::in_child([&]() -> std::string {
    try {
      const WorkDir second(dir / "out", "job");
    } catch (const ResourceError& e) {
      return e.what();
    }
    return "no error";
  });
  std::string host(256, '\0');
  ::gethostname(host.data(), host.size() - 1);
  REQUIRE(error == fmt::format("[{}] the working directory must be free; process {} on host {} is using it",
                               first.path().string(), ::getpid(), host.c_str()));
}

TEST_CASE("after a kill the same job finds its work and another job starts clean", "[io][work_dir]") {
  const test::TempDir dir;
  const auto killed_run = [&] {
    test::in_child([&]() -> std::string {
      WorkDir work(dir / "out", "job");
      const FileRecord file = write_file_atomic(work.path() / "part", "1");
      write_file_atomic(work.staging() / "done", "2");
      AtomicFile half(work.staging() / "half");
      half.write("3");
      work.journal().commit({.step = "s", .key = "k", .files = {file}, .note = "note"});
      ::_exit(0);
    });
  };
  killed_run();
  REQUIRE(is_there(dir / "out.lcomp-work/output/half.tmp"));
  {
    WorkDir same(dir / "out", "job");
    REQUIRE_FALSE(same.published());
    REQUIRE(same.discarded().empty());
    REQUIRE(same.journal().committed("s", "k")->note == "note");
    REQUIRE(is_there(same.staging() / "done"));
    REQUIRE_FALSE(is_there(same.staging() / "half.tmp"));  // would have been published
  }
  {
    WorkDir other(dir / "out", "other");
    REQUIRE_THAT(
        other.discarded(),
        Contains(
            "out.lcomp-work] it belongs to another job, or to this job with other settings or inputs: its "
            "files are removed and the run starts from the beginning"));
    REQUIRE(other.journal().records().empty());
    REQUIRE_FALSE(is_there(other.path() / "part"));
    REQUIRE(list_directory(other.staging()).empty());
  }
  killed_run();
  std::filesystem::remove(dir / "out.lcomp-work/journal.jsonl");
  WorkDir lost(dir / "out", "job");
  REQUIRE_THAT(lost.discarded(), Contains("it has no valid journal: its files are removed"));
  REQUIRE_FALSE(is_there(lost.path() / "part"));
}

TEST_CASE("a run killed between publishing and tidying up is recognised as done", "[io][work_dir]") {
  const test::TempDir dir;
  {
    WorkDir work(dir / "out", "job");
    write_file_atomic(work.staging() / "a", "1");
    std::filesystem::rename(work.staging(), work.output());  // and then the kill
  }
  REQUIRE_THROWS_AS(WorkDir(dir / "out", "other"), ConfigError);
  WorkDir again(dir / "out", "job");
  REQUIRE(again.published());
  again.remove();
  REQUIRE(list_directory(dir.path()) == std::vector<std::filesystem::path>{dir / "out"});
  REQUIRE(read_file(dir / "out/a") == "1");
  REQUIRE_THROWS_AS(WorkDir(dir / "out", "job"), ConfigError);
}

TEST_CASE("what a run leaves that is killed in the last steps of tidying up goes with the next one",
          "[io][work_dir]") {
  const test::TempDir dir;
  {
    WorkDir work(dir / "out", "job");
    write_file_atomic(work.staging() / "a", "1");
    work.publish();
  }
  for (const bool locked : {true, false}) {
    make_directories(dir / "out.lcomp-work");
    if (locked) write_file_atomic(dir / "out.lcomp-work/lock", "process 1 on host gone");
    REQUIRE_THROWS_AS(WorkDir(dir / "out", "job"), ConfigError);
    REQUIRE(list_directory(dir.path()) == std::vector<std::filesystem::path>{dir / "out"});
  }
}

TEST_CASE("work of another run that cannot be removed is told", "[io][work_dir]") {
  namespace fs = std::filesystem;
  const test::TempDir dir;
  fs::permissions(dir.path(), fs::perms::all);
  const fs::path closed = dir / "out.lcomp-work/closed";
  const std::string error = test::in_child([&]() -> std::string {
    constexpr uid_t kNobody = 65534;
    if (::geteuid() == 0 && ::seteuid(kNobody) != 0) return "root";
    {
      const WorkDir work(dir / "out", "job");
      make_directories(closed);
      write_file_atomic(closed / "file", "1");
    }
    fs::permissions(closed, fs::perms::owner_read | fs::perms::owner_exec);
    const std::string text = test::error_text([&] { WorkDir(dir / "out", "other"); });
    fs::permissions(closed, fs::perms::owner_all);
    return text;
  });
  if (error == "root") {
    WARN("skipped: root can remove everything, and cannot become another user here");
    return;
  }
  REQUIRE(error ==
          fmt::format("[{}] what another run left must be removed; Permission denied", closed.string()));
}

TEST_CASE("an output that appeared beside unfinished work is refused and both are kept", "[io][work_dir]") {
  const test::TempDir dir;
  { const WorkDir work(dir / "out", "job"); }
  write_file_atomic(dir / "out", "precious");
  REQUIRE_THROWS_AS(WorkDir(dir / "out", "job"), ConfigError);
  REQUIRE(is_there(dir / "out.lcomp-work/output"));
  REQUIRE(read_file(dir / "out") == "precious");
}
