#include "lcomp/quant/gptq.h"

#include <map>

#include "core/stopwatch.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/mismatch.h"
#include "lcomp/sparse/sparse_weight.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

std::string rung_text(linalg::Rung rung) {
  switch (rung) {
    case linalg::Rung::kPlain:
      return "cholesky";
    case linalg::Rung::kMoreDamping:
      return "more damping";
    case linalg::Rung::kDiagonalFloor:
      return "diagonal floor";
    case linalg::Rung::kFailed:
      break;
  }
  return "failed";
}

/// What measures best at 3 and 4 bits (docs/quantization.md).
constexpr int64_t kSweeps = 2;

using GptqPassOptions = PassOptionsOf<quant::QuantScheme, quant::GptqOptions, GptqOrderOptions>;

MatrixResult to_matrix_result(quant::GptqResult result) {
  OperatorRow row;
  row.loss = result.loss;
  if (std::isfinite(result.rtn_loss)) row.rtn_loss = result.rtn_loss;
  row.damping = result.damping;
  report_rung(result.rung, row);
  row.dead_columns = result.dead_columns;
  if (result.fell_back) {
    report_fallback(result.rung == linalg::Rung::kFailed
                        ? "rtn: the second moment could not be factored"
                        : fmt::format("rtn: its loss {:.4g} is not above that of gptq", result.rtn_loss),
                    row);
  }
  return {std::make_shared<quant::QuantizedWeight>(std::move(result.weight)), std::move(row)};
}

/// What operators of a group with the same settings share: they read one input.
struct Shared {
  quant::GptqFactor factor;
  double mismatch_weight = 0;
};

class GptqPass final : public Pass {
 public:
  GptqPass(std::string method, const GptqOrderOptions& options)
      : method_(std::move(method)), sequential_(options.true_sequential), rule_(options.mismatch) {}

  std::string name() const override { return method_; }
  calib::Needs needs() const override {
    return {.second_moment = true,
            .mismatch = rule_ != quant::MismatchRule::kNone,
            .halves = rule_ == quant::MismatchRule::kSplit};
  }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    struct Solved {
      size_t op;
      MatrixResult result;
      double seconds;
    };
    std::vector<Solved> solved;
    {
      // The factors are freed before the results are measured.
      std::map<const PassOptions*, Shared> shared;
      for (const size_t op : block.groups()[group].operators) {
        const PassOptions* settings = context.settings(block.ops()[op].info.name);
        if (settings == nullptr) continue;
        const Stopwatch watch;
        if (!shared.contains(settings))
          shared.emplace(settings, share(block, group, *settings, stats, context));
        MatrixResult result = solve(block.ops()[op], *settings, stats, shared.at(settings), context);
        solved.push_back({op, std::move(result), watch.seconds()});
      }
    }
    for (Solved& s : solved) {
      replace_and_report(block, s.op, std::move(s.result), name(), s.seconds, stats, context);
    }
  }

 private:
  static quant::QuantScheme scheme_of(const PassOptions& settings, const PassContext& context) {
    return with_scale_type(settings.part<quant::QuantScheme>(), context.model_dtype);
  }

  static quant::GptqOptions options_of(const PassOptions& settings, const PassContext& context) {
    quant::GptqOptions options = settings.part<quant::GptqOptions>();
    options.strict = options.strict || context.strict;
    return options;
  }

  Shared share(const model::Block& block, size_t group, const PassOptions& settings,
               const calib::InputStats& stats, const PassContext& context) const {
    const quant::GptqOptions options = options_of(settings, context);
    Shared made;
    made.mismatch_weight = mismatch_weight(block, group, settings, stats, options.damping, context);
    made.factor =
        quant::gptq_factor(stats.second_moment, scheme_of(settings, context), options, &context.pool);
    return made;
  }

  static MatrixResult solve(const model::LinearOp& op, const PassOptions& settings,
                            const calib::InputStats& stats, const Shared& shared,
                            const PassContext& context) {
    at::Tensor target = op.weight->dense();
    const bool corrected = shared.mismatch_weight > 0 && shared.factor.inverse.upper.defined();
    if (corrected) {
      target = quant::mismatch_target(target, stats.mismatch, shared.factor.inverse, shared.factor.order,
                                      shared.mismatch_weight, &context.pool);
    }
    MatrixResult result = to_matrix_result(quant::gptq(target, shared.factor, scheme_of(settings, context),
                                                       options_of(settings, context), &context.pool,
                                                       sparse::kept_mask(*op.weight)));
    if (settings.part<GptqOrderOptions>().mismatch != quant::MismatchRule::kNone)
      result.row.mismatch_weight = corrected ? shared.mismatch_weight : 0;
    return result;
  }

  std::string method_;
  bool sequential_;
  quant::MismatchRule rule_;
};

}  // namespace

void report_step(std::string step, int64_t index, OperatorRow& row) {
  if (!row.rung.empty() && index <= row.rung_index) return;
  row.rung = std::move(step);
  row.rung_index = index;
}

void report_rung(linalg::Rung rung, OperatorRow& row) {
  report_step(rung_text(rung), static_cast<int64_t>(rung), row);
}

void report_fallback(std::string fallback, OperatorRow& row) {
  row.fell_back = true;
  row.fallback = std::move(fallback);
}

std::vector<IdleSetting> idle_without_gptq() {
  std::vector<IdleSetting> idle;
  for (const std::string_view name : {"block_size", "damping", "act_order", "static_groups", "stale_groups",
                                      "store_group_index", "fallback_to_rtn", "sweeps", "refit"})
    idle.push_back({name, "with solver gptq"});
  return idle;
}

std::vector<IdleSetting> SolverOptions::idle() const {
  return solver == Solver::kGptq ? std::vector<IdleSetting>{} : idle_without_gptq();
}

double mismatch_weight(const model::Block& block, size_t group, const PassOptions& settings,
                       const calib::InputStats& stats, double damping, const PassContext& context) {
  const auto& options = settings.part<GptqOrderOptions>();
  if (options.mismatch == quant::MismatchRule::kNone) return 0;
  if (options.mismatch == quant::MismatchRule::kFixed) return options.mismatch_weight;
  std::vector<at::Tensor> weights;
  for (const size_t op : block.groups()[group].operators) {
    const PassOptions* of_op = context.settings(block.ops()[op].info.name);
    if (of_op != nullptr && of_op->part<GptqOrderOptions>() == options)
      weights.push_back(block.ops()[op].weight->dense());
  }
  return quant::mismatch_weight(weights, {stats.mismatch, stats.half_moment, stats.half_mismatch}, damping,
                                &context.pool);
}

std::unique_ptr<Pass> gptq_pass(std::string method, const PassOptions& options) {
  return std::make_unique<GptqPass>(std::move(method), options.part<GptqOrderOptions>());
}

void settle_mismatch(GptqOrderOptions& order, const std::function<bool(std::string_view)>& given,
                     bool is_last) {
  // The correction needs the samples to move on group by group, which only the last pass may.
  if (!given("mismatch") && is_last && order.true_sequential) order.mismatch = quant::MismatchRule::kSplit;
}

void settle_gptq(GptqSettings settings, const std::function<bool(std::string_view)>& given, bool is_last) {
  settle_mismatch(settings.order, given, is_last);
  const bool refines = settings.scheme.format == quant::NumberFormat::kInt;
  if (!given("sweeps")) settings.options.sweeps = refines ? kSweeps : 0;
  if (!given("refit")) settings.options.refit = refines;
}

MethodInfo gptq_method() {
  MethodInfo info;
  info.name = "gptq";
  info.summary = "rounding with second-order error compensation, column by column (Frantar et al. 2023)";
  info.needs_calibration = true;
  info.default_options = [] {
    auto options = std::make_unique<GptqPassOptions>();
    options->get<quant::QuantScheme>().range = quant::RangeRule::kHessian;  // what measures best
    return options;
  };
  info.settle = settle_as_gptq<GptqPassOptions>;
  info.cost = constant_cost(kGptqCost);
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    check_gptq(options);
    return plan_scheme(options.part<quant::QuantScheme>(), "gptq", op);
  };
  info.effect = scheme_effect;
  info.pass_settings = {"true_sequential"};
  info.make_passes = [](const PassOptions& options) { return chain_of(gptq_pass("gptq", options)); };
  return info;
}

}  // namespace lcomp::pipeline
