#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lcomp/core/sum_weight.h"
#include "lcomp/model/model.h"

/// The ways in which the weight of a linear operator may be stored, apart from the matrix itself: one table,
/// which reading, writing and the config share. A new kind of weight adds a row.
namespace lcomp::model {

using StorageGroup = QuantizationConfig::Group;

/// The tensors of one operator. Suffixes begin with a dot: ".weight_scale".
class StoredOperator {
 public:
  StoredOperator(const Model& model, OperatorInfo op) : model_(model), op_(std::move(op)) {}
  /// A weight that this one is made of, by the name under which it is stored.
  StoredOperator part(std::string name) const {
    OperatorInfo info = op_;
    info.name = std::move(name);
    return {model_, std::move(info)};
  }

  const OperatorInfo& info() const { return op_; }
  /// Whether a weight of that name belongs to the same block.
  bool is_in_block_of(const std::string& other) const;
  std::string tensor(std::string_view suffix) const { return op_.name + std::string(suffix); }
  bool contains(std::string_view suffix) const { return model_.checkpoint().contains(tensor(suffix)); }

  /// The type in which a tensor is stored; nothing when it is absent.
  std::optional<io::StoredDtype> type_of(std::string_view suffix) const {
    if (!contains(suffix)) return std::nullopt;
    return model_.checkpoint().info(tensor(suffix)).dtype;
  }

  /// A tensor that must be there, in its own type, with finite values. CorruptFile names what is wrong.
  at::Tensor read(std::string_view suffix) const { return model_.read_finite(tensor(suffix)); }
  /// The same, or an undefined tensor when it is absent.
  at::Tensor read_if(std::string_view suffix) const { return contains(suffix) ? read(suffix) : at::Tensor(); }
  /// The bytes of a tensor of 8-bit elements.
  at::Tensor read_codes(std::string_view suffix) const {
    return model_.checkpoint().read_codes(tensor(suffix));
  }

 private:
  const Model& model_;
  OperatorInfo op_;
};

struct WeightFormat {
  /// As quantization_config spells it. Formats that no other program knows begin with "lcomp-".
  std::string_view name;
  /// Suffix and type of a tensor that every operator of this format has, and no dense one.
  std::string_view marker;
  io::StoredDtype marker_dtype;
  /// What the codes stand for; nothing where there are none (sparse matrices): the group then has no scheme.
  std::optional<quant::NumberFormat> number_format;

  WeightPtr (*load)(const StoredOperator& op, const StorageGroup& group);
  /// The group of a weight that saves itself in this format (without targets), else nothing.
  std::optional<StorageGroup> (*describe)(const Weight& weight);

  /// How many weights of other formats it is made of: the least and the most. They are the group's `parts`.
  size_t least_parts = 0;
  size_t most_parts = 0;

  bool is_own() const { return name.starts_with("lcomp-"); }
  /// Whether the group's scheme is the grid of its codes; of a code book only the bits mean something.
  bool has_grid() const { return number_format && name != "lcomp-codebook"; }
  /// Whether the checkpoint has the operator `op` in this format.
  bool is_stored(const io::Checkpoint& checkpoint, const std::string& op) const;
};

std::span<const WeightFormat> weight_formats();

/// The format of this name, or null.
const WeightFormat* find_weight_format(std::string_view name);

/// A weight that is stored as the matrix itself. Throws CorruptFile when that is no floating-point matrix.
WeightPtr load_matrix(const StoredOperator& op);

/// The group that a reader needs for `weight` as it saves itself, without targets; nothing for a dense one.
std::optional<StorageGroup> storage_group(const Weight& weight);

}  // namespace lcomp::model
