#include "lcomp/quant/awq.h"

#include "core/stopwatch.h"
#include "lcomp/model/fold.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/solver.h"

namespace lcomp::pipeline {
namespace {

/// What AWQ does besides its scales.
struct AwqClipOptions {
  bool clip = true;

  void visit(FieldVisitor& v) {
    v.field("clip", clip,
            "cut the extremes of groups where that makes rounding hurt less (solver rtn; not of queries and "
            "keys)");
  }
};

using AwqPassOptions = PassOptionsOf<quant::QuantScheme, TransformSolverOptions, quant::AwqOptions,
                                     AwqClipOptions, quant::GptqOptions, GptqOrderOptions>;

/// Scales (and cuts) the operators of a group; leaves float32 matrices for the solver.
class AwqScalePass final : public Pass {
 public:
  explicit AwqScalePass(bool clips) : clips_(clips) {}

  std::string name() const override { return "awq"; }
  calib::Needs needs() const override { return {.second_moment = true, .abs_mean = true}; }
  bool keeps_function() const override { return !clips_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const Stopwatch watch;
    const TransformGroup members(block, group, context);
    if (members.ops.empty()) return;
    const PassOptions& settings = *members.settings[0];
    const at::Tensor sources = model::absorber_rows(block, group);
    quant::AwqScale found;
    if (sources.defined()) {
      found = quant::awq_scale(members.weights, members.schemes, stats.abs_mean, stats.second_moment,
                               settings.part<quant::AwqOptions>(), sources, &context.pool);
    }
    calib::InputStats scaled = stats;
    if (found.index >= 0) scaled = calib::divided(stats, model::fold_input_scale(block, group, found.scale));
    if (clips_) clip(block, members, scaled, context);
    const std::string what =
        found.index >= 0 ? fmt::format("inputs scaled, ratio {:.2f}", found.ratio) : "inputs as they were";
    report_transform(block, members, what, name(), TransformLoss{found.loss, found.rtn_loss}, watch.seconds(),
                     stats, context);
  }

 private:
  static void clip(model::Block& block, const TransformGroup& members, const calib::InputStats& stats,
                   PassContext& context) {
    for (size_t i = 0; i < members.ops.size(); ++i) {
      const model::LinearOp& op = block.ops()[members.ops[i]];
      const bool wanted = members.settings[i]->part<AwqClipOptions>().clip;
      // Cutting what makes attention scores does harm beyond the operator's own output (the authors' rule).
      if (!wanted || op.info.role == model::OperatorRole::kQuery || op.info.role == model::OperatorRole::kKey)
        continue;
      if (members.schemes[i].granularity == quant::Granularity::kTensor) continue;
      const auto cut =
          quant::awq_clip(op.weight->dense(), stats.second_moment, members.schemes[i], &context.pool);
      block.replace(members.ops[i], std::make_shared<DenseWeight>(cut.weight.to(at::kFloat)));
    }
  }

  bool clips_;
};

}  // namespace

MethodInfo awq_method() {
  MethodInfo info;
  info.name = "awq";
  info.summary =
      "input channels scaled so that rounding hurts the outputs least, then rounding or GPTQ (Lin et al. "
      "2024)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<AwqPassOptions>(); };
  info.cost = [](const PassOptions& options) {
    return cost_with_solver({.flops_per_weight = 42'000,
                             .cubic = 55,
                             .result_bytes = 0.5,
                             .moment_bytes = 16,
                             .weight_bytes = 27},
                            options);
  };
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    return plan_solved(options, "awq", op);
  };
  info.effect = [](const PassOptions& options) {
    return Effect{.transforms = true,
                  .quantizes = options.part<TransformSolverOptions>().solver != TransformSolver::kNone,
                  .keeps_zeros = options.part<quant::QuantScheme>().has_zero()};
  };
  info.pass_settings = {"solver", "clip", "true_sequential"};
  info.make_passes = [](const PassOptions& options) {
    const bool clips = options.part<AwqClipOptions>().clip &&
                       options.part<TransformSolverOptions>().solver == TransformSolver::kRtn;
    PassChain chain = chain_of(std::make_unique<AwqScalePass>(clips));
    if (auto solver = solver_pass("awq", options)) chain.push_back(std::move(solver));
    return chain;
  };
  return info;
}

}  // namespace lcomp::pipeline
