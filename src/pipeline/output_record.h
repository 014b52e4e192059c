#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"
#include "lcomp/io/files.h"
#include "lcomp/model/model.h"
#include "pipeline/block_record.h"

namespace lcomp::pipeline {

/// lcomp.json: what a published directory says of itself, and what `verify` holds it to.
struct OutputRecord {
  static constexpr const char* kFileName = "lcomp.json";

  std::string version;
  std::string job_json;
  std::string source;                            ///< path of the dense model
  std::vector<io::FileRecord> files;             ///< all files but this one
  std::map<std::string, std::string> decoded;    ///< operator -> hash of its decoded weight
  std::map<std::string, std::string> copied;     ///< tensor that no pass changed -> hash of its stored bytes
  std::map<std::string, std::string> changed;    ///< norm or bias that a pass changed -> hash of its bytes
  std::map<std::string, std::string> described;  ///< operator -> what it is stored as, for people

  /// With a checksum of its own, so that a change of any byte is found.
  std::string to_json() const;
  /// Throws CorruptFile when the text is no such record or its checksum is wrong.
  static OutputRecord from_json(const std::string& text, const std::string& where);
};

/// Hash of a matrix's values as float32.
std::string decoded_hash(const at::Tensor& matrix);
/// The same of a weight as it was read or made. When its product is more than that of the decoded matrix
/// (`quantizes_input`), with all that it stores.
std::string decoded_hash(const Weight& weight);
/// The hash of the decoded matrix (float32, row-major) from `Weight::rows`, a tile at a time.
std::string decoded_hash_of_rows(const Weight& weight);

/// Compares size and hash of every file of the record; no other file may be in `directory` but the record
/// itself. Returns "" or the first difference. Counts into `result`.
std::string compare_files(const std::filesystem::path& directory, const OutputRecord& record,
                          Observer& observer, Verification& result);

/// Compares every tensor of `model` with the record; returns "" or the first difference. Counts into
/// `result`.
std::string compare_tensors(const model::Model& model, const OutputRecord& record, Verification& result);

/// config.json of the output: that of the source with `quantization_config` set (or removed when no operator
/// is stored in another way than dense); `groups` says how the others are stored, by operator.
std::string output_config(const model::Model& source,
                          const std::map<std::string, model::QuantizationConfig::Group>& groups,
                          const std::vector<model::BlockWidths>& widths);

}  // namespace lcomp::pipeline
