#include "lcomp/quant/squeezellm.h"

#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

using SqueezeLlmPassOptions = PassOptionsOf<quant::SqueezeLlmOptions>;

const quant::SqueezeLlmOptions& squeezellm_options(const PassOptions& options) {
  return options.part<quant::SqueezeLlmOptions>();
}

/// The type that values of code books are stored in, for weights of type `model`.
quant::ScaleDtype stored_dtype(quant::ScaleDtype dtype, at::ScalarType model) {
  return with_scale_type({.scale_dtype = dtype}, model).scale_dtype;
}

MatrixResult run_squeezellm(const at::Tensor& weight, const calib::InputStats& stats,
                            const PassOptions& settings, PassContext& context) {
  quant::SqueezeLlmOptions options = squeezellm_options(settings);
  options.codebook_dtype = stored_dtype(options.codebook_dtype, context.model_dtype);
  const at::Tensor fisher = stats.gradient_squares.empty() ? at::Tensor() : stats.gradient_squares[0];
  quant::SqueezeLlmResult result = quant::squeezellm(weight, fisher, options, &context.pool);
  OperatorRow row;
  row.loss = result.loss;
  row.rtn_loss = result.grid_loss;
  return {std::make_shared<quant::CodebookWeight>(std::move(result.weight)), std::move(row)};
}

PlannedWeight plan_squeezellm(const PassOptions& settings, const PlannedOperator& op) {
  const quant::SqueezeLlmOptions& options = squeezellm_options(settings);
  options.validate();
  const at::ScalarType type = quant::QuantScheme{.scale_dtype = options.codebook_dtype}.scale_type(op.dtype);
  const int64_t count = op.out_features * op.in_features;
  const int64_t kept = options.planned_entries(count);
  return {
      quant::describe_codebook(options.bits, type, static_cast<double>(kept) / static_cast<double>(count)),
      quant::codebook_bytes(options.bits, op.out_features, op.in_features, kept, type)};
}

}  // namespace

MethodInfo squeezellm_method() {
  MethodInfo info;
  info.name = "squeezellm";
  info.summary = "a code book per row by k-means weighted with squared gradients (Kim et al. 2023)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<SqueezeLlmPassOptions>(); };
  info.plan_weight = plan_squeezellm;
  info.cost = constant_cost(
      {.flops_per_weight = 85'000, .cubic = 0, .result_bytes = 9.5, .moment_bytes = 0, .weight_bytes = 5});
  info.make_passes = [](const PassOptions& options) {
    const bool reads = squeezellm_options(options).reads_gradients();
    return chain_of(linear_pass("squeezellm", {.gradient_squares = reads}, false, run_squeezellm));
  };
  info.effect = [](const PassOptions& options) {
    return Effect{.reads_gradients = squeezellm_options(options).reads_gradients(), .keeps_zeros = false};
  };
  return info;
}

}  // namespace lcomp::pipeline
