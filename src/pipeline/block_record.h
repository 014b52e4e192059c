#pragma once

#include <map>
#include <string>
#include <vector>

#include "lcomp/model/architecture.h"
#include "lcomp/model/quantization_config.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// What the rest of a run has to know of a finished block: kept in the journal's note, so that a resumed run
/// reports, describes and verifies blocks that it did not compute itself.
struct BlockRecord {
  BlockRow row;
  std::vector<OperatorRow> operators;
  /// Hash of the decoded weight (float32, `[out, in]`) of every operator that a pass changed.
  std::map<std::string, std::string> decoded;
  /// Norms and biases that a pass changed: hash of the stored tensor.
  std::map<std::string, std::string> changed;
  /// How every operator is stored that is not dense; without targets.
  std::map<std::string, model::QuantizationConfig::Group> groups;
  model::BlockWidths widths;
  /// Hash of the samples behind this block, when they are saved for a resume; empty when there are none.
  std::string samples_hash;
  /// The same of the second stream, where a pass compares with the model as it found it.
  std::string reference_hash;

  std::string to_json() const;
  static BlockRecord from_json(const std::string& text);
};

/// What is stored, in words, where its matrix is written in its place.
std::string written_dense(const std::string& scheme);

/// Makes the row of a weight that of the dense matrix of `bytes` that is written in its place.
void describe_as_dense(OperatorRow& row, int64_t bytes);

}  // namespace lcomp::pipeline
