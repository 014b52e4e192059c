#pragma once

#include <map>
#include <mutex>
#include <optional>

#include "lcomp/lowrank/low_rank.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "pipeline/passes/passes.h"

namespace lcomp::pipeline {

/// What the operators of a group share, because they read one input.
class GroupMoment {
 public:
  explicit GroupMoment(const calib::InputStats& stats);

  /// Of the second moment of the inputs; null without one.
  const lowrank::InputMetric* metric() const { return metric_ ? &*metric_ : nullptr; }

 private:
  std::optional<lowrank::InputMetric> metric_;
};

/// An operator on its way through a pass.
struct Target {
  size_t op = 0;          ///< in the block
  calib::InputStats own;  ///< statistics, with its own gradients
  const PassOptions* settings = nullptr;
  /// What is to be approximated, float64 [out, in]: the weight, or where it is corrected for inputs that
  /// compression has changed.
  at::Tensor weight;
  const GroupMoment* shared = nullptr;
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
  /// What else than the matrix changes, before it is replaced.
  virtual void finish(model::Block&, const Target&, const MatrixResult&) const {}

  calib::Needs needs_;

 private:
  at::Tensor correction(const model::Block& block, size_t group, const PassOptions& settings,
                        const calib::InputStats& stats, const PassContext& context) const;

  std::string name_;
  bool sequential_;
  bool corrects_;
};

}  // namespace lcomp::pipeline
