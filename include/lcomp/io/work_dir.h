#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "lcomp/io/journal.h"

namespace lcomp::io {

class Descriptor;

/// Where a run keeps everything until its output is complete: `<output>.lcomp-work`, beside the output.
///
///     lock             who is using the directory; held with flock, so it ends with the process
///     journal.jsonl    what is finished
///     blocks/ ...      whatever the run stores meanwhile
///     output/          the future output (`staging`)
///
/// Order on the disk: files are synchronised before the journal speaks of them; `publish` synchronises all of
/// `output/`, renames it to the final name in one step, synchronises the parent directory, and only then
/// removes the rest. Killed at any point, either the output is absent and the run can be resumed, or it is
/// complete.
class WorkDir {
 public:
  /// Takes the working directory of `output` for the job `job_key`, creating it where needed. What an earlier
  /// run of the same job left is kept; what another job left is removed (`discarded` tells).
  /// Throws `ConfigError` when `output` exists, and `ResourceError` when another process, which is named,
  /// uses the working directory.
  WorkDir(const std::filesystem::path& output, const std::string& job_key);
  ~WorkDir();
  WorkDir(const WorkDir&) = delete;
  WorkDir& operator=(const WorkDir&) = delete;

  /// True when an earlier run of this job was killed after its output had been published and before it could
  /// tidy up: nothing is left to do but `remove`.
  bool published() const { return published_; }

  const std::filesystem::path& output() const { return output_; }
  const std::filesystem::path& path() const { return path_; }
  /// The directory that becomes the output.
  std::filesystem::path staging() const { return path_ / "output"; }
  Journal& journal() { return *journal_; }

  /// Why work of an earlier run was thrown away; empty when none was.
  const std::string& discarded() const { return discarded_; }

  /// Gives `staging` the name `output` and removes the working directory. Throws `ConfigError` when something
  /// has appeared under that name meanwhile.
  void publish();

  /// Removes the working directory with all it has. Failures are ignored: what is left is recognised later.
  void remove();

 private:
  void lock();
  void take_over(const std::string& job_key);
  void clear();

  std::filesystem::path output_;
  std::filesystem::path path_;
  std::unique_ptr<Descriptor> lock_;
  std::unique_ptr<Journal> journal_;
  std::string discarded_;
  bool published_ = false;
};

}  // namespace lcomp::io
