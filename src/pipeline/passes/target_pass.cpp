#include "pipeline/passes/target_pass.h"

#include <ATen/ATen.h>

#include <map>
#include <optional>

#include "core/stopwatch.h"

namespace lcomp::pipeline {
namespace {

constexpr double kMismatchDamping = 0.01;
constexpr double kLeastScale = 1e-6;

/// Notes in the row how the target was moved and how its moment was factored.
void report_solving(const Target& target, OperatorRow& row) {
  if (target.moment != nullptr) report_factoring(*target.moment, row);
  if (target.correction == nullptr) return;
  row.mismatch_weight = target.correction->weight;
  if (target.correction->rung != linalg::Rung::kPlain) report_rung(target.correction->rung, row);
}

}  // namespace

lowrank::InputMetric scaled_metric(const at::Tensor& scale) {
  const at::Tensor s = scale.to(at::kDouble);
  return lowrank::InputMetric::diagonal(s + kLeastScale * s.mean());
}

TargetPass::TargetPass(std::string name, calib::Needs needs, const GptqOrderOptions* order)
    : needs_(needs), name_(std::move(name)) {
  sequential_ = order == nullptr || order->true_sequential;
  corrects_ = order != nullptr && order->mismatch != quant::MismatchRule::kNone;
  if (!corrects_) return;
  needs_.second_moment = needs_.mismatch = true;
  needs_.halves = order->mismatch == quant::MismatchRule::kSplit;
}

void report_factoring(const lowrank::InputMetric& metric, OperatorRow& row) {
  if (!metric.is_factored()) return;
  if (metric.is_singular()) {
    report_step("eigenvalues", 1, row);
  } else {
    report_rung(linalg::Rung::kPlain, row);
  }
}

Correction TargetPass::correction(const model::Block& block, size_t group, const PassOptions& settings,
                                  const calib::InputStats& stats, const PassContext& context) {
  const double weight = mismatch_weight(block, group, settings, stats, kMismatchDamping, context);
  if (weight == 0) return {};
  const auto inverse = linalg::damped_inverse(stats.second_moment, kMismatchDamping, {}, &context.pool);
  if (!inverse.upper.defined()) return {{}, 0, inverse.rung};
  const at::Tensor identity = at::eye(stats.second_moment.size(0), at::kDouble);
  return {quant::mismatch_target(identity, stats.mismatch, inverse, {}, weight, &context.pool) - identity,
          weight, inverse.rung};
}

void TargetPass::compress(model::Block& block, size_t group, const calib::InputStats& stats,
                          PassContext& context) const {
  std::optional<lowrank::InputMetric> moment;
  if (stats.second_moment.defined()) moment = lowrank::InputMetric::moment(stats.second_moment);
  std::vector<Target> all;
  std::map<std::pair<quant::MismatchRule, double>, Correction> corrections;
  const std::vector<size_t>& members = block.groups()[group].operators;
  for (size_t k = 0; k < members.size(); ++k) {
    const model::LinearOp& op = block.ops()[members[k]];
    const PassOptions* settings = context.settings(op.info.name);
    if (settings == nullptr) continue;
    at::Tensor weight = op.weight->dense().to(at::kDouble);
    const Correction* moved = nullptr;
    if (corrects_) {
      const auto& order = settings->part<GptqOrderOptions>();
      const auto [found, is_new] = corrections.try_emplace({order.mismatch, order.mismatch_weight});
      if (is_new) found->second = correction(block, group, *settings, stats, context);
      if (found->second.factor.defined()) weight = weight + weight.mm(found->second.factor);
      moved = &found->second;
    }
    all.push_back({members[k], of_operator(stats, k), settings, weight, moment ? &*moment : nullptr, moved});
  }
  std::vector<double> seconds(all.size());
  const Stopwatch together;
  std::vector<MatrixResult> results = solve_together(block, all, context.model_dtype, &context.pool);
  if (results.empty()) {
    results = solve_each(block, all, seconds, context);
  } else {
    seconds.assign(all.size(), together.seconds() / static_cast<double>(all.size()));
  }
  for (size_t i = 0; i < all.size(); ++i) {
    finish(block, all[i], results[i]);
    const bool left_alone = dynamic_cast<const DenseWeight*>(results[i].weight.get()) != nullptr;
    if (!left_alone) report_solving(all[i], results[i].row);
    replace_and_report(block, all[i].op, std::move(results[i]), name_, seconds[i], stats, context);
  }
}

/// Each operator on one thread, or a lone one on all: LAPACK's share runs on one anyway.
std::vector<MatrixResult> TargetPass::solve_each(const model::Block& block,
                                                 const std::vector<Target>& targets,
                                                 std::vector<double>& seconds, PassContext& context) const {
  std::vector<MatrixResult> results(targets.size());
  const auto solve_at = [&](int64_t i, ThreadPool* pool) {
    const auto at = static_cast<size_t>(i);
    const Stopwatch watch;
    results[at] = solve(block.ops()[targets[at].op], targets[at], context.model_dtype, pool);
    seconds[at] = watch.seconds();
  };
  if (targets.size() == 1) {
    solve_at(0, &context.pool);
  } else {
    context.pool.parallel_for(static_cast<int64_t>(targets.size()),
                              [&](int64_t i, int) { solve_at(i, nullptr); });
  }
  return results;
}

}  // namespace lcomp::pipeline
