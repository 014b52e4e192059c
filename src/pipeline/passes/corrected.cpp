#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/alternation.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/rank_plan.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/sparsity_plan.h"
#include "pipeline/passes/target_pass.h"

/// Sums of a part that is quantized or sparse and one of low rank.
namespace lcomp::pipeline {

/// By what errors are counted where the low-rank part is fitted.
enum class Weighing {
  kNone,       ///< all alike
  kMagnitude,  ///< inputs by their mean magnitude
  kOutputs,    ///< by what they do to the outputs: the second moment of the inputs
};

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::Weighing> {
  static constexpr std::array<std::string_view, 3> names = {"none", "magnitude", "outputs"};
};
}  // namespace lcomp

namespace lcomp::pipeline {
namespace {

using lowrank::InputMetric;

constexpr const char* kLqer = "lqer";
constexpr const char* kOats = "oats";
constexpr int64_t kSumCountBytes = 8;

struct BesideOptions {
  int64_t rank = 32;
  lowrank::Form form = lowrank::Form::kPivoted;
  Weighing weighing = Weighing::kOutputs;

  void visit(FieldVisitor& v) {
    v.field("rank", rank, {0}, "rank of the part in high precision; 0: none");
    v.field("form", form, "how its factors are stored: a pair, or pivoted");
    v.field("weighing", weighing,
            "what its errors are weighed by: nothing, the magnitude of the inputs, or what they do to the "
            "outputs");
  }
  std::vector<IdleSetting> idle() const {
    if (rank > 0) return {};
    std::vector<IdleSetting> idle;
    for (const std::string_view name : {"form", "weighing", "iterations", "factor_bits", "factor_group_size"})
      idle.push_back({name, "with a rank above 0"});
    return idle;
  }
};

InputMetric metric_of(Weighing weighing, const Target& target) {
  if (weighing == Weighing::kOutputs) return *target.moment;
  if (weighing == Weighing::kNone) return InputMetric::plain(target.weight.size(1));
  return scaled_metric(target.own.abs_mean);
}

WeightPtr stored_factors(const Target& target, const lowrank::Factors& factors, lowrank::Form form,
                         at::ScalarType dtype, OperatorRow& row) {
  const FactorStore store(target.settings->part<FactorOptions>(), target.moment, dtype, row);
  return lowrank::factored_weight(factors, form, store);
}

WeightPtr sum_of(const WeightPtr& part, const WeightPtr& beside) {
  return std::make_shared<SumWeight>(std::vector<WeightPtr>{part, beside});
}

/// The plan of a sum.
PlannedWeight with_factors(PlannedWeight part, const PlannedWeight& factors) {
  part.scheme += " + " + factors.scheme;
  part.bytes_after += kSumCountBytes + factors.bytes_after;
  return part;
}

double loss_of(const Target& target, const Weight& weight, ThreadPool* pool) {
  return target.moment->loss(target.weight - weight.dense(), pool);
}

// Quantized and low rank.

using LqerOptions = PassOptionsOf<quant::QuantScheme, SolverOptions, quant::GptqOptions, BesideOptions,
                                  lowrank::AlternationOptions, FactorOptions, GptqOrderOptions>;

class LqerPass final : public TargetPass {
 public:
  explicit LqerPass(const PassOptions& entry)
      : TargetPass(kLqer, {.second_moment = true, .abs_mean = true}, &entry.part<GptqOrderOptions>()) {}

 protected:
  MatrixResult solve(const model::LinearOp&, const Target& target, at::ScalarType model_dtype,
                     ThreadPool* pool) const override {
    const PassOptions& settings = *target.settings;
    const auto& beside = settings.part<BesideOptions>();
    MatrixResult result;
    const lowrank::PartOf quantize = quantizer(target, model_dtype, result.row, pool);
    result.row.rtn_loss = rounding_loss(target, model_dtype, pool);
    if (beside.rank == 0) {
      result.weight = quantize(target.weight);
      result.row.loss = loss_of(target, *result.weight, pool);
      return result;
    }
    const auto found = lowrank::alternate(target.weight, metric_of(beside.weighing, target), beside.rank,
                                          quantize, settings.part<lowrank::AlternationOptions>(), pool);
    const WeightPtr factors = stored_factors(target, found.low_rank, beside.form, model_dtype, result.row);
    // Fitted to what the stored factors leave, the quantized part usually loses less, but need not.
    for (const WeightPtr& part : {found.part, quantize(target.weight - factors->dense())}) {
      const WeightPtr sum = sum_of(part, factors);
      const double loss = loss_of(target, *sum, pool);
      if (result.weight && loss >= *result.row.loss) continue;
      result.weight = sum;
      result.row.loss = loss;
    }
    return result;
  }

 private:
  /// Of plain rounding, without a part beside it.
  static double rounding_loss(const Target& target, at::ScalarType model_dtype, ThreadPool* pool) {
    const auto scheme = with_scale_type(target.settings->part<quant::QuantScheme>(), model_dtype);
    const quant::QuantizedWeight nearest =
        quant::rtn(target.weight.to(at::kFloat), scheme, pool, target.own.second_moment.diagonal());
    return loss_of(target, nearest, pool);
  }

  /// Notes in the row what factoring the second moment took.
  static lowrank::PartOf quantizer(const Target& target, at::ScalarType model_dtype, OperatorRow& row,
                                   ThreadPool* pool) {
    const PassOptions& settings = *target.settings;
    const auto scheme = with_scale_type(settings.part<quant::QuantScheme>(), model_dtype);
    if (settings.part<SolverOptions>().solver == Solver::kRtn) {
      return [scheme, pool](const at::Tensor& matrix) {
        return std::make_shared<quant::QuantizedWeight>(quant::rtn(matrix.to(at::kFloat), scheme, pool));
      };
    }
    const auto& options = settings.part<quant::GptqOptions>();
    auto factor = std::make_shared<quant::GptqFactor>(
        quant::gptq_factor(target.own.second_moment, scheme, options, pool));
    report_rung(factor->inverse.rung, row);
    row.damping = factor->inverse.damping;
    if (factor->inverse.rung == linalg::Rung::kFailed)
      report_fallback("rtn: the second moment could not be factored", row);
    return [scheme, pool, factor, options](const at::Tensor& matrix) {
      return std::make_shared<quant::QuantizedWeight>(
          quant::gptq(matrix.to(at::kFloat), *factor, scheme, options, pool).weight);
    };
  }
};

PlannedWeight plan_lqer(const PassOptions& options, const PlannedOperator& op) {
  const bool gptq = options.part<SolverOptions>().solver == Solver::kGptq;
  if (gptq) check_gptq(options);
  const auto& scheme = options.part<quant::QuantScheme>();
  if (!gptq && scheme.range == quant::RangeRule::kHessian)
    throw InvalidArgument(kLqer, "range hessian needs the solver gptq; the solver is rtn");
  PlannedWeight planned = plan_scheme(scheme, kLqer, op);
  const auto& beside = options.part<BesideOptions>();
  if (beside.rank == 0) return planned;
  if (beside.rank > std::min(op.out_features, op.in_features)) {
    throw InvalidArgument(kLqer, fmt::format("rank must be at most that of the matrix, {}; it is {}",
                                             std::min(op.out_features, op.in_features), beside.rank));
  }
  return with_factors(planned,
                      plan_factored(options.part<FactorOptions>(), beside.form, beside.rank, kLqer, op));
}

// Sparse and low rank.

struct OatsOptions {
  double removed = 0.5;
  double rank_share = 0.25;
  std::string pattern = "unstructured";
  bool refit = true;
  double damping = 0.01;
  lowrank::Form form = lowrank::Form::kPivoted;

  void visit(FieldVisitor& v) {
    v.field("removed", removed, {0, 1},
            "share of the numbers that is removed; left out with a pattern N:M, of which it follows");
    v.field("rank_share", rank_share, {0, 0.99}, "share of what is kept that goes into the low-rank part");
    v.field("pattern", pattern, "of the sparse part: unstructured, or N:M, N kept of M columns of a row");
    v.field("refit", refit,
            "set the kept weights to the least squares of the mask on the calibration inputs");
    v.field("damping", damping, {0, 1},
            "of the refit: added to the diagonal of the second moment, relative to its mean");
    v.field("form", form, "how the factors are stored: a pair, or pivoted");
  }
  std::vector<IdleSetting> idle() const {
    std::vector<IdleSetting> idle;
    if (!refit) idle.push_back({"damping", "with a refit"});
    if (rank_share > 0) return idle;
    for (const std::string_view name :
         {"form", "iterations", "low_rank_first", "factor_bits", "factor_group_size"})
      idle.push_back({name, "with a rank_share above 0"});
    return idle;
  }

  sparse::Sparsity sparsity() const {
    sparse::Sparsity s;
    s.pattern = pattern;
    if (!s.n_of_m(kOats)) s.sparsity = 1 - (1 - rank_share) * (1 - removed);
    return s;
  }
  /// The rank of the part beside the sparse one; 0: none.
  int64_t rank_of(int64_t out, int64_t in) const {
    const auto structure = sparsity().n_of_m(kOats);
    const double dense = static_cast<double>(out * in);
    const double sparse_part =
        structure ? dense * static_cast<double>(structure->kept) / static_cast<double>(structure->of)
                  : dense * (1 - rank_share) * (1 - removed);
    const double size = sparse_part * rank_share / (1 - rank_share);
    return lowrank::largest_rank(form, out, in, static_cast<int64_t>(size + 1e-6));
  }
};

using OatsPassOptions = PassOptionsOf<OatsOptions, lowrank::AlternationOptions, SparseStorageOptions,
                                      FactorOptions, GptqOrderOptions>;

class OatsPass final : public TargetPass {
 public:
  explicit OatsPass(const PassOptions& entry)
      : TargetPass(kOats, {.second_moment = true}, &entry.part<GptqOrderOptions>()) {}

 protected:
  MatrixResult solve(const model::LinearOp& op, const Target& target, at::ScalarType model_dtype,
                     ThreadPool* pool) const override {
    const auto& oats = target.settings->part<OatsOptions>();
    const sparse::Sparsity sparsity = oats.sparsity();
    const at::Tensor diagonal = target.own.second_moment.diagonal().to(at::kDouble);
    const auto masked = [&](const at::Tensor& matrix) {
      const at::Tensor kept = sparse::select_kept(sparse::wanda(matrix, diagonal), sparsity, pool);
      return std::make_shared<DenseWeight>(matrix * kept);
    };
    const int64_t rank = oats.rank_of(op.info.out_features, op.info.in_features);
    MatrixResult result;
    if (rank == 0) {
      result.weight =
          stored(masked(target.weight)->dense() != 0, target.weight, target, model_dtype, result.row, pool);
    } else {
      const InputMetric metric = InputMetric::diagonal(diagonal.sqrt());
      const auto found = lowrank::alternate(target.weight, metric, rank, masked,
                                            target.settings->part<lowrank::AlternationOptions>(), pool);
      const at::Tensor kept = found.part->dense() != 0;
      const WeightPtr factors = stored_factors(target, found.low_rank, oats.form, model_dtype, result.row);
      result.weight = sum_of(
          stored(kept, target.weight - factors->dense(), target, model_dtype, result.row, pool), factors);
    }
    result.row.loss = loss_of(target, *result.weight, pool);
    return result;
  }

 private:
  /// The sparse part: what a mask keeps of `matrix`, refitted or as it is.
  static WeightPtr stored(const at::Tensor& kept, const at::Tensor& matrix, const Target& target,
                          at::ScalarType model_dtype, OperatorRow& row, ThreadPool* pool) {
    const auto& oats = target.settings->part<OatsOptions>();
    at::Tensor pruned = matrix * kept;
    if (oats.refit) {
      const auto inverse = linalg::damped_inverse(target.own.second_moment, oats.damping, {}, pool);
      report_rung(inverse.rung, row);
      row.damping = inverse.damping;
      if (inverse.rung == linalg::Rung::kFailed) {
        report_fallback("kept weights as they were: the second moment could not be factored", row);
      } else {
        pruned = sparse::refit(matrix, target.own.second_moment, inverse.added, kept, pool).weight;
      }
    }
    return store_sparse(pruned, target.settings->part<SparseStorageOptions>(), model_dtype);
  }
};

PlannedWeight plan_oats(const PassOptions& options, const PlannedOperator& op) {
  const auto& oats = options.part<OatsOptions>();
  if (oats.sparsity().n_of_m(kOats) && oats.removed != OatsOptions().removed) {
    throw InvalidArgument(kOats, fmt::format("removed must be left out with pattern {}, of which it follows; "
                                             "it is {}",
                                             oats.pattern, oats.removed));
  }
  PlannedWeight planned = plan_sparse(oats.sparsity(), options.part<SparseStorageOptions>(), kOats, op);
  const int64_t rank = oats.rank_of(op.out_features, op.in_features);
  if (rank == 0) return planned;
  return with_factors(planned, plan_factored(options.part<FactorOptions>(), oats.form, rank, kOats, op));
}

}  // namespace

MethodInfo lqer_method() {
  MethodInfo info;
  info.name = kLqer;
  info.summary = "quantized weights and a part of low rank beside them (LQER, LoftQ, SVDQuant's branch)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<LqerOptions>(); };
  info.settle = [](PassOptions& options, const auto& given, bool is_last) {
    if (options.part<SolverOptions>().solver != Solver::kGptq) return;
    if (!given("range")) options.part<quant::QuantScheme>().range = quant::RangeRule::kHessian;
    settle_as_gptq<LqerOptions>(options, given, is_last);
  };
  info.plan_weight = plan_lqer;
  info.cost = [](const PassOptions& options) {
    const MethodCost own{
        .flops_per_weight = 100'000, .cubic = 75, .result_bytes = 7.5, .moment_bytes = 1, .weight_bytes = 63};
    return cost_with_gptq(own, options.part<SolverOptions>().solver == Solver::kGptq);
  };
  info.effect = [](const PassOptions& options) {
    Effect effect = scheme_effect(options);
    effect.factors = options.part<BesideOptions>().rank > 0;
    if (effect.factors) effect.keeps_zeros = false;
    return effect;
  };
  info.pass_settings = {"true_sequential"};
  info.make_passes = [](const PassOptions& options) { return chain_of(std::make_unique<LqerPass>(options)); };
  return info;
}

MethodInfo oats_method() {
  MethodInfo info;
  info.name = kOats;
  info.summary = "sparse weights and a part of low rank beside them (Zhang and Papyan 2025)";
  info.needs_calibration = true;
  info.default_options = [] {
    auto options = std::make_unique<OatsPassOptions>();
    options->get<lowrank::AlternationOptions>() = {.iterations = 80, .low_rank_first = true};
    return options;
  };
  info.plan_weight = plan_oats;
  info.cost = constant_cost({.flops_per_weight = 100'000,
                             .cubic = 600,
                             .result_bytes = 8.1,
                             .moment_bytes = 27,
                             .weight_bytes = 50});
  info.effect = [](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .keeps_zeros = false};
  };
  info.pass_settings = {"true_sequential"};
  info.make_passes = [](const PassOptions& options) { return chain_of(std::make_unique<OatsPass>(options)); };
  return info;
}

}  // namespace lcomp::pipeline
