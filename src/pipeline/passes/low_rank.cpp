#include "lcomp/lowrank/low_rank.h"

#include <ATen/ATen.h>

#include <map>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/rtn.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/rank_plan.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

using lowrank::Factors;
using lowrank::InputMetric;

/// Of the inputs whose metric is no second moment; relative to the mean, so that dead inputs keep a weight.
constexpr double kLeastScale = 1e-6;
constexpr double kMismatchDamping = 0.01;

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
};

InputMetric scaled_metric(const at::Tensor& scale) {
  const at::Tensor s = scale.to(at::kDouble);
  return InputMetric::diagonal(s + kLeastScale * s.mean());
}

const Family kSvd = {"svd",
                     "two factors of low rank by singular values, without data: the baseline",
                     {},
                     [](const at::Tensor& weight, const calib::InputStats&, const PassOptions&) {
                       return InputMetric::plain(weight.size(1));
                     }};

const Family kFwsvd = {
    "fwsvd",
    "two factors, inputs weighed by the Fisher information of their weights (Hsu et al. 2022)",
    {.gradient_squares = true},
    [](const at::Tensor&, const calib::InputStats& own, const PassOptions&) {
      return scaled_metric(own.gradient_squares.front().sum(0, false, at::kDouble).sqrt());
    }};

const Family kAsvd = {
    "asvd",
    "two factors, inputs weighed by their magnitude (Yuan et al. 2023)",
    {.abs_mean = true},
    [](const at::Tensor&, const calib::InputStats& own, const PassOptions& settings) {
      return scaled_metric(own.abs_mean.to(at::kDouble).pow(settings.part<AsvdOptions>().alpha));
    }};

InputMetric moment_metric(const at::Tensor&, const calib::InputStats& own, const PassOptions&) {
  return InputMetric::moment(own.second_moment);
}

const Family kSvdLlm = {
    "svd_llm",
    "two factors that change the outputs least, for the inputs as they are in the compressed model "
    "(Wang et al. 2025)",
    {.second_moment = true},
    moment_metric};

const Family kPca = {"pca",
                     "projection of outputs or inputs on their principal directions",
                     {.second_moment = true},
                     moment_metric};

/// The outer product of the mean taken off the second moment: the covariance times the number of tokens.
at::Tensor covariance(const calib::InputStats& stats) {
  const at::Tensor mean = stats.mean.to(at::kDouble);
  return stats.second_moment.to(at::kDouble) - static_cast<double>(stats.tokens) * at::outer(mean, mean);
}

/// Rounds the factors, or leaves them in the model's type.
class FactorStore {
 public:
  FactorStore(const FactorOptions& options, const InputMetric* metric, at::ScalarType dtype)
      : options_(options), metric_(metric), dtype_(dtype) {}

  WeightPtr operator()(const at::Tensor& values, const Weight* right) const {
    if (!options_.quantizes()) return std::make_shared<DenseWeight>(values.to(dtype_));
    const quant::QuantScheme scheme = with_scale_type(options_.scheme(), dtype_);
    if (metric_ == nullptr)
      return std::make_shared<quant::QuantizedWeight>(quant::rtn(values.to(at::kFloat), scheme));
    const at::Tensor seen = right == nullptr ? at::eye(metric_->in_features(), at::kDouble) : right->dense();
    quant::GptqOptions gptq;
    gptq.refit = true;
    gptq.sweeps = 2;
    return std::make_shared<quant::QuantizedWeight>(
        quant::gptq(values.to(at::kFloat), metric_->energy(seen), scheme, gptq).weight);
  }

 private:
  FactorOptions options_;
  const InputMetric* metric_;
  at::ScalarType dtype_;
};

/// An operator on its way.
struct Operator {
  size_t op = 0;  ///< in the block
  calib::InputStats own;
  const PassOptions* settings = nullptr;
  MatrixResult result = {};
  double seconds = 0;
};

class LowRankPass : public Pass {
 public:
  /// updated: whether the output's factor is solved anew by the second moment.
  LowRankPass(const Family& family, bool updated, const PassOptions& entry)
      : needs_(family.needs), family_(family), updated_(updated) {
    if (updated || entry.part<FactorOptions>().quantizes()) needs_.second_moment = true;
    sequential_ = needs_.any();
  }

  std::string name() const override { return family_.name; }
  calib::Needs needs() const override { return needs_; }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    std::vector<Operator> operators;
    std::map<const PassOptions*, at::Tensor> corrections;
    const std::vector<size_t>& members = block.groups()[group].operators;
    for (size_t k = 0; k < members.size(); ++k) {
      const PassOptions* settings = context.settings(block.ops()[members[k]].info.name);
      if (settings == nullptr) continue;
      operators.push_back({members[k], of_operator(stats, k), settings});
      if (!corrections.contains(settings))
        corrections[settings] = correction(block, group, *settings, stats, context);
    }
    std::optional<InputMetric> moment;  // shared: it is factored once
    if (stats.second_moment.defined()) moment = InputMetric::moment(stats.second_moment);
    // Each operator on one thread, or a lone one on all: LAPACK's share runs on one anyway.
    const auto solve_at = [&](int64_t i, ThreadPool* pool) {
      Operator& o = operators[static_cast<size_t>(i)];
      const Stopwatch watch;
      o.result = solve(block.ops()[o.op], o, moment ? &*moment : nullptr, corrections.at(o.settings),
                       context.model_dtype, pool);
      o.seconds = watch.seconds();
    };
    if (operators.size() == 1) {
      solve_at(0, &context.pool);
    } else {
      context.pool.parallel_for(static_cast<int64_t>(operators.size()),
                                [&](int64_t i, int) { solve_at(i, nullptr); });
    }
    for (Operator& o : operators) {
      move_mean(block, o);
      replace_and_report(block, o.op, std::move(o.result), name(), o.seconds, stats, context);
    }
  }

 protected:
  /// What the target of operators with these settings is moved by, a factor of their weights [in, in];
  /// undefined for nothing.
  virtual at::Tensor correction(const model::Block&, size_t, const PassOptions&, const calib::InputStats&,
                                const PassContext&) const {
    return {};
  }
  /// The metric of an operator that has one of its own, in place of the second moment of the group.
  virtual std::optional<InputMetric> own_moment(const model::LinearOp&, const Operator&) const {
    return std::nullopt;
  }
  virtual Factors factor(const at::Tensor& target, const Operator& o, const InputMetric* moment, int64_t rank,
                         ThreadPool* pool) const {
    const lowrank::Solver solver = o.settings->part<RankOptions>().solver;
    if (family_.metric == moment_metric) return lowrank::low_rank(target, *moment, rank, solver, {}, pool);
    return lowrank::low_rank(target, family_.metric(target, o.own, *o.settings), rank, solver, {}, pool);
  }
  virtual void move_mean(model::Block&, const Operator&) const {}

  calib::Needs needs_;
  bool sequential_ = false;

 private:
  MatrixResult solve(const model::LinearOp& op, const Operator& o, const InputMetric* of_group,
                     const at::Tensor& correction, at::ScalarType dtype, ThreadPool* pool) const {
    const auto& ranks = o.settings->part<RankOptions>();
    const int64_t rank = ranks.rank_of(op.info.out_features, op.info.in_features);
    MatrixResult result;
    if (rank == 0) {
      result.weight = std::make_shared<DenseWeight>(op.weight->dense().to(dtype));
      return result;
    }
    const std::optional<InputMetric> own = own_moment(op, o);
    const InputMetric* moment = own ? &*own : of_group;
    at::Tensor target = op.weight->dense().to(at::kDouble);
    if (correction.defined()) target = target + target.mm(correction);
    Factors factors = factor(target, o, moment, rank, pool);
    if (updated_) lowrank::update_left(factors, target, *moment, pool);
    const FactorStore store(o.settings->part<FactorOptions>(), moment, dtype);
    result.weight = lowrank::factored_weight(factors, ranks.form, store, target, moment);
    if (moment != nullptr) result.row.loss = moment->loss(target - result.weight->dense(), pool);
    return result;
  }

  const Family& family_;
  bool updated_;
};

/// SVD-LLM with the target corrected for inputs that compression has changed.
class SvdLlmPass final : public LowRankPass {
 public:
  explicit SvdLlmPass(const PassOptions& entry) : LowRankPass(kSvdLlm, false, entry) {
    const auto& order = entry.part<GptqOrderOptions>();
    sequential_ = order.true_sequential;
    needs_.mismatch = order.mismatch != quant::MismatchRule::kNone;
    needs_.halves = order.mismatch == quant::MismatchRule::kSplit;
  }

 protected:
  at::Tensor correction(const model::Block& block, size_t group, const PassOptions& settings,
                        const calib::InputStats& stats, const PassContext& context) const override {
    const double weight = mismatch_weight(block, group, settings, stats, kMismatchDamping, context);
    if (weight == 0) return {};
    const auto inverse = linalg::damped_inverse(stats.second_moment, kMismatchDamping, {}, &context.pool);
    if (!inverse.upper.defined()) return {};
    const at::Tensor identity = at::eye(stats.second_moment.size(0), at::kDouble);
    return quant::mismatch_target(identity, stats.mismatch, inverse, {}, weight, &context.pool) - identity;
  }
};

class PcaPass final : public LowRankPass {
 public:
  explicit PcaPass(const PassOptions& entry)
      : LowRankPass(kPca, false, entry), centres_(entry.part<PcaOptions>().centre) {
    needs_.mean = centres_;
  }

 protected:
  std::optional<InputMetric> own_moment(const model::LinearOp& op, const Operator& o) const override {
    if (!moves_mean(op)) return std::nullopt;
    return InputMetric::moment(covariance(o.own));
  }

  Factors factor(const at::Tensor& target, const Operator& o, const InputMetric* moment, int64_t rank,
                 ThreadPool* pool) const override {
    if (o.settings->part<PcaOptions>().project == PcaSide::kInputs)
      return lowrank::project_inputs(target, *moment, rank, pool);
    return LowRankPass::factor(target, o, moment, rank, pool);
  }

  /// b + (W - W') mean(x).
  void move_mean(model::Block& block, const Operator& o) const override {
    const model::LinearOp& op = block.ops()[o.op];
    if (!moves_mean(op)) return;
    const at::Tensor lost = op.weight->dense().to(at::kDouble) - o.result.weight->dense();
    block.set_vector(op.info.name + ".bias", op.bias + lost.mv(o.own.mean.to(at::kDouble)));
  }

 private:
  bool moves_mean(const model::LinearOp& op) const { return centres_ && op.bias.defined(); }

  bool centres_;
};

template <class Options>
MethodInfo family_method(const Family& family) {
  MethodInfo info;
  info.name = family.name;
  info.summary = family.summary;
  info.needs_calibration = family.needs.any() || family.needs.gradients();
  info.default_options = [] { return std::make_unique<Options>(); };
  info.plan_weight = [&family](const PassOptions& options, const PlannedOperator& op) {
    return plan_factors(options, family.name, op);
  };
  info.effect = [reads = family.needs.gradients()](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .reads_gradients = reads, .keeps_zeros = false};
  };
  info.pass_settings = {"factor_bits"};
  add_rank_allocation(info, family.needs,
                      [&family](const at::Tensor& weight, const calib::InputStats& own,
                                const PassOptions& settings, ThreadPool* pool) {
                        return lowrank::low_rank(weight, family.metric(weight, own, settings),
                                                 std::min(weight.size(0), weight.size(1)),
                                                 lowrank::Solver::kAuto, {}, pool);
                      });
  return info;
}

/// The same for methods that know nothing of the inputs as they are in the compressed model, unless they
/// update.
template <class Options>
MethodInfo updated_method(const Family& family) {
  MethodInfo info = family_method<Options>(family);
  info.pass_settings.emplace_back("update");
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
  MethodInfo info = family_method<Options>(kSvdLlm);
  info.pass_settings.emplace_back("true_sequential");
  info.settle = [ranks = info.settle](PassOptions& options, const auto& given, bool is_last) {
    ranks(options, given, is_last);
    auto& order = options.part<GptqOrderOptions>();
    if (!given("mismatch") && is_last && order.true_sequential) order.mismatch = quant::MismatchRule::kSplit;
  };
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<SvdLlmPass>(options));
  };
  return info;
}

MethodInfo pca_method() {
  MethodInfo info = family_method<PassOptionsOf<RankOptions, PcaOptions, FactorOptions>>(kPca);
  info.pass_settings.emplace_back("centre");
  info.make_passes = [](const PassOptions& options) { return chain_of(std::make_unique<PcaPass>(options)); };
  return info;
}

}  // namespace lcomp::pipeline
