#include "lcomp/sparse/sparsegpt.h"

#include <map>

#include "core/stopwatch.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/sparsity_plan.h"
#include "pipeline/passes/sparsity_survey.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kSparseGptMethod = "sparsegpt";

struct SparseGptPassSettings {
  bool quantize = false;
  bool true_sequential = true;

  void visit(FieldVisitor& v) {
    v.field("quantize", quantize, "round what is kept to the grid of the settings below, in the same sweep");
    v.field("true_sequential", true_sequential,
            "take the statistics of each group of operators after the groups before it are pruned, instead "
            "of once per "
            "block");
  }
};

using SparseGptPassOptions =
    PassOptionsOf<sparse::Sparsity, AllocationOptions, SparseStorageOptions, sparse::SparseGptOptions,
                  SparseGptPassSettings, quant::QuantScheme>;

std::optional<quant::QuantScheme> grid_of(const PassOptions& options) {
  if (!options.part<SparseGptPassSettings>().quantize) return std::nullopt;
  return options.part<quant::QuantScheme>();
}

/// Operators with the same settings share the factor of their common input.
class Factors {
 public:
  Factors(const at::Tensor& second_moment, ThreadPool& pool) : second_moment_(second_moment), pool_(pool) {}

  const quant::GptqFactor& of(const PassOptions& settings) {
    auto found = factors_.find(&settings);
    if (found == factors_.end()) {
      const double damping = settings.part<sparse::SparseGptOptions>().damping;
      auto made = quant::gptq_factor(second_moment_, {.granularity = quant::Granularity::kChannel},
                                     {.damping = damping}, &pool_);
      found = factors_.emplace(&settings, std::move(made)).first;
    }
    return found->second;
  }

 private:
  at::Tensor second_moment_;
  ThreadPool& pool_;
  std::map<const PassOptions*, quant::GptqFactor> factors_;
};

/// Walks over some rows, for surveys; neither a refit nor the grid counts.
OperatorPruner walks_over_rows(const calib::InputStats& stats, PassContext& context) {
  auto factors = std::make_shared<Factors>(stats.second_moment, context.pool);
  return
      [factors, &context](const at::Tensor& weight, const calib::InputStats&, const PassOptions& settings) {
        sparse::SparseGptOptions options = settings.part<sparse::SparseGptOptions>();
        options.refit = options.strict = false;
        return [factors, &context, weight, &settings, options](const at::Tensor& rows,
                                                               const sparse::Sparsity& sparsity) {
          return sparse::sparsegpt(weight.index_select(0, rows), factors->of(settings), sparsity, options,
                                   nullptr, context.model_dtype, &context.pool)
              .weight;
        };
      };
}

class SparseGptPass final : public Pass {
 public:
  explicit SparseGptPass(const PassOptions& options)
      : sequential_(options.part<SparseGptPassSettings>().true_sequential) {}

  std::string name() const override { return kSparseGptMethod; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    Factors factors(stats.second_moment, context.pool);
    for (const size_t op : block.groups()[group].operators) {
      const PassOptions* settings = context.settings(block.ops()[op].info.name);
      if (settings == nullptr) continue;
      const Stopwatch watch;
      MatrixResult result = prune(*block.ops()[op].weight, factors.of(*settings), *settings, context);
      replace_and_report(block, op, std::move(result), kSparseGptMethod, watch.seconds(), stats, context);
    }
  }

 private:
  static MatrixResult prune(const Weight& weight, const quant::GptqFactor& factor,
                            const PassOptions& settings, const PassContext& context) {
    sparse::SparseGptOptions options = settings.part<sparse::SparseGptOptions>();
    options.strict = options.strict || context.strict;
    std::optional<quant::QuantScheme> scheme = grid_of(settings);
    if (scheme) scheme = with_scale_type(*scheme, context.model_dtype);
    sparse::SparseGptResult found =
        sparse::sparsegpt(weight.dense(), factor, settings.part<sparse::Sparsity>(), options,
                          scheme ? &*scheme : nullptr, context.model_dtype, &context.pool);
    MatrixResult result;
    result.row.loss = found.loss;
    result.row.damping = found.damping;
    report_rung(found.rung, result.row);
    result.row.dead_columns = found.dead_columns;
    if (found.fell_back) {
      report_fallback(found.rung == linalg::Rung::kFailed
                          ? "wanda: the second moment could not be factored"
                          : fmt::format("wanda: its loss {:.4g} is not above that of sparsegpt", found.loss),
                      result.row);
    }
    result.weight = found.quantized ? std::make_shared<quant::QuantizedWeight>(std::move(*found.quantized))
                                    : store_sparse(found.weight, settings.part<SparseStorageOptions>(),
                                                   context.model_dtype);
    return result;
  }

  bool sequential_;
};

PlannedWeight plan_sparsegpt(const PassOptions& options, const PlannedOperator& op) {
  const auto& sparsity = options.part<sparse::Sparsity>();
  PlannedWeight pruned = plan_allocated(options, kSparseGptMethod, false, op);
  const auto scheme = grid_of(options);
  sparse::check_sparse_grid(sparsity, options.part<sparse::SparseGptOptions>(), scheme ? &*scheme : nullptr);
  if (!scheme) return pruned;
  PlannedWeight planned = plan_scheme(*scheme, kSparseGptMethod, op);
  planned.scheme += ", " + sparsity.describe();
  return planned;
}

}  // namespace

MethodInfo sparsegpt_method() {
  MethodInfo info;
  info.name = kSparseGptMethod;
  info.summary = "removes weights and makes up for it in those to their right (Frantar and Alistarh 2023)";
  info.needs_calibration = true;
  info.default_options = [] {
    auto options = std::make_unique<SparseGptPassOptions>();
    options->get<quant::QuantScheme>().range = quant::RangeRule::kHessian;
    return options;
  };
  info.plan_weight = plan_sparsegpt;
  info.cost = constant_cost(
      {.flops_per_weight = 40'000, .cubic = 8, .result_bytes = 6, .moment_bytes = 10, .weight_bytes = 42});
  info.pass_settings = {"true_sequential"};
  add_allocation(
      info, {.method = kSparseGptMethod, .needs = {.second_moment = true}, .start_group = walks_over_rows});
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<SparseGptPass>(options));
  };
  info.effect = [](const PassOptions& options) {
    return Effect{.quantizes = grid_of(options).has_value(), .prunes = true};
  };
  return info;
}

}  // namespace lcomp::pipeline
