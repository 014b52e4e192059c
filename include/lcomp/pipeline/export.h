#pragma once

#include <cstdint>
#include <filesystem>

#include "lcomp/core/observer.h"

namespace lcomp::pipeline {

struct ExportOptions {
  /// Blocks of different widths get the largest of each, with units of zeros, which change nothing: what
  /// other software loads has one width for all blocks.
  bool pad_widths = false;
  int64_t shard_size = 4'000'000'000;  ///< bytes
};

/// What an export did.
struct ExportResult {
  int64_t operators = 0;  ///< in all
  int64_t decoded = 0;    ///< of them that were not stored dense
  int64_t padded = 0;     ///< of them that got rows or columns of zeros
  int64_t parameters = 0;
  uint64_t bytes = 0;  ///< of all tensors, as written
};

/// Writes the model in `model` as an ordinary dense checkpoint: every operator as `<name>.weight` in the type
/// of the embedding, and a config.json that speaks of nothing but the model. One block is in memory at a
/// time. The output appears when it is complete and read back, like that of a run, with a record for
/// `verify`.
///
/// Throws Unsupported when blocks have different widths and `pad_widths` is off, or when an operator rounds
/// its inputs, which a dense checkpoint cannot say; CorruptFile and ConfigError as a run does.
ExportResult export_model(const std::filesystem::path& model, const std::filesystem::path& output,
                          const ExportOptions& options, Observer& observer);

}  // namespace lcomp::pipeline
