#include "pipeline/passes/target_pass.h"

#include <ATen/ATen.h>

#include "core/stopwatch.h"

namespace lcomp::pipeline {
namespace {

constexpr double kMismatchDamping = 0.01;

}  // namespace

GroupMoment::GroupMoment(const calib::InputStats& stats) {
  if (stats.second_moment.defined()) metric_ = lowrank::InputMetric::moment(stats.second_moment);
}

TargetPass::TargetPass(std::string name, calib::Needs needs, const GptqOrderOptions* order)
    : needs_(needs), name_(std::move(name)) {
  sequential_ = order == nullptr || order->true_sequential;
  corrects_ = order != nullptr && order->mismatch != quant::MismatchRule::kNone;
  if (!corrects_) return;
  needs_.second_moment = needs_.mismatch = true;
  needs_.halves = order->mismatch == quant::MismatchRule::kSplit;
}

/// A factor [in, in] of the weights that moves the target; undefined for nothing.
at::Tensor TargetPass::correction(const model::Block& block, size_t group, const PassOptions& settings,
                                  const calib::InputStats& stats, const PassContext& context) const {
  if (!corrects_) return {};
  const double weight = mismatch_weight(block, group, settings, stats, kMismatchDamping, context);
  if (weight == 0) return {};
  const auto inverse = linalg::damped_inverse(stats.second_moment, kMismatchDamping, {}, &context.pool);
  if (!inverse.upper.defined()) return {};
  const at::Tensor identity = at::eye(stats.second_moment.size(0), at::kDouble);
  return quant::mismatch_target(identity, stats.mismatch, inverse, {}, weight, &context.pool) - identity;
}

void TargetPass::compress(model::Block& block, size_t group, const calib::InputStats& stats,
                          PassContext& context) const {
  struct Solved {
    Target target;
    MatrixResult result = {};
    double seconds = 0;
  };
  const GroupMoment shared(stats);
  std::vector<Solved> all;
  std::map<const PassOptions*, at::Tensor> corrections;
  const std::vector<size_t>& members = block.groups()[group].operators;
  for (size_t k = 0; k < members.size(); ++k) {
    const model::LinearOp& op = block.ops()[members[k]];
    const PassOptions* settings = context.settings(op.info.name);
    if (settings == nullptr) continue;
    if (!corrections.contains(settings))
      corrections[settings] = correction(block, group, *settings, stats, context);
    at::Tensor weight = op.weight->dense().to(at::kDouble);
    if (corrections[settings].defined()) weight = weight + weight.mm(corrections[settings]);
    all.push_back({{members[k], of_operator(stats, k), settings, weight, &shared}});
  }
  const auto solve_at = [&](int64_t i, ThreadPool* pool) {
    Solved& s = all[static_cast<size_t>(i)];
    const Stopwatch watch;
    s.result = solve(block.ops()[s.target.op], s.target, context.model_dtype, pool);
    s.seconds = watch.seconds();
  };
  // Each operator on one thread, or a lone one on all: LAPACK's share runs on one anyway.
  if (all.size() == 1) {
    solve_at(0, &context.pool);
  } else {
    context.pool.parallel_for(static_cast<int64_t>(all.size()),
                              [&](int64_t i, int) { solve_at(i, nullptr); });
  }
  for (Solved& s : all) {
    finish(block, s.target, s.result);
    replace_and_report(block, s.target.op, std::move(s.result), name_, s.seconds, stats, context);
  }
}

}  // namespace lcomp::pipeline
