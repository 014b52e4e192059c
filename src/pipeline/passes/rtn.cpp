#include "lcomp/quant/rtn.h"

#include "lcomp/core/error.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/quantized_weight.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

using RtnPassOptions = PassOptionsOf<quant::QuantScheme>;

MatrixResult run_rtn(const at::Tensor& weight, const calib::InputStats&, const PassOptions& options,
                     PassContext& context) {
  const auto scheme = with_scale_type(options.part<quant::QuantScheme>(), context.model_dtype);
  return {std::make_shared<quant::QuantizedWeight>(quant::rtn(weight, scheme, &context.pool)), {}};
}

}  // namespace

std::unique_ptr<Pass> rtn_pass(std::string method) {
  return linear_pass(std::move(method), {}, false, run_rtn);
}

MethodInfo rtn_method() {
  MethodInfo info;
  info.name = "rtn";
  info.summary = "round to nearest (integers of 2-8 bits, NF4 or FP8); needs no data";
  info.default_options = [] { return std::make_unique<RtnPassOptions>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 5'000, .cubic = 0, .result_bytes = 1.7, .moment_bytes = 0, .weight_bytes = 20});
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    const auto& scheme = options.part<quant::QuantScheme>();
    if (scheme.range == quant::RangeRule::kHessian) {
      throw InvalidArgument(
          "rtn",
          "range hessian needs statistics of the inputs, and rtn takes none; use range mse, "
          "or the method gptq");
    }
    return plan_scheme(scheme, "rtn", op);
  };
  info.effect = scheme_effect;
  info.make_passes = [](const PassOptions&) { return chain_of(rtn_pass("rtn")); };
  return info;
}

}  // namespace lcomp::pipeline
