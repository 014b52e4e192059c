#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/quant/scheme.h"

namespace lcomp::model {

/// The `quantization_config` of a compressed-tensors checkpoint: which operators are packed, and on which
/// grid.
struct QuantizationConfig {
  struct Group {
    /// Operator names, `re:` and a regular expression matched from the start of a name, or "Linear".
    std::vector<std::string> targets;
    quant::QuantScheme scheme;
  };
  std::vector<Group> groups;
  std::vector<std::string> ignore;

  /// The scheme of the operator `name` ("model.layers.0.mlp.up_proj"): an exact target before a regular
  /// expression before "Linear"; nothing when the operator is ignored or matched by no group.
  std::optional<quant::QuantScheme> scheme_for(const std::string& name) const;

  /// The JSON object to store under `quantization_config` (format `pack-quantized`).
  std::string to_json() const;

  /// Reads it out of config.json; nothing when the model is not quantized. What this version cannot decode
  /// (another `quant_method`, float types, quantized activations, rotations) is `Unsupported` and names what
  /// it can.
  static std::optional<QuantizationConfig> read(std::string_view config_json, const std::string& where);
};

}  // namespace lcomp::model
