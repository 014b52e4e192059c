#pragma once

#include "lcomp/pipeline/method.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::pipeline {

/// What a uniform grid makes of an operator: checks the scheme against the shape and counts the stored bytes.
PlannedWeight plan_scheme(const quant::QuantScheme& scheme, const char* method, const PlannedOperator& op);

/// The effect of rounding to the grid of the settings' QuantScheme.
Effect scheme_effect(const PassOptions& options);

/// Throws InvalidArgument or Unsupported for settings of GPTQ (parts QuantScheme and GptqOptions) that
/// exclude each other.
void check_gptq(const PassOptions& options);

/// The scheme with "the model's type" for scales replaced by that type, so that weights may be passed in
/// float32.
quant::QuantScheme with_scale_type(quant::QuantScheme scheme, at::ScalarType model_dtype);

/// What weights are rounded to by default where their inputs are rounded as well: int8 per channel, and no
/// negative scales, which integer kernels do not expect and 8 bits do not need.
quant::QuantScheme scheme_beside_activations();

}  // namespace lcomp::pipeline
