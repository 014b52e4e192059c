#pragma once

#include <filesystem>

#include "lcomp/core/observer.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// Checks an output directory of `run` against its own record, lcomp.json: the record's checksum, size and
/// hash of every file, no missing and no unknown file, config.json against the tensors, and every tensor
/// decoded (finite values) and compared with the hash of what the passes computed. The result says what
/// differs; only a directory without a record is an error (`CorruptFile`).
Verification verify(const std::filesystem::path& directory, Observer& observer);

}  // namespace lcomp::pipeline
