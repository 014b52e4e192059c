#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/io/files.h"

namespace lcomp::io {

class Descriptor;

/// One committed step.
struct JournalRecord {
  std::string step;               ///< "block 7"
  std::string key;                ///< hash of everything the step's result depends on
  std::vector<FileRecord> files;  ///< what it wrote, relative to the journal's directory
  std::string note;               ///< anything the caller wants back on a resume: the report's rows, as JSON

  bool operator==(const JournalRecord&) const = default;
};

/// The key of a job that depends on `parts`, names and values: a text from which it can be told later in what
/// two jobs differ. No name has a newline or a colon, no value a newline.
std::string job_key(const std::vector<std::pair<std::string, std::string>>& parts);

/// Why work that was done under `key` is not continued under `wanted`: the parts that differ.
std::string other_job(const std::string& key, const std::string& wanted);

/// What a run has finished, so that a killed run continues instead of starting again.
///
/// `journal.jsonl` holds one JSON document per line, `{"hash":"<XXH3-128>","record":{...}}`, where the hash
/// is that of the record's text. The first record carries the job's key, each further one a step. `commit`
/// appends one line and returns when it is on the disk; the files of the step must be there before
/// (`AtomicFile` sees to that). So after a crash the journal is a prefix of what was committed, possibly with
/// a torn line at its end, which is cut off. A line that is wrong elsewhere ends the prefix as well: nothing
/// behind it is believed.
class Journal {
 public:
  static constexpr const char* kFileName = "journal.jsonl";

  /// Opens or creates the journal in `dir` for the job `job_key`. A journal of another job is discarded; the
  /// files it speaks of are the caller's to remove (`WorkDir` does).
  Journal(std::filesystem::path dir, const std::string& job_key);
  ~Journal();
  Journal(Journal&&) noexcept;
  Journal& operator=(Journal&&) noexcept;

  /// The key of the job whose journal is in `dir`; nothing when there is no journal or its head is broken.
  static std::optional<std::string> job_of(const std::filesystem::path& dir);

  /// Why something of the existing journal was not taken over; empty when all was.
  const std::string& discarded() const { return discarded_; }
  /// All records taken over or committed, in order.
  const std::vector<JournalRecord>& records() const { return records_; }

  /// Whether `step` was ever committed, for whatever key.
  bool has(const std::string& step) const;

  /// The last record of `step` if its key is `key` and its files are all there with the recorded size and
  /// hash (they are read). Otherwise nothing, and `reason` says why.
  std::optional<JournalRecord> committed(const std::string& step, const std::string& key,
                                         std::string* reason = nullptr) const;

  /// Appends a record and waits for the disk. When that fails (`ResourceError`), the journal is as before.
  void commit(const JournalRecord& record);

 private:
  std::filesystem::path dir_;
  std::filesystem::path path_;
  std::string discarded_;
  std::vector<JournalRecord> records_;
  std::unique_ptr<Descriptor> file_;
  uint64_t size_ = 0;
};

}  // namespace lcomp::io
