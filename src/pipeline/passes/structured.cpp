#include "lcomp/sparse/structured.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/pipeline/survey.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/unit_survey.h"

/// Methods that delete units of blocks: the pass deletes what the survey chose, block by block, and lets what
/// reads the units make up for it.
namespace lcomp::pipeline {
namespace {

using model::DependencyGroup;

/// The closing operator on the inputs that are left.
struct Narrowed {
  at::Tensor weight;
  OperatorRow row;
};

/// Kwon et al. stop tuning beyond this.
constexpr double kLargestFactor = 10;

void fall_back(const std::string& reason, const PassContext& context, OperatorRow& row) {
  if (context.strict) throw NumericalError("compensate", "columns must be made up for; " + reason);
  report_fallback("columns as they were: " + reason, row);
}

/// Rows or columns of the units `kept`.
std::vector<int64_t> places_of(const std::vector<int64_t>& kept, int64_t per_unit) {
  std::vector<int64_t> places;
  for (const int64_t unit : kept) {
    for (int64_t i = 0; i < per_unit; ++i) places.push_back(unit * per_unit + i);
  }
  return places;
}

Narrowed narrowed(const at::Tensor& weight, const std::vector<int64_t>& kept, int64_t per_unit,
                  const calib::InputStats& stats, const ShrinkOptions& options, PassContext& context) {
  const std::vector<int64_t> columns = places_of(kept, per_unit);
  Narrowed result;
  result.weight = weight.index_select(1, at::tensor(columns, at::kLong));
  if (options.compensate == Compensation::kNone) return result;
  const at::Tensor& moment = stats.second_moment;
  if (options.compensate == Compensation::kRefit) {
    auto fitted = sparse::refit_columns(weight, moment, columns, options.damping, &context.pool);
    result.row.damping = fitted.damping;
    report_rung(fitted.rung, result.row);
    if (fitted.failed) fall_back("their least squares could not be had", context, result.row);
    result.weight = fitted.weight;
  } else {
    const at::Tensor products = sparse::unit_products(weight, moment, per_unit, &context.pool);
    const at::Tensor units = at::tensor(kept, at::kLong);
    const at::Tensor rows = products.index_select(0, units);
    // In units of the mean, so that the damping does not depend on the scale of the activations.
    const double scale = products.diagonal().mean().item<double>();
    if (scale > 0) {
      const at::Tensor r =
          sparse::tune_scales(rows.index_select(1, units) / scale, rows.sum(1) / scale, options.damping);
      if (r.abs().le(kLargestFactor).all().item<bool>()) {
        result.weight = result.weight * r.repeat_interleave(per_unit);
      } else {
        fall_back("a factor left [-10, 10]", context, result.row);
      }
    }
  }
  result.row.loss =
      sparse::narrowed_loss(weight, result.weight.to(context.model_dtype), moment, columns, &context.pool);
  const double energy = activation_energy(weight, moment, &context.pool);
  if (energy > 0) result.row.activation_error = std::sqrt(std::max(0.0, *result.row.loss) / energy);
  return result;
}

class UnitPass final : public Pass {
 public:
  UnitPass(std::string method, const PassOptions& entry, bool rearrange, int64_t gradient_batch)
      : method_(std::move(method)),
        reads_inputs_(entry.part<ShrinkOptions>().compensate != Compensation::kNone),
        rearrange_(rearrange),
        gradient_batch_(gradient_batch) {}

  std::string name() const override { return method_; }
  calib::Needs needs() const override {
    return {.second_moment = reads_inputs_, .unit_gradients = rearrange_};
  }
  bool sequential() const override { return true; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    for (const DependencyGroup& units : block.dependency_groups()) {
      if (units.input_group != group) continue;
      const PassOptions* settings = context.settings(block.ops()[units.closing().op].info.name);
      if (settings == nullptr) continue;
      std::vector<int64_t> kept = settings->part<ChosenUnits>().kept;
      // Protected blocks, and those that keep all of them.
      if (kept.empty() || static_cast<int64_t>(kept.size()) == units.units) continue;
      if (rearrange_) {
        const at::Tensor gradients = batched(stats.unit_gradients, gradient_batch_);
        kept = complement(sparse::rearrange_units(gradients, complement(kept, units.units)), units.units);
      }
      shrink(block, units, kept, settings->part<ShrinkOptions>(), stats, context);
    }
  }

 private:
  void shrink(model::Block& block, const DependencyGroup& units, const std::vector<int64_t>& kept,
              const ShrinkOptions& options, const calib::InputStats& stats, PassContext& context) const {
    const Stopwatch watch;
    const std::vector<model::LinearOp> before = block.ops();
    const model::UnitSlice& closing = units.closing();
    Narrowed fitted =
        narrowed(before[closing.op].weight->dense(), kept, closing.per_unit, stats, options, context);
    if (!at::isfinite(fitted.weight).all().item<bool>()) {
      throw NumericalError(method_, fmt::format("the new weight of '{}' must be finite; it is not",
                                                before[closing.op].info.name));
    }
    block.keep_units(units, kept);
    // The run rounds it to the model's type when no later pass works on it.
    block.replace(closing.op, std::make_shared<DenseWeight>(fitted.weight.to(at::kFloat)));
    for (const model::UnitSlice& slice : units.slices) {
      const bool is_closing = slice.op == closing.op;
      OperatorRow row =
          row_of(before[slice.op], block, slice, is_closing ? std::move(fitted.row) : OperatorRow(), context);
      const at::Tensor original = before[slice.op].weight->dense();
      const at::Tensor places = at::tensor(places_of(kept, slice.per_unit), at::kLong);
      const at::Tensor masked =
          at::zeros(original.sizes(), at::kFloat)
              .index_copy_(slice.rows ? 0 : 1, places, block.ops()[slice.op].weight->dense().to(at::kFloat));
      const WeightError error = weight_error(original, masked, {}, &context.pool);
      row.weight_error = error.relative;
      row.max_abs_error = error.largest;
      row.tokens = stats.tokens;
      require_regular(row, context);
      context.rows.push_back(std::move(row));
    }
    context.rows.back().seconds = watch.seconds();
  }

  OperatorRow row_of(const model::LinearOp& before, const model::Block& block, const model::UnitSlice& slice,
                     OperatorRow row, const PassContext& context) const {
    const model::LinearOp& after = block.ops()[slice.op];
    row.name = before.info.name;
    row.kind = before.info.kind;
    row.block = block.index();
    row.method = method_;
    row.scheme = fmt::format("{} of {} {}", slice.rows ? after.info.out_features : after.info.in_features,
                             slice.rows ? before.info.out_features : before.info.in_features,
                             slice.rows ? "outputs" : "inputs");
    row.out_features = before.info.out_features;
    row.in_features = before.info.in_features;
    row.bytes_before = stored_bytes(before, context.model_dtype);
    row.bytes_after = stored_bytes(after, context.model_dtype);
    row.bits_per_weight =
        8.0 * static_cast<double>(row.bytes_after) / static_cast<double>(row.out_features * row.in_features);
    return row;
  }

  std::string method_;
  bool reads_inputs_;
  bool rearrange_;
  int64_t gradient_batch_;
};

PlannedWeight plan_units(const PassOptions& options, const PlannedOperator& op) {
  const double kept = 1 - options.part<ShrinkOptions>().ratio;
  const auto weights = static_cast<double>(op.out_features * op.in_features);
  return {
      .scheme = fmt::format("narrower, about {:.0f} %", 100 * kept),
      .bytes_after = static_cast<int64_t>(kept * weights) * static_cast<int64_t>(c10::elementSize(op.dtype)),
      .kept = kept,
      .is_estimate = true};
}

Effect shrink_effect(const PassOptions& options, bool reads_gradients) {
  return {.quantizes = false,
          .reads_gradients = reads_gradients,
          .deletes_in_steps = options.part<ShrinkOptions>().channel_step};
}

}  // namespace

MethodInfo fisher_mask_method() {
  MethodInfo info;
  info.name = "fisher_mask";
  info.summary = "deletes attention heads and channels by the Fisher information of masks (Kwon et al. 2022)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<FisherMaskSettings>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 12'000, .cubic = 5, .result_bytes = 0.6, .moment_bytes = 14, .weight_bytes = 67});
  info.plan_weight = plan_units;
  info.make_passes = [](const PassOptions& options) {
    const auto& own = options.part<FisherMaskOptions>();
    return chain_of(std::make_unique<UnitPass>("fisher_mask", options, own.rearrange, own.gradient_batch));
  };
  info.effect = [](const PassOptions& options) { return shrink_effect(options, true); };
  info.files = [](const PassOptions& options) {
    const auto& own = options.part<FisherMaskOptions>();
    return own.budget == UnitBudget::kLatency ? std::vector{own.latency_table} : std::vector<std::string>{};
  };
  info.pass_settings = {"ratio",   "channel_step",   "budget",    "latency_table", "tokens",
                        "uniform", "gradient_batch", "rearrange", "compensate",    "damping"};
  info.make_survey = fisher_mask_survey;
  return info;
}

MethodInfo llm_pruner_method() {
  MethodInfo info;
  info.name = "llm_pruner";
  info.summary =
      "deletes attention heads and channels by Taylor importance of their weights (Ma et al. 2023)";
  info.needs_calibration = false;
  info.default_options = [] { return std::make_unique<PrunerSettings>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 12'000, .cubic = 5, .result_bytes = 5.2, .moment_bytes = 7, .weight_bytes = 64});
  info.plan_weight = plan_units;
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<UnitPass>("llm_pruner", options, false, 1));
  };
  info.effect = [](const PassOptions& options) {
    const auto importance = options.part<PrunerOptions>().importance;
    const bool gradients =
        importance != sparse::UnitImportance::kL1 && importance != sparse::UnitImportance::kL2;
    return shrink_effect(options, gradients);
  };
  info.pass_settings = {"ratio",         "channel_step", "importance", "grouping", "selection",
                        "protect_first", "protect_last", "compensate", "damping"};
  info.make_survey = llm_pruner_survey;
  return info;
}

}  // namespace lcomp::pipeline
