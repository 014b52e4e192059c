#include "lcomp/lowrank/low_rank.h"

#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/rank_plan.h"
#include "pipeline/passes/target_pass.h"

namespace lcomp::pipeline {
namespace {

using lowrank::InputMetric;

struct UpdateOptions {
  bool update = false;

  void visit(FieldVisitor& v) {
    v.field("update", update,
            "solve the output's factor anew by the second moment of the inputs that the operator gets in the "
            "compressed model");
  }
};

struct AsvdOptions {
  double alpha = 0.5;

  void visit(FieldVisitor& v) {
    v.field("alpha", alpha, {0, 2}, "inputs count as their mean magnitude to this power; 0 is plain SVD");
  }
};

enum class PcaSide { kOutputs, kInputs };

struct PcaOptions {
  PcaSide project = PcaSide::kOutputs;
  bool centre = true;

  void visit(FieldVisitor& v);
};

}  // namespace
}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::PcaSide> {
  static constexpr std::array<std::string_view, 2> names = {"outputs", "inputs"};
};
}  // namespace lcomp

namespace lcomp::pipeline {
namespace {

void PcaOptions::visit(FieldVisitor& v) {
  v.field("project", project, "what is projected on its strongest directions: the outputs, or the inputs");
  v.field("centre", centre,
          "take deviations from the mean, which goes into the bias, where an operator has one");
}

/// How errors count in the choice of an operator's directions; `own` are its statistics.
using MetricOf = InputMetric (*)(const at::Tensor& weight, const calib::InputStats& own, const PassOptions&);

/// What tells the methods of the family apart.
struct Family {
  const char* name;
  const char* summary;
  calib::Needs needs;
  MetricOf metric;
  MethodCost cost;
};

const Family kSvd = {
    "svd",
    "two factors of low rank by singular values, without data: the baseline",
    {},
    [](const at::Tensor& weight, const calib::InputStats&, const PassOptions&) {
      return InputMetric::plain(weight.size(1));
    },
    {.flops_per_weight = 24'000, .cubic = 60, .result_bytes = 12, .moment_bytes = 0, .weight_bytes = 12}};

const Family kFwsvd = {
    "fwsvd",
    "two factors, inputs weighed by the Fisher information of their weights (Hsu et al. 2022)",
    {.gradient_squares = true},
    [](const at::Tensor&, const calib::InputStats& own, const PassOptions&) {
      return scaled_metric(own.gradient_squares.front().sum(0, false, at::kDouble).sqrt());
    },
    {.flops_per_weight = 24'000, .cubic = 60, .result_bytes = 12.5, .moment_bytes = 0, .weight_bytes = 14}};

const Family kAsvd = {
    "asvd",
    "two factors, inputs weighed by their magnitude (Yuan et al. 2023)",
    {.abs_mean = true},
    [](const at::Tensor&, const calib::InputStats& own, const PassOptions& settings) {
      return scaled_metric(own.abs_mean.to(at::kDouble).pow(settings.part<AsvdOptions>().alpha));
    },
    {.flops_per_weight = 24'000, .cubic = 60, .result_bytes = 3.1, .moment_bytes = 0, .weight_bytes = 40}};

InputMetric moment_metric(const at::Tensor&, const calib::InputStats& own, const PassOptions&) {
  return InputMetric::moment(own.second_moment);
}

const Family kSvdLlm = {
    "svd_llm",
    "two factors that change the outputs least, for the inputs as they are in the compressed model "
    "(Wang et al. 2025)",
    {.second_moment = true},
    moment_metric,
    {.flops_per_weight = 12'000, .cubic = 38, .result_bytes = 11, .moment_bytes = 44, .weight_bytes = 46}};

const Family kPca = {
    "pca",
    "projection of outputs or inputs on their principal directions",
    {.second_moment = true},
    moment_metric,
    {.flops_per_weight = 24'000, .cubic = 60, .result_bytes = 14, .moment_bytes = 24, .weight_bytes = 12}};

/// The outer product of the mean taken off the second moment: the covariance times the number of tokens.
at::Tensor covariance(const calib::InputStats& stats) {
  const at::Tensor mean = stats.mean.to(at::kDouble);
  return stats.second_moment.to(at::kDouble) - static_cast<double>(stats.tokens) * at::outer(mean, mean);
}

class LowRankPass : public TargetPass {
 public:
  /// updated: whether the output's factor is solved anew by the second moment.
  LowRankPass(const Family& family, bool updated, const PassOptions& entry,
              const GptqOrderOptions* order = nullptr)
      : TargetPass(family.name, family.needs, order), family_(family), updated_(updated) {
    if (updated || entry.part<FactorOptions>().quantizes()) needs_.second_moment = true;
  }

  bool sequential() const override { return needs_.any() && TargetPass::sequential(); }

 protected:
  MatrixResult solve(const model::LinearOp& op, const Target& target, at::ScalarType model_dtype,
                     ThreadPool* pool) const override {
    const auto& ranks = target.settings->part<RankOptions>();
    const int64_t rank = ranks.rank_of(op.info.out_features, op.info.in_features);
    MatrixResult result;
    if (rank == 0) {
      result.weight = std::make_shared<DenseWeight>(op.weight->dense().to(model_dtype));
      return result;
    }
    const std::optional<InputMetric> own = own_moment(op, target);
    const InputMetric* moment = own ? &*own : target.moment;
    lowrank::Factors factors = factor(target, moment, rank, pool);
    if (updated_) lowrank::update_left(factors, target.weight, *moment, pool);
    const FactorStore store(target.settings->part<FactorOptions>(), moment, model_dtype, result.row);
    result.weight = lowrank::factored_weight(factors, ranks.form, store, target.weight, moment);
    if (moment != nullptr) result.row.loss = moment->loss(target.weight - result.weight->dense(), pool);
    if (own) report_factoring(*own, result.row);
    return result;
  }

  /// One pair of factors for all of them, of as many numbers as they would take by themselves, where that
  /// loses less.
  std::vector<MatrixResult> solve_together(const model::Block& block, const std::vector<Target>& targets,
                                           at::ScalarType model_dtype, ThreadPool* pool) const override {
    if (targets.size() < 2) return {};
    const PassOptions& settings = *targets[0].settings;
    const auto& ranks = settings.part<RankOptions>();
    const bool may_share = std::all_of(targets.begin(), targets.end(), [&](const Target& t) {
      const auto &own = t.settings->part<RankOptions>(), &first = settings.part<RankOptions>();
      return own.share == ShareFactor::kAuto && own.form == first.form && own.solver == first.solver &&
             own.rank_multiple == first.rank_multiple && !own_moment(block.ops()[t.op], t) &&
             t.settings->part<FactorOptions>() == settings.part<FactorOptions>();
    });
    if (!may_share) return {};
    const InputMetric& moment = *targets[0].moment;
    Target stacked = targets[0];
    std::vector<at::Tensor> weights;
    std::vector<lowrank::StackedRows> names;
    int64_t size = 0;
    double apart = 0;
    for (const Target& t : targets) {
      const auto& own = t.settings->part<RankOptions>();
      const int64_t out = t.weight.size(0), in = t.weight.size(1), rank = own.rank_of(out, in);
      size += rank > 0 ? lowrank::factored_size(own.form, out, in, rank) : out * in;
      if (rank > 0) apart += factor(t, &moment, rank, pool).tail;
      weights.push_back(t.weight);
      names.push_back({block.ops()[t.op].info.name, out});
    }
    stacked.weight = at::cat(weights);
    const int64_t out = stacked.weight.size(0), in = stacked.weight.size(1);
    const int64_t rank = lowrank::largest_rank(ranks.form, out, in, size, ranks.rank_multiple);
    if (rank == 0 || lowrank::factored_size(ranks.form, out, in, rank) >= out * in) return {};
    const lowrank::Factors factors = factor(stacked, &moment, rank, pool);
    if (factors.tail >= apart) return {};
    OperatorRow common;
    const FactorStore store(settings.part<FactorOptions>(), &moment, model_dtype, common);
    std::vector<MatrixResult> results;
    for (WeightPtr& weight :
         lowrank::shared_factored_weights(factors, ranks.form, names, store, stacked.weight, &moment)) {
      const Target& target = targets[results.size()];
      MatrixResult& result = results.emplace_back();
      result.weight = std::move(weight);
      result.row = common;
      result.row.loss = moment.loss(target.weight - result.weight->dense(), pool);
    }
    return results;
  }

  /// The metric of an operator that has one of its own, in place of the second moment of the group.
  virtual std::optional<InputMetric> own_moment(const model::LinearOp&, const Target&) const {
    return std::nullopt;
  }
  virtual lowrank::Factors factor(const Target& target, const InputMetric* moment, int64_t rank,
                                  ThreadPool* pool) const {
    const lowrank::Solver solver = target.settings->part<RankOptions>().solver;
    if (family_.metric == moment_metric)
      return lowrank::low_rank(target.weight, *moment, rank, solver, {}, pool);
    return lowrank::low_rank(target.weight, family_.metric(target.weight, target.own, *target.settings), rank,
                             solver, {}, pool);
  }

 private:
  const Family& family_;
  bool updated_;
};

class PcaPass final : public LowRankPass {
 public:
  explicit PcaPass(const PassOptions& entry)
      : LowRankPass(kPca, false, entry), centres_(entry.part<PcaOptions>().centre) {
    needs_.mean = centres_;
  }

 protected:
  std::optional<InputMetric> own_moment(const model::LinearOp& op, const Target& target) const override {
    if (!moves_mean(op)) return std::nullopt;
    return InputMetric::moment(covariance(target.own));
  }

  lowrank::Factors factor(const Target& target, const InputMetric* moment, int64_t rank,
                          ThreadPool* pool) const override {
    if (target.settings->part<PcaOptions>().project == PcaSide::kInputs)
      return lowrank::project_inputs(target.weight, *moment, rank, pool);
    return LowRankPass::factor(target, moment, rank, pool);
  }

  /// b + (W - W') mean(x).
  void finish(model::Block& block, const Target& target, const MatrixResult& result) const override {
    const model::LinearOp& op = block.ops()[target.op];
    if (!moves_mean(op)) return;
    const at::Tensor lost = target.weight - result.weight->dense();
    block.set_vector(op.info.name + ".bias", op.bias + lost.mv(target.own.mean.to(at::kDouble)));
  }

 private:
  bool moves_mean(const model::LinearOp& op) const { return centres_ && op.bias.defined(); }

  bool centres_;
};

/// All directions of an operator in the family's metric.
FullFactors full_factors(const Family& family) {
  return [&family](const at::Tensor& weight, const calib::InputStats& own, const PassOptions& settings,
                   ThreadPool* pool) {
    return lowrank::low_rank(weight, family.metric(weight, own, settings),
                             std::min(weight.size(0), weight.size(1)), lowrank::Solver::kGram, {}, pool);
  };
}

/// Those of the inputs, where they are projected. A mean that will go into a bias is left in.
lowrank::Factors full_pca(const at::Tensor& weight, const calib::InputStats& own, const PassOptions& settings,
                          ThreadPool* pool) {
  if (settings.part<PcaOptions>().project == PcaSide::kOutputs)
    return full_factors(kPca)(weight, own, settings, pool);
  return lowrank::project_inputs(weight, InputMetric::moment(own.second_moment),
                                 std::min(weight.size(0), weight.size(1)), pool);
}

template <class Options>
MethodInfo family_method(const Family& family, FullFactors full) {
  MethodInfo info;
  info.name = family.name;
  info.summary = family.summary;
  info.needs_calibration = family.needs.any() || family.needs.gradients();
  info.default_options = [] { return std::make_unique<Options>(); };
  info.cost = constant_cost(family.cost);
  info.plan_weight = [&family](const PassOptions& options, const PlannedOperator& op) {
    if (family.metric != moment_metric && options.part<RankOptions>().share != ShareFactor::kNone) {
      throw InvalidArgument(
          family.name, "share must be none, because operators differ in what inputs count for; it is auto");
    }
    return plan_factors(options, family.name, op);
  };
  info.effect = [reads = family.needs.gradients()](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .reads_gradients = reads, .keeps_zeros = false};
  };
  info.pass_settings = {"factor_bits"};
  add_rank_allocation(info, family.needs, std::move(full));
  return info;
}

/// The same for methods that know nothing of the inputs as they are in the compressed model, unless they
/// update.
template <class Options>
MethodInfo updated_method(const Family& family) {
  MethodInfo info = family_method<Options>(family, full_factors(family));
  info.pass_settings.emplace_back("update");
  info.cost = [&family](const PassOptions& options) {
    return options.part<UpdateOptions>().update ? larger_of(family.cost, kSvdLlm.cost) : family.cost;
  };
  info.make_passes = [&family](const PassOptions& options) {
    return chain_of(std::make_unique<LowRankPass>(family, options.part<UpdateOptions>().update, options));
  };
  return info;
}

}  // namespace

MethodInfo svd_method() {
  return updated_method<PassOptionsOf<RankOptions, FactorOptions, UpdateOptions>>(kSvd);
}

MethodInfo fwsvd_method() {
  return updated_method<PassOptionsOf<RankOptions, FactorOptions, UpdateOptions>>(kFwsvd);
}

MethodInfo asvd_method() {
  return updated_method<PassOptionsOf<RankOptions, AsvdOptions, FactorOptions, UpdateOptions>>(kAsvd);
}

MethodInfo svd_llm_method() {
  using Options = PassOptionsOf<RankOptions, FactorOptions, GptqOrderOptions>;
  MethodInfo info = family_method<Options>(kSvdLlm, full_factors(kSvdLlm));
  info.pass_settings.emplace_back("true_sequential");
  info.settle = [ranks = info.settle](PassOptions& options, const auto& given, bool is_last) {
    ranks(options, given, is_last);
    settle_mismatch(options.part<GptqOrderOptions>(), given, is_last);
  };
  info.make_passes = [](const PassOptions& options) {
    const auto& order = options.part<GptqOrderOptions>();
    return chain_of(std::make_unique<LowRankPass>(kSvdLlm, false, options, &order));
  };
  return info;
}

MethodInfo pca_method() {
  MethodInfo info = family_method<PassOptionsOf<RankOptions, PcaOptions, FactorOptions>>(kPca, full_pca);
  info.pass_settings.emplace_back("centre");
  info.make_passes = [](const PassOptions& options) { return chain_of(std::make_unique<PcaPass>(options)); };
  return info;
}

}  // namespace lcomp::pipeline
