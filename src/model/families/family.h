#pragma once

#include "lcomp/model/architecture.h"
#include "model/config_view.h"

/// One function per family turns config.json into an Architecture; the table is in families.cpp.
namespace lcomp::model {

Architecture read_llama(const ConfigView& config);
Architecture read_mistral(const ConfigView& config);
Architecture read_qwen2(const ConfigView& config);
Architecture read_qwen3(const ConfigView& config);
Architecture read_bert(const ConfigView& config);
Architecture read_distilbert(const ConfigView& config);

/// The activation that `field` names; `absent` when there is no such field.
Activation read_activation(const ConfigView& config, const std::string& field, Activation absent);

/// The number of blocks, within reason: every block takes memory before its first tensor is looked for.
int64_t read_layers(const ConfigView& config, const std::string& field);

/// What all families of the skeleton share: sizes, eps, activation, tied embeddings, rope; no windows, no
/// biases.
Architecture read_skeleton(const ConfigView& config, const std::string& family);

/// rope_theta / rope_scaling (transformers 4) or rope_parameters (transformers 5).
RopeSpec read_rope(const ConfigView& config, int64_t head_dim, int64_t max_positions);

/// Qwen's rule: with use_sliding_window, layers listed in layer_types, or from max_window_layers on, see a
/// window.
std::vector<int64_t> read_qwen_windows(const ConfigView& config, int64_t layers);

}  // namespace lcomp::model
