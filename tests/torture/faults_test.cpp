// Every single change that a run makes to its files, and every read, fails once: the error is one line with
// the file and the system's words, nothing half-written is published, and the same run then ends in the same
// bytes.
#include <catch2/catch.hpp>
#include <cstdlib>
#include <set>

#include "cli/failure.h"
#include "lcomp/report/report.h"
#include "pipeline/job_runs.h"
#include "torture/disk_model.h"
#include "torture/sandbox.h"

extern "C" void lcomp_fault_configure();

namespace fs = std::filesystem;
using namespace lcomp;
using test::Fingerprint;
using test::Sandbox;

namespace {

/// The fault layer at work on a sandbox in this process.
class Disturbed {
 public:
  Disturbed(const Sandbox& sandbox, const Sandbox::Faults& faults) {
    set("LCOMP_FAULT_ROOT", sandbox.folder().string());
    for (const auto& [name, value] : faults) set(name, value);
    lcomp_fault_configure();
  }
  ~Disturbed() {
    for (const std::string& name : names_) ::unsetenv(name.c_str());
    lcomp_fault_configure();
  }
  Disturbed(const Disturbed&) = delete;
  Disturbed& operator=(const Disturbed&) = delete;

 private:
  void set(const std::string& name, const std::string& value) {
    ::setenv(name.c_str(), value.c_str(), 1);
    names_.push_back(name);
  }
  std::vector<std::string> names_;
};

struct Ending {
  int code = 0;
  std::vector<std::string> messages;
};

/// Runs the job in this process as the program would.
Ending run_here(const Sandbox& sandbox, const Sandbox::Faults& faults = {}) {
  const Disturbed layer(sandbox, faults);
  try {
    Observer silent;
    pipeline::run(test::parse(sandbox.job()), pipeline::builtin_methods(), silent, report::write_reports);
    return {};
  } catch (const std::exception& error) {
    const cli::Failure failure = cli::failure_of(error);
    return {failure.code, failure.messages};
  }
}

std::vector<test::LoggedCall> calls_of(const Sandbox& sandbox) {
  REQUIRE(run_here(sandbox, {{"LCOMP_FAULT_LOG", sandbox.log().string()}}).code == 0);
  return test::read_log(sandbox.log());
}

bool is_read(const test::LoggedCall& call) {
  return call.kind == "read";
}

/// Changes or reads of an undisturbed run by number, which is its place in the list plus one.
std::vector<test::LoggedCall> numbered(const std::vector<test::LoggedCall>& calls, bool reads) {
  std::vector<test::LoggedCall> out;
  for (const auto& call : calls) {
    if (is_read(call) == reads) out.push_back(call);
  }
  for (size_t i = 0; i < out.size(); ++i) REQUIRE(out[i].number == static_cast<long>(i) + 1);
  return out;
}

struct Undisturbed {
  Fingerprint output;
  std::vector<test::LoggedCall> changes;
  std::vector<test::LoggedCall> reads;
};

Undisturbed undisturbed(const Sandbox& sandbox) {
  const auto calls = calls_of(sandbox);
  Undisturbed out{sandbox.fingerprint(), numbered(calls, false), numbered(calls, true)};
  REQUIRE(sandbox.leftovers().empty());
  sandbox.clear();
  return out;
}

void check_published(const Sandbox& sandbox, const Undisturbed& whole) {
  REQUIRE(test::difference(whole.output, sandbox.fingerprint()).empty());
  Observer silent;
  REQUIRE(pipeline::verify(sandbox.output(), silent).passed);
}

/// One fault: what the run says, what it leaves, and that the same run completes. Whether the fault ended the
/// run.
bool survive(const Sandbox& sandbox, const Undisturbed& whole, const test::LoggedCall& call,
             const Sandbox::Faults& faults, const std::string& words, const std::set<int>& codes) {
  CAPTURE(call.number, call.kind, call.path.string(), call.other.string(), words);
  const Ending ending = run_here(sandbox, faults);
  if (ending.code != 0) {
    CAPTURE(ending.messages);
    CHECK(codes.contains(ending.code));
    CHECK(ending.messages.size() == 1);
    CHECK_THAT(ending.messages.at(0), Catch::Contains(words));
    CHECK_THAT(ending.messages.at(0), Catch::StartsWith("[" + sandbox.folder().string()));
  }
  if (sandbox.is_published()) check_published(sandbox, whole);
  if (ending.code != 0) {
    const Ending again = run_here(sandbox);
    CAPTURE(again.messages);
    REQUIRE(again.code == 0);
  }
  check_published(sandbox, whole);
  // What cannot be removed is left; only then.
  const bool tidies = call.kind == "unlink" || call.kind == "rmdir";
  if (ending.code != 0 || !tidies) CHECK(sandbox.leftovers().empty());
  sandbox.clear();
  return ending.code != 0;
}

/// `one_in`: which share of the changes is tried.
void survive_each(const test::NamedJob& job, bool reads, const std::string& error, size_t one_in,
                  size_t first) {
  const Sandbox sandbox(job);
  const Undisturbed whole = undisturbed(sandbox);
  const auto& calls = reads ? whole.reads : whole.changes;
  REQUIRE(calls.size() > 50);
  const char* variable = reads ? "LCOMP_FAULT_READ_ERROR_AT" : "LCOMP_FAULT_ERROR_AT";
  const std::string words = error == "ENOSPC" ? "No space left on device" : "Input/output error";
  const std::string stays = error == "ENOSPC" ? "+" : "";
  size_t faults = 0, ended = 0;
  for (size_t i = first; i < calls.size(); i += one_in) {
    ++faults;
    ended += survive(sandbox, whole, calls[i],
                     {{variable, std::to_string(calls[i].number) + stays + ":" + error}}, words, {5})
                 ? 1
                 : 0;
  }
  WARN(job.name << ": " << faults << (reads ? " reads" : " changes") << " failed with " << error << ", "
                << ended << " of them ended the run");
  REQUIRE(2 * ended > faults);
}

}  // namespace

TEST_CASE("the fault layer sees every change that a run makes to its files", "[torture]") {
  for (const bool surveyed : {false, true}) {
    const Sandbox sandbox(test::tiny_job(surveyed));
    const auto calls = calls_of(sandbox);
    test::DiskModel disk(sandbox.folder());
    for (const auto& call : calls) disk.apply(call);
    Rng unused(0, "unused");
    const test::Tree seen = disk.after_power_cut(test::Loss::kNothing, unused);
    test::Tree there = test::read_tree(sandbox.folder());
    std::erase_if(there, [](const auto& entry) { return entry.first.starts_with("model"); });
    REQUIRE(there.size() > 8);
    REQUIRE((seen == there));
  }
}

TEST_CASE(
    "a file has all its bytes on the disk before it is renamed, and its name there before the journal speaks "
    "of it",
    "[torture]") {
  for (const bool surveyed : {false, true}) {
    const Sandbox sandbox(test::tiny_job(surveyed));
    std::set<fs::path> unsynced;        // files
    std::set<fs::path> unsynced_names;  // directories with a name that was made
    int renames = 0, commits = 0;
    for (const auto& call : calls_of(sandbox)) {
      CAPTURE(call.number, call.path.string());
      const std::string name = call.path.filename().string();
      if (call.kind == "write" && name == "journal.jsonl") {
        ++commits;
        REQUIRE(unsynced_names.empty());
      }
      if (call.kind == "write") unsynced.insert(call.path);
      if (call.kind == "sync") {
        unsynced.erase(call.path);
        unsynced_names.erase(call.path);
      }
      if (call.kind == "rename") {
        ++renames;
        REQUIRE_FALSE(unsynced.contains(call.path));
        unsynced_names.insert(call.other.parent_path());
      }
      if (call.kind == "mkdir") unsynced_names.insert(call.path.parent_path());
    }
    REQUIRE(renames > 10);
    REQUIRE(commits >= 3);
    REQUIRE(unsynced_names.empty());
  }
}

TEST_CASE("a disk that is full from some change on ends a run with one line, and the run can be continued",
          "[torture]") {
  survive_each(test::tiny_job(), false, "ENOSPC", 40, 7);
}

TEST_CASE("a disk that is full from any change on ends a run with one line, and the run can be continued",
          "[torture][slow]") {
  survive_each(test::tiny_job(), false, "ENOSPC", 1, 0);
  survive_each(test::tiny_job(true), false, "ENOSPC", 3, 0);
}

TEST_CASE("a change that fails ends a run with one line, and the run can be continued", "[torture]") {
  survive_each(test::tiny_job(), false, "EIO", 40, 3);
}

TEST_CASE("any change that fails ends a run with one line, and the run can be continued", "[torture][slow]") {
  survive_each(test::tiny_job(), false, "EIO", 1, 0);
  survive_each(test::tiny_job(true), false, "EIO", 3, 0);
}

TEST_CASE("a read that fails ends a run with one line, and the run can be continued", "[torture]") {
  survive_each(test::tiny_job(), true, "EIO", 40, 5);
}

TEST_CASE("any read that fails ends a run with one line, and the run can be continued", "[torture][slow]") {
  survive_each(test::tiny_job(), true, "EIO", 1, 0);
  survive_each(test::tiny_job(true), true, "EIO", 3, 0);
}

TEST_CASE("reads and writes that do only a part of what was asked make no difference", "[torture]") {
  for (const bool surveyed : {false, true}) {
    const Sandbox sandbox(test::tiny_job(surveyed));
    const Undisturbed whole = undisturbed(sandbox);
    REQUIRE(
        run_here(sandbox, {{"LCOMP_FAULT_SHORT", "1"}, {"LCOMP_FAULT_LOG", sandbox.log().string()}}).code ==
        0);
    check_published(sandbox, whole);
    REQUIRE(test::read_log(sandbox.log()).size() > whole.changes.size() + whole.reads.size());
  }
}

TEST_CASE("a full disk ends the program with the code of the system's limits and one line", "[torture]") {
  const Sandbox sandbox(test::tiny_job());
  const auto result = sandbox.run({{"LCOMP_FAULT_ERROR_AT", "100+:ENOSPC"}});
  CHECK(result.exit_code == 5);
  CHECK_THAT(result.err, Catch::Contains("lcomp: error: [" + sandbox.folder().string()) &&
                             Catch::Contains("No space left on device"));
  CHECK_FALSE(sandbox.is_published());
  CHECK(sandbox.run().exit_code == 0);
}
