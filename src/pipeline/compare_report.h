#pragma once

#include <string>

#include "lcomp/model/model.h"
#include "lcomp/pipeline/report_data.h"
#include "lcomp/pipeline/verify.h"

namespace lcomp::pipeline {

/// Compares what the report says of each operator with what `model` stores of it: kind and bytes, shares of
/// zeros, N:M patterns, and, where `source` is not null, the weight errors. Errors of several passes, behind
/// moved scales or of deleted units are not those against the source; they are counted as not compared.
/// Returns "" or the first difference. Counts into `result`.
std::string compare_report(const model::Model& model, const RunReport& report, const model::Model* source,
                           OutputCheck& result);

}  // namespace lcomp::pipeline
