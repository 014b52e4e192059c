#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/model/architecture.h"

namespace lcomp::pipeline {

/// How much of a checkpoint is stored in one element type.
struct DtypeShare {
  std::string dtype;  ///< name of the safetensors format: "BF16"
  int64_t tensors = 0;
  int64_t bytes = 0;
};

/// Operators that are stored alike.
struct StoredKind {
  std::string format;       ///< "pack-quantized", "lcomp-csr" ..., "dense" for plain matrices
  std::string description;  ///< the format and what its numbers are: "pack-quantized, int4 symmetric, ..."
  int64_t operators = 0;
};

/// What is said of a model directory beyond its tensors.
struct InspectedModel {
  std::string family;  ///< "llama", "qwen2" ...
  int64_t blocks = 0;
  int64_t operators = 0;  ///< linear operators that passes can work on
  int64_t hidden_size = 0;
  int64_t vocab_size = 0;
  int64_t max_positions = 0;
  int64_t parameters = 0;                  ///< tied ones once; packed weights as the matrices they stand for
  std::vector<StoredKind> storage;         ///< of the operators, in their order
  std::string embedding;                   ///< how a compressed embedding is stored; empty for a table
  std::vector<model::BlockWidths> widths;  ///< of each block
  std::string tokenizer_hash;              ///< empty when there is no tokenizer.json
};

/// What `inspect` found.
struct Inspection {
  std::string path;
  int64_t tensors = 0;
  int64_t bytes = 0;                    ///< of all tensors, as stored
  std::vector<DtypeShare> dtypes;       ///< largest first
  std::optional<InspectedModel> model;  ///< for a model directory
  std::vector<std::string> warnings;    ///< odd but harmless
  std::optional<int64_t> values_read;   ///< values that a deep inspection checked
};

/// Opens a model directory or a safetensors file with all the checks of a run, and describes it. `deep` also
/// decodes every packed weight and reads every value, in pieces.
///
/// Throws what a run would throw: `CorruptFile` for a file that breaks its format, a missing tensor, a wrong
/// shape, and (deep) a NaN or infinite value, with the tensor and the position; `Unsupported` for a family,
/// tokenizer part or quantization that this version does not know. `Interrupted` when the observer asks for
/// it.
Inspection inspect(const std::filesystem::path& path, bool deep, Observer& observer);

}  // namespace lcomp::pipeline
