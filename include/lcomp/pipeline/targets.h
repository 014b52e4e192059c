#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/pipeline/job.h"

namespace lcomp::pipeline {

/// Whether a pattern means an operator. The pattern must match the operator's whole name
/// ("model.layers.0.mlp.up_proj") or all of it behind one of its dots ("layers.0.mlp.up_proj", "up_proj"). In
/// patterns `*` stands for any characters, dots included, and `?` for one; "re:" begins a regular expression
/// (ECMAScript). Throws `ConfigError` when that expression is none.
bool matches(std::string_view pattern, const std::string& operator_name);

/// For each operator the settings that a pass has for it; null where the pass leaves it alone.
using OperatorSettings = std::vector<std::shared_ptr<const PassOptions>>;

/// Applies targets, ignore and overrides of every pass to `operators`: element [p][i] is for pass p, operator
/// i.
///
/// `untouchable` are names that exist without being for compression (head, embedding): "ignore" may name them
/// too. Throws `ConfigError` that lists, with its JSON pointer, each pattern that is no pattern, that matches
/// nothing (with the nearest name), and each pass that is left without operators.
std::vector<OperatorSettings> resolve_targets(const Job& job, const std::string& where,
                                              const std::vector<std::string>& operators,
                                              const std::vector<std::string>& untouchable = {});

}  // namespace lcomp::pipeline
