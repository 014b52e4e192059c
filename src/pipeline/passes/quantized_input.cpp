#include "lcomp/quant/quantized_input_weight.h"

#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/solver.h"

namespace lcomp::pipeline {
namespace {

/// A pass that quantizes weights, and what its operators read besides: the rows are its own.
class QuantizedInputPass final : public Pass {
 public:
  QuantizedInputPass(std::unique_ptr<Pass> weights, const quant::ActivationScheme& activations)
      : weights_(std::move(weights)), is_static_(!activations.dynamic) {
    const bool of_values =
        activations.percentile < 1 && activations.percentile_of == quant::PercentileOf::kValues;
    needs_ = weights_->needs();
    needs_.token_range = is_static_;
    needs_.value_counts = is_static_ && of_values;
  }

  std::string name() const override { return weights_->name(); }
  calib::Needs needs() const override { return needs_; }
  // Static ranges are those of the inputs that the operators really get.
  bool sequential() const override { return is_static_ || weights_->sequential(); }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const size_t first_row = context.rows.size();
    weights_->compress(block, group, stats, context);
    size_t row = first_row;
    for (const size_t op : block.groups()[group].operators) {
      const PassOptions* settings = context.settings(block.ops()[op].info.name);
      if (settings == nullptr) continue;
      const auto* weight = dynamic_cast<const quant::QuantizedWeight*>(block.ops()[op].weight.get());
      if (weight == nullptr) throw InternalError(name(), "the weights must be quantized before their inputs");
      const auto whole = with_quantized_input(*weight, settings->part<quant::ActivationScheme>(), stats);
      OperatorRow& report = context.rows.at(row++);
      report.scheme = whole->describe();
      report.bytes_after = whole->bytes();
      report.bits_per_weight = 8.0 * static_cast<double>(report.bytes_after) /
                               static_cast<double>(report.out_features * report.in_features);
      report.product = whole->has_int8_product() ? "int8 product" : "simulation";
      block.replace(op, whole);
    }
  }

 private:
  static std::shared_ptr<quant::QuantizedInputWeight> with_quantized_input(
      const quant::QuantizedWeight& weight, const quant::ActivationScheme& scheme,
      const calib::InputStats& stats) {
    std::optional<quant::ActivationGrid> grid;
    if (!scheme.dynamic) {
      const auto [lowest, highest] =
          quant::covered_range({stats.token_lowest, stats.token_highest, stats.value_counts}, scheme);
      grid = quant::activation_grid(lowest, highest, scheme, weight.scale().scalar_type());
    }
    return std::make_shared<quant::QuantizedInputWeight>(weight, scheme, grid);
  }

  std::unique_ptr<Pass> weights_;
  bool is_static_;
  calib::Needs needs_;
};

using Int8PassOptions = PassOptionsOf<quant::QuantScheme, quant::ActivationScheme, SolverOptions,
                                      quant::GptqOptions, GptqOrderOptions>;

std::unique_ptr<PassOptions> int8_options() {
  auto options = std::make_unique<Int8PassOptions>();
  options->get<quant::QuantScheme>() = scheme_beside_activations();
  return options;
}

}  // namespace

std::unique_ptr<Pass> quantized_input_pass(std::unique_ptr<Pass> weights, const PassOptions& options) {
  return std::make_unique<QuantizedInputPass>(std::move(weights), options.part<quant::ActivationScheme>());
}

std::unique_ptr<Pass> quantized_input_pass(const std::string& method, const PassOptions& options) {
  const bool gptq = options.part<SolverOptions>().solver == Solver::kGptq;
  return quantized_input_pass(gptq ? gptq_pass(method, options) : rtn_pass(method), options);
}

PlannedWeight plan_quantized_input(const PassOptions& options, const char* method,
                                   const PlannedOperator& op) {
  const auto& scheme = options.part<quant::QuantScheme>();
  const auto& activations = options.part<quant::ActivationScheme>();
  activations.validate(method);
  if (scheme.format == quant::NumberFormat::kNf4) {
    throw InvalidArgument(method,
                          "format must be int or fp8_e4m3 beside quantized activations; received nf4");
  }
  PlannedWeight planned = plan_scheme(scheme, method, op);
  if (activations.dynamic && activations.symmetric_convention != quant::SymmetricConvention::kMidRange) {
    throw InvalidArgument(
        method,
        "activation_convention must be mid_range for dynamic activations, because readers of "
        "compressed-tensors apply that one; received restricted");
  }
  planned.scheme += "; " + activations.describe();
  planned.rounds_input = true;
  planned.bytes_after = quant::quantized_input_bytes(scheme, activations, op.out_features, op.in_features,
                                                     scheme.scale_type(op.dtype));
  return planned;
}

MethodInfo int8_method() {
  MethodInfo info;
  info.name = "int8";
  info.summary = "weights and activations as integers, 8 bits by default; products of integers";
  info.default_options = int8_options;
  info.cost = [](const PassOptions& options) {
    const MethodCost own{
        .flops_per_weight = 5'000, .cubic = 0, .result_bytes = 3.4, .moment_bytes = 0, .weight_bytes = 6};
    return cost_with_gptq(own, options.part<SolverOptions>().solver == Solver::kGptq);
  };
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    const bool gptq = options.part<SolverOptions>().solver == Solver::kGptq;
    check_solver(options, gptq ? TransformSolver::kGptq : TransformSolver::kRtn, "int8");
    return plan_quantized_input(options, "int8", op);
  };
  info.effect = scheme_effect;
  info.pass_settings = {"solver", "true_sequential", "activation_dynamic"};
  info.make_passes = [](const PassOptions& options) {
    return chain_of(quantized_input_pass("int8", options));
  };
  return info;
}

}  // namespace lcomp::pipeline
