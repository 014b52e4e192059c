#pragma once

#include <filesystem>
#include <string>

#include "lcomp/core/observer.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// What a check of an output found.
struct OutputCheck : Verification {
  int64_t errors_compared = 0;  ///< operators whose reported weight error was computed again
  /// Reported errors that are not those of what is stored against the source: behind several passes, moved
  /// scales or deleted units.
  int64_t errors_left = 0;
  std::string not_compared;  ///< why no errors were compared; empty when they were
};

/// Checks an output directory of `run` against its own record, lcomp.json: the record's checksum, size and
/// hash of every file, no missing and no unknown file or tensor, config.json against the tensors, and every
/// tensor decoded (finite values) and compared with the hash of what the passes computed. What report.json
/// says of the operators must hold: how they are stored and in how many bytes, zeros and N:M patterns; and
/// the weight errors, where the model that the output was made from is still where the record says, or in
/// `against`. The result says what differs; errors are only a directory without a record (`CorruptFile`) and
/// a model in `against` that cannot be read or is another one (`ConfigError`).
OutputCheck verify(const std::filesystem::path& directory, Observer& observer,
                   const std::filesystem::path& against = {});

}  // namespace lcomp::pipeline
