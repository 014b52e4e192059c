#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/quant/activation_scheme.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::model {

/// The `quantization_config` of a checkpoint: which operators are stored in which way, and on which grid.
struct QuantizationConfig {
  /// Operators that are stored alike.
  struct Group {
    /// Operator names, `re:` and a regular expression matched from the start of a name, or "Linear".
    std::vector<std::string> targets;
    quant::QuantScheme scheme;
    /// How the tensors hold the weights: `pack-quantized`, `int-quantized`, `float-quantized` of
    /// compressed-tensors, or a format of lcomp's own, whose name begins with `lcomp-` (src/model/
    /// weight_formats.cpp has the list).
    std::string format = "pack-quantized";
    /// Rows that share the scales of a group of columns (strategy `block`); 0 when every row has its own.
    int64_t block_rows = 0;
    /// How the operators' inputs are rounded, if they are.
    std::optional<quant::ActivationScheme> input_activations = {};
    /// What else a format of lcomp's own needs to be read, by name; stored under `lcomp`.
    std::map<std::string, double> numbers = {};
    /// How the weights are stored that it is made of (formats `lcomp-sum`, `lcomp-product` ...); stored under
    /// `lcomp_parts`.
    std::vector<Group> parts = {};

    /// The entry of `config_groups`.
    std::string to_json() const;
    /// Reads what `to_json` wrote. Errors as `QuantizationConfig::read`.
    static Group from_json(std::string_view text, const std::string& where);
  };
  std::vector<Group> groups;
  std::vector<std::string> ignore;

  /// The group of the operator `name` ("model.layers.0.mlp.up_proj"): an exact target before a regular
  /// expression before "Linear"; null when the operator is ignored or matched by no group.
  const Group* group_for(const std::string& name) const;
  /// The scheme of its group.
  std::optional<quant::QuantScheme> scheme_for(const std::string& name) const;

  /// The JSON object to store under `quantization_config`. `quant_method` is `bitsandbytes` when all groups
  /// are NF4 in blocks that it knows, `lcomp` when a group has a format of lcomp's own, else
  /// `compressed-tensors`; `format` is that of all groups, or `mixed-precision` when they differ and each
  /// group names its own.
  std::string to_json() const;

  /// Reads it out of config.json; nothing when the model is not quantized. What this version cannot decode
  /// (another `quant_method` or format, quantized activations, rotations) is `Unsupported` and names what
  /// it can.
  static std::optional<QuantizationConfig> read(std::string_view config_json, const std::string& where);
};

}  // namespace lcomp::model
