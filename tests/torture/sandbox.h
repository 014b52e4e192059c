#pragma once

#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "support/process.h"
#include "support/test_data.h"
#include "torture/jobs.h"

namespace lcomp::test {

/// What stands in an output, by file: hashes of what was computed and written. Times, and all else of the
/// report that two runs of one job need not agree in, are left out.
using Fingerprint = std::map<std::string, std::string>;

/// A folder with a model, a job on it, and nothing else but what the job's runs leave.
class Sandbox {
 public:
  explicit Sandbox(const NamedJob& job);

  const std::filesystem::path& folder() const { return folder_; }
  std::filesystem::path output() const { return folder_ / "out"; }
  const Json& job() const { return job_; }

  /// Variables for the fault layer beside its root; without any, the child runs without the layer.
  using Faults = std::vector<std::pair<std::string, std::string>>;

  /// Starts `lcomp run` on the job.
  std::unique_ptr<Process> start(const Faults& faults = {}) const;
  /// Runs it to its end.
  ProcessResult run(const Faults& faults = {}) const;

  bool is_published() const { return std::filesystem::exists(output()); }
  /// Of the output as it is now.
  Fingerprint fingerprint() const;
  /// Names in the folder that are neither the model nor the output.
  std::vector<std::string> leftovers() const;
  /// Removes whatever runs have left.
  void clear() const;

  std::filesystem::path log() const { return dir_ / "log"; }
  std::string err() const;

 private:
  TempDir dir_;
  std::filesystem::path folder_;
  Json job_;
};

/// In what two outputs differ; empty when they do not.
std::string difference(const Fingerprint& expected, const Fingerprint& found);

}  // namespace lcomp::test
