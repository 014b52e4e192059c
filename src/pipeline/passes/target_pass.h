#pragma once

#include <string>
#include <vector>

#include "lcomp/lowrank/low_rank.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"

namespace lcomp::pipeline {

/// The metric of inputs that count as `scale` [in], not negative: a little more than that, relative to its
/// mean, so that inputs without any keep a weight.
lowrank::InputMetric scaled_metric(const at::Tensor& scale);

/// Notes in the row how the metric was factored, if it was: by Cholesky, or, further from the regular way, by
/// eigenvalues. Of several such steps the row names the furthest.
void report_factoring(const lowrank::InputMetric& metric, OperatorRow& row);
/// How far the targets of a group are moved, and what finding it took.
struct Correction {
  at::Tensor factor;  ///< [in, in], of the weights; undefined for nothing
  double weight = 0;
  linalg::Rung rung = linalg::Rung::kPlain;
};

/// An operator on its way through a pass.
struct Target {
  size_t op = 0;          ///< in the block
  calib::InputStats own;  ///< statistics, with its own gradients
  const PassOptions* settings = nullptr;
  /// What is to be approximated, float64 [out, in]: the weight, or where it is corrected for inputs that
  /// compression has changed.
  at::Tensor weight;
  /// Of the second moment of the inputs, shared by the operators of the group; null without one.
  const lowrank::InputMetric* moment = nullptr;
  const Correction* correction = nullptr;  ///< null where the settings want none
};

/// Methods that approximate each matrix of a group on one thread, the operators of a group side by side, with
/// the target corrected for changed inputs where the settings have the part GptqOrderOptions.
class TargetPass : public Pass {
 public:
  TargetPass(std::string name, calib::Needs needs, const GptqOrderOptions* order);

  std::string name() const override { return name_; }
  calib::Needs needs() const override { return needs_; }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override;

 protected:
  virtual MatrixResult solve(const model::LinearOp& op, const Target& target, at::ScalarType model_dtype,
                             ThreadPool* pool) const = 0;
  /// Results of several operators of a group that are solved as one, in their order; empty to solve each.
  virtual std::vector<MatrixResult> solve_together(const model::Block&, const std::vector<Target>&,
                                                   at::ScalarType /*model_dtype*/, ThreadPool*) const {
    return {};
  }
  /// What else than the matrix changes, before it is replaced.
  virtual void finish(model::Block&, const Target&, const MatrixResult&) const {}

  calib::Needs needs_;

 private:
  std::vector<MatrixResult> solve_each(const model::Block& block, const std::vector<Target>& targets,
                                       std::vector<double>& seconds, PassContext& context) const;
  static Correction correction(const model::Block& block, size_t group, const PassOptions& settings,
                               const calib::InputStats& stats, const PassContext& context);

  std::string name_;
  bool sequential_;
  bool corrects_;
};

}  // namespace lcomp::pipeline
