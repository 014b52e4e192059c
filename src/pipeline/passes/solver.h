#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/scheme.h"

namespace lcomp::pipeline {

/// What rounds the matrices that a transform has prepared.
enum class TransformSolver { kRtn, kGptq, kNone };

struct TransformSolverOptions {
  TransformSolver solver = TransformSolver::kRtn;

  void visit(FieldVisitor& v);
  std::vector<IdleSetting> idle() const;
};

/// The operators of a group that a transform works on.
struct TransformGroup {
  /// All of the group's operators that the pass has settings for, with their weights as they are now.
  TransformGroup(const model::Block& block, size_t group, const PassContext& context);

  std::vector<size_t> ops;
  std::vector<const PassOptions*> settings;
  std::vector<quant::QuantScheme> schemes;  ///< with the type of the scales resolved
  std::vector<at::Tensor> weights;          ///< float32
};

/// What a transform's search minimised, and the same without the transform.
struct TransformLoss {
  double loss = 0;
  double without = 0;
};

/// Appends a report row for each operator of `members`: `what` was done to it, and the group's losses when it
/// was searched for.
void report_transform(const model::Block& block, const TransformGroup& members, const std::string& what,
                      const std::string& method, const std::optional<TransformLoss>& loss, double seconds,
                      const calib::InputStats& stats, PassContext& context);

/// What becomes of an operator that is scaled and not rounded.
PlannedWeight plan_scaled(const PlannedOperator& op);

/// Throws InvalidArgument or Unsupported for settings that the solver cannot work with: those of GPTQ that
/// exclude each other, and for RTN ranges fitted by statistics of inputs that it has not.
void check_solver(const PassOptions& options, TransformSolver solver, const char* method);

/// `plan_weight` of a method that ends in a solver (settings with the parts QuantScheme and
/// TransformSolverOptions).
PlannedWeight plan_solved(const PassOptions& options, const char* method, const PlannedOperator& op);

/// What a method takes that ends in a solver, from what it takes itself.
MethodCost cost_with_solver(const MethodCost& own, const PassOptions& options);

/// The solver's pass under the name of the method; null for `none`.
std::unique_ptr<Pass> solver_pass(const std::string& method, const PassOptions& options);

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::TransformSolver> {
  static constexpr std::array<std::string_view, 3> names = {"rtn", "gptq", "none"};
};
}  // namespace lcomp
