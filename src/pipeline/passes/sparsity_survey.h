#pragma once

#include <functional>

#include "lcomp/pipeline/survey.h"
#include "pipeline/passes/model_loss.h"
#include "pipeline/passes/sparsity_plan.h"

namespace lcomp::pipeline {

/// How the zeros of a pass are shared out among its operators.
enum class Allocation {
  kUniform,  ///< each loses the same share
  kOwl,      ///< blocks with more outliers among Wanda's scores lose less (`sparse::owl_shifts`)
  kBudget,   ///< the least sum of estimated losses (`allocate_amounts`)
  kGlobal,   ///< one threshold over the scores of all (`sparse::removed_below_threshold`)
};

struct AllocationOptions {
  Allocation allocation = Allocation::kUniform;
  double min_sparsity = 0;
  double max_sparsity = 1;
  double owl_spread = 0.08;
  double owl_outlier = 5;
  Sensitivity sensitivity = Sensitivity::kModelLoss;
  int64_t sampled_rows = 64;
  double trust = 0.7;

  void visit(FieldVisitor& v);
};

/// Rows of the pruned matrix (positions in an int64 tensor) at a sparsity.
using RowPruner = std::function<at::Tensor(const at::Tensor& rows, const sparse::Sparsity& sparsity)>;
/// For an operator of a group: its weight, its settings, and what is known of it.
using OperatorPruner = std::function<RowPruner(const at::Tensor& weight, const calib::InputStats& own,
                                               const PassOptions& settings)>;

/// What the surveys must know of a pruning method.
struct PrunedBy {
  std::string method;  ///< its name, for errors
  calib::Needs needs;  ///< statistics that its pruners and scores read
  /// Started once for a group, so that its operators can share what depends on their input only.
  std::function<OperatorPruner(const calib::InputStats& stats, PassContext& context)> start_group;
  /// What each weight counts for; needed where that compares between operators.
  std::function<at::Tensor(const at::Tensor& weight, const calib::InputStats& own, const PassOptions&)>
      scores = {};
};

/// Lets a method whose settings have the parts Sparsity and AllocationOptions share out its zeros: the survey
/// that does, null for a uniform allocation; what a job leaves open (scope tensor for one threshold over all,
/// most sparsity); and the settings that hold for a whole pass.
void add_allocation(MethodInfo& info, PrunedBy by);

/// `plan_sparse` of the share that all operators lose on the whole; throws InvalidArgument for settings that
/// exclude each other. `comparable`: whether the method has scores that compare between operators.
PlannedWeight plan_allocated(const PassOptions& options, const char* method, bool comparable,
                             const PlannedOperator& op);

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::Allocation> {
  static constexpr std::array<std::string_view, 4> names = {"uniform", "owl", "budget", "global"};
};
}  // namespace lcomp
