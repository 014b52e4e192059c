#include "pipeline/passes/scheme_plan.h"

#include "lcomp/quant/gptq.h"
#include "lcomp/quant/quantized_weight.h"
#include "quant/scaled_rounding.h"

namespace lcomp::pipeline {

PlannedWeight plan_scheme(const quant::QuantScheme& scheme, const char* method, const PlannedOperator& op) {
  scheme.validate({op.out_features, op.in_features}, method, op.name);
  return {scheme.describe(),
          quant::packed_bytes(scheme, op.out_features, op.in_features, scheme.scale_type(op.dtype))};
}

Effect scheme_effect(const PassOptions& options) {
  return {.keeps_zeros = options.part<quant::QuantScheme>().has_zero()};
}

void check_gptq(const PassOptions& options) {
  quant::check_gptq_options(options.part<quant::QuantScheme>(), options.part<quant::GptqOptions>());
}

quant::QuantScheme with_scale_type(quant::QuantScheme scheme, at::ScalarType model_dtype) {
  return quant::with_scales_of(scheme, model_dtype);
}

quant::QuantScheme scheme_beside_activations() {
  quant::QuantScheme scheme;
  scheme.bits = 8;
  scheme.granularity = quant::Granularity::kChannel;
  scheme.symmetric_convention = quant::SymmetricConvention::kMidRange;
  return scheme;
}

}  // namespace lcomp::pipeline
