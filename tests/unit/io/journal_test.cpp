#include "lcomp/io/journal.h"

#include <sys/resource.h>

#include <catch2/catch.hpp>
#include <csignal>

#include "io/journal_format.h"
#include "lcomp/core/error.h"
#include "support/child_process.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

JournalRecord step(int number, std::vector<FileRecord> files = {}) {
  return {.step = fmt::format("block {}", number),
          .key = fmt::format("key {}", number),
          .files = std::move(files),
          .note = fmt::format(R"({{"rows":[{},"é\n"]}})", number)};
}

/// A journal of three steps, each with one file.
void write_three(const std::filesystem::path& dir) {
  Journal journal(dir, "job");
  for (int i = 0; i < 3; ++i) {
    const FileRecord file = write_file_atomic(dir / fmt::format("f{}", i), fmt::format("content {}", i));
    journal.commit(step(i, {file}));
  }
}

bool is_committed(const Journal& journal, int i) {
  return journal.committed(fmt::format("block {}", i), fmt::format("key {}", i)).has_value();
}

}  // namespace

TEST_CASE("a journal gives back every record with its note after reopening", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const Journal journal(dir.path(), "job");
  REQUIRE(journal.discarded().empty());
  REQUIRE(journal.records().size() == 3);
  for (int i = 0; i < 3; ++i) {
    const auto record = journal.committed(fmt::format("block {}", i), fmt::format("key {}", i));
    REQUIRE(record);
    REQUIRE(*record == step(i, {record_of(dir.path(), fmt::format("f{}", i))}));
  }
  REQUIRE(Journal::job_of(dir.path()) == "job");
  REQUIRE_FALSE(Journal::job_of(dir / "none"));
}

TEST_CASE("a step counts as committed only for its key and with its files as they were", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const Journal journal(dir.path(), "job");
  std::string reason;
  REQUIRE_FALSE(journal.committed("block 9", "key 9", &reason));
  REQUIRE(reason == "it was not committed");
  REQUIRE_FALSE(journal.committed("block 0", "key 1", &reason));
  REQUIRE(reason == "it was committed for other inputs");
  std::filesystem::remove(dir / "f0");
  REQUIRE_FALSE(journal.committed("block 0", "key 0", &reason));
  REQUIRE(reason == "the file f0 is missing");
  write_file_atomic(dir / "f1", "content 1 and more");
  REQUIRE_FALSE(journal.committed("block 1", "key 1", &reason));
  REQUIRE(reason == "the file f1 does not have the 9 bytes recorded");
  write_file_atomic(dir / "f2", "content 3");
  REQUIRE_FALSE(journal.committed("block 2", "key 2", &reason));
  REQUIRE(reason == "the contents of f2 are not those recorded");
  write_file_atomic(dir / "f2", "content 2");
  REQUIRE(journal.committed("block 2", "key 2", &reason));
}

TEST_CASE("the last record of a step wins", "[io][journal]") {
  const test::TempDir dir;
  Journal journal(dir.path(), "job");
  journal.commit({.step = "s", .key = "old", .files = {}, .note = "1"});
  journal.commit({.step = "s", .key = "new", .files = {}, .note = "2"});
  REQUIRE_FALSE(journal.committed("s", "old"));
  REQUIRE(journal.committed("s", "new")->note == "2");
}

TEST_CASE("a journal cut at any byte is a prefix of what was committed, and goes on from there",
          "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const std::string whole = read_file(dir / Journal::kFileName);
  for (size_t length = 0; length < whole.size(); ++length) {
    CAPTURE(length);
    const JournalContent content = parse_journal(whole.substr(0, length));
    const auto lines = std::count(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length), '\n');
    REQUIRE(content.job_key.has_value() == (lines > 0));
    REQUIRE(content.records.size() == static_cast<size_t>(std::max<std::ptrdiff_t>(lines - 1, 0)));
    REQUIRE(content.problem.empty() == (content.valid_bytes == length));
    if (length % 97 != 0) continue;  // opening waits for the disk
    write_file_atomic(dir / Journal::kFileName, whole.substr(0, length));
    {
      Journal journal(dir.path(), "job");
      REQUIRE(journal.records().size() == content.records.size());
      journal.commit(step(7));
    }
    const Journal reopened(dir.path(), "job");
    REQUIRE(reopened.discarded().empty());
    REQUIRE(is_committed(reopened, 7));
    REQUIRE(reopened.records().size() == content.records.size() + 1);
  }
}

TEST_CASE("any changed byte of a journal ends what is believed before its line", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const std::string whole = read_file(dir / Journal::kFileName);
  for (size_t at = 0; at < whole.size(); ++at) {
    CAPTURE(at);
    std::string changed = whole;
    changed[at] = static_cast<char>(changed[at] ^ 0x01);
    const JournalContent content = parse_journal(changed);
    const auto lines_before =
        std::count(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    REQUIRE(content.records.size() == static_cast<size_t>(std::max<std::ptrdiff_t>(lines_before - 1, 0)));
    REQUIRE_FALSE(content.problem.empty());
  }
}

TEST_CASE("a torn line and a wrong line are told apart", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const std::string whole = read_file(dir / Journal::kFileName);
  write_file_atomic(dir / Journal::kFileName, whole.substr(0, whole.size() - 5));
  REQUIRE_THAT(Journal(dir.path(), "job").discarded(),
               Contains("journal.jsonl] line 4 is torn, as after a crash"));
  write_file_atomic(dir / Journal::kFileName, journal_head_line("job") + "{}\n" + journal_line(step(1)));
  REQUIRE_THAT(Journal(dir.path(), "job").discarded(),
               Contains("line 2 does not match its hash or is no record"));
  // Sealed, but not a record of this version.
  write_file_atomic(dir / Journal::kFileName, journal_head_line("job") + journal_head_line("job"));
  REQUIRE_THAT(Journal(dir.path(), "job").discarded(),
               Contains("line 2 does not match its hash or is no record"));
}

TEST_CASE("the journal of another job is discarded with the reason", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  {
    const Journal other(dir.path(), "other");
    REQUIRE_THAT(other.discarded(),
                 Contains("it belongs to another job, or to this job with other settings or inputs"));
    REQUIRE(other.records().empty());
  }
  REQUIRE(Journal(dir.path(), "job").records().empty());
}

TEST_CASE("keys that list what a job depends on tell in what two jobs differ", "[io][journal]") {
  const std::string first = job_key({{"settings", "a"}, {"text", ""}, {"version", "1"}});
  const std::string second = job_key({{"settings", "b"}, {"text", ""}, {"version", "2"}});
  CHECK(other_job(first, second) ==
        "it belongs to another job, or to this job with other settings or inputs (other: settings, version)");
  CHECK(other_job("opaque", "other") ==
        "it belongs to another job, or to this job with other settings or inputs");
  CHECK(other_job("opaque", first) ==
        "it belongs to another job, or to this job with other settings or inputs (other: settings, text, "
        "version)");
}

TEST_CASE("a process that dies right after a commit, or in the middle of one, loses nothing before it",
          "[io][journal]") {
  const test::TempDir dir;
  const std::string line = journal_line(step(1));
  for (const size_t torn : {size_t{0}, size_t{1}, line.size() / 2, line.size() - 1}) {
    CAPTURE(torn);
    std::filesystem::remove(dir / Journal::kFileName);
    test::in_child([&]() -> std::string {
      Journal journal(dir.path(), "job");
      journal.commit(step(0, {write_file_atomic(dir / "f0", "x")}));
      // What a kill in the middle of the second commit leaves.
      FILE* file = std::fopen((dir / Journal::kFileName).c_str(), "ab");
      std::fwrite(line.data(), 1, torn, file);
      std::fflush(file);
      ::_exit(0);
    });
    Journal journal(dir.path(), "job");
    REQUIRE(is_committed(journal, 0));
    REQUIRE_FALSE(is_committed(journal, 1));
    journal.commit(step(1));
    REQUIRE(Journal(dir.path(), "job").records().size() == 2);
  }
}

TEST_CASE("a commit that the disk refuses leaves the journal as before", "[io][journal]") {
  const test::TempDir dir;
  write_three(dir.path());
  const std::string error = test::in_child([&]() -> std::string {
    Journal journal(dir.path(), "job");
    const rlim_t most = std::filesystem::file_size(dir / Journal::kFileName) + 10;
    const rlimit limit{.rlim_cur = most, .rlim_max = most};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    std::signal(SIGXFSZ, SIG_IGN);
    try {
      journal.commit(step(3));
    } catch (const ResourceError& e) {
      return e.what();
    }
    return "no error";
  });
  REQUIRE_THAT(error, Contains("journal.jsonl] the file must be written; File too large"));
  const Journal journal(dir.path(), "job");
  REQUIRE(journal.discarded().empty());
  REQUIRE(journal.records().size() == 3);
}
