#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "lcomp/io/checkpoint.h"
#include "lcomp/model/architecture.h"
#include "lcomp/model/block.h"
#include "lcomp/model/pooling.h"
#include "lcomp/model/quantization_config.h"

namespace lcomp::model {

/// A checkpoint and what its config.json says of it. Holds no weights: blocks, embedding rows and tiles of
/// the head are read when asked for, and belong to the caller.
class Model {
 public:
  /// Opens a Hugging Face directory. All names and shapes are checked here, from the headers: a missing
  /// tensor or a wrong shape is `CorruptFile`, tensors that no part of the model uses are warnings. Values
  /// are read in one case: embedding and head that are both stored though config.json ties them are compared,
  /// and a warning tells when they differ.
  static Model open(const std::filesystem::path& directory);

  /// The same over a checkpoint that need not be a directory. `where` names it in messages.
  Model(std::string config_json, io::CheckpointPtr checkpoint, std::string where);

  const Architecture& architecture() const { return architecture_; }
  const std::string& config_json() const { return config_json_; }
  const io::Checkpoint& checkpoint() const { return *checkpoint_; }
  const std::optional<QuantizationConfig>& quantization() const { return quantization_; }
  const std::vector<std::string>& warnings() const { return warnings_; }
  const std::string& where() const { return where_; }

  /// How an encoder's states become the embedding of a sentence: what the directory says, else the mean.
  Pooling pooling() const { return pooling_; }

  /// Number of blocks.
  int64_t size() const { return architecture_.layers; }
  /// Reads block `i`. A NaN or infinite value is `CorruptFile` naming the tensor and the position.
  Block load_block(int64_t i) const;
  /// How the weight of an operator is stored; null when it is the dense matrix.
  const QuantizationConfig::Group* group_of(const OperatorInfo& op) const;
  /// Weight of one operator as stored, dense or compressed. Errors as `load_block`.
  WeightPtr load_weight(const OperatorInfo& op) const;

  /// Any stored tensor, in its own type. Errors as `load_block`.
  at::Tensor read_finite(const std::string& name) const;

  /// Stored tensors that belong to block `i`, sorted.
  std::vector<std::string> block_tensors(int64_t i) const;
  /// Stored tensors that belong to no block: embedding, final norm, head, and what the model does not use;
  /// sorted.
  std::vector<std::string> outer_tensors() const;

  /// The token embedding as an operator: its name without ".weight", and the shape [vocabulary, hidden].
  OperatorInfo embedding() const;
  /// The embedding when it is stored compressed, held in memory; null when it is a plain table.
  const WeightPtr& compressed_embedding() const { return compressed_embedding_; }

  /// What block 0 reads for the sequence `ids`, float32 `[tokens, hidden]`: embedding rows, and where the
  /// family has them, those of the positions and of the segments `type_ids` (none given: all 0), and a norm.
  /// An id outside the vocabulary or the segments is InvalidArgument; more tokens than there are learned
  /// positions is ConfigError. With a `table` its rows take the place of the model's.
  at::Tensor embed(std::span<const int64_t> ids, std::span<const int64_t> type_ids = {},
                   const Weight* table = nullptr) const;
  /// The norm before the head, in place; nothing where the family has none.
  void final_norm(at::Tensor& hidden) const;
  /// Rows [begin, begin + count) of the head, float32 `[count, hidden]`. Unsupported for an encoder.
  at::Tensor head_rows(int64_t begin, int64_t count) const;

  /// Parameters and stored bytes of the whole checkpoint. Packed weights count as the matrices they stand
  /// for, factored ones as their factors, for which they are read.
  int64_t parameters() const;
  uint64_t stored_bytes() const { return checkpoint_->total_bytes(); }
  /// The type of the embedding matrix, which stands for "the model's type".
  at::ScalarType dtype() const;

 private:
  void check_tensor(const std::string& name, const std::vector<int64_t>& shape) const;
  void check_operator(const OperatorInfo& op) const;
  void check_all();
  void load_embedding();
  void warn_of_unused();
  void add_positions_and_types(std::span<const int64_t> type_ids, at::Tensor& embedded) const;
  void normalize(const std::string& norm, at::Tensor& hidden) const;
  at::Tensor read_rows(const std::string& name, int64_t begin, int64_t count) const;

  std::string config_json_;
  io::CheckpointPtr checkpoint_;
  std::string where_;
  Architecture architecture_;
  std::optional<QuantizationConfig> quantization_;
  std::string embedding_name_;
  std::string head_name_;
  WeightPtr compressed_embedding_;
  Pooling pooling_ = Pooling::kMean;
  std::vector<std::string> warnings_;
};

}  // namespace lcomp::model
