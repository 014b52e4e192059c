#pragma once

#include <vector>

#include "lcomp/model/model.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/targets.h"

namespace lcomp::pipeline {

/// Refuses orders of passes that cannot work, by what each method says it does (`MethodInfo::effect`):
///  - an operator that a pass has quantized is changed by no later pass;
///  - a transform changes whatever makes the input of its operators and all that read it: the operators of a
///    group are given together, and the operator in front is not quantized yet, nor stored packed.
/// `settings` are those of `resolve_targets`. Throws ConfigError with a line, and the JSON pointer, for each
/// kind of operator and reason.
void check_pass_order(const Job& job, const MethodTable& methods, const model::Model& model,
                      const std::vector<OperatorSettings>& settings);

}  // namespace lcomp::pipeline
