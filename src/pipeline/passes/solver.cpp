#include "pipeline/passes/solver.h"

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {

void TransformSolverOptions::visit(FieldVisitor& v) {
  v.field(
      "solver", solver,
      "what rounds the scaled matrices: rtn, gptq, or none (they are stored dense, or left to a later pass)");
}

std::vector<IdleSetting> TransformSolverOptions::idle() const {
  return solver == TransformSolver::kGptq ? std::vector<IdleSetting>{} : idle_without_gptq();
}

TransformGroup::TransformGroup(const model::Block& block, size_t group, const PassContext& context) {
  for (const size_t op : block.groups()[group].operators) {
    const PassOptions* options = context.settings(block.ops()[op].info.name);
    if (options == nullptr) continue;
    ops.push_back(op);
    settings.push_back(options);
    schemes.push_back(with_scale_type(options->part<quant::QuantScheme>(), context.model_dtype));
    weights.push_back(block.ops()[op].weight->dense());
  }
}

void report_transform(const model::Block& block, const TransformGroup& members, const std::string& what,
                      const std::string& method, const std::optional<TransformLoss>& loss, double seconds,
                      const calib::InputStats& stats, PassContext& context) {
  for (const size_t i : members.ops) {
    const model::LinearOp& op = block.ops()[i];
    OperatorRow row;
    row.name = op.info.name;
    row.kind = op.info.kind;
    row.block = block.index();
    row.method = method;
    row.scheme = what;
    row.out_features = op.info.out_features;
    row.in_features = op.info.in_features;
    row.bytes_before = row.bytes_after = stored_bytes(op, context.model_dtype);
    row.bits_per_weight =
        8.0 * static_cast<double>(row.bytes_after) / static_cast<double>(row.out_features * row.in_features);
    if (loss) {
      row.loss = loss->loss;
      row.rtn_loss = loss->without;
    }
    row.tokens = stats.tokens;
    row.seconds = seconds / static_cast<double>(members.ops.size());
    context.rows.push_back(std::move(row));
  }
}

PlannedWeight plan_scaled(const PlannedOperator& op) {
  return {fmt::format("{}, scaled", dtype_name(op.dtype)),
          op.out_features * op.in_features * static_cast<int64_t>(c10::elementSize(op.dtype))};
}

void check_solver(const PassOptions& options, TransformSolver solver, const char* method) {
  if (solver == TransformSolver::kGptq) check_gptq(options);
  if (solver == TransformSolver::kRtn &&
      options.part<quant::QuantScheme>().range == quant::RangeRule::kHessian) {
    throw InvalidArgument(
        method, "range hessian needs the solver gptq; rtn takes no statistics of the inputs. Use range mse");
  }
}

PlannedWeight plan_solved(const PassOptions& options, const char* method, const PlannedOperator& op) {
  const TransformSolver solver = options.part<TransformSolverOptions>().solver;
  check_solver(options, solver, method);
  PlannedWeight planned = plan_scheme(options.part<quant::QuantScheme>(), method, op);
  return solver == TransformSolver::kNone ? plan_scaled(op) : planned;
}

MethodCost cost_with_solver(const MethodCost& own, const PassOptions& options) {
  return cost_with_gptq(own, options.part<TransformSolverOptions>().solver == TransformSolver::kGptq);
}

std::unique_ptr<Pass> solver_pass(const std::string& method, const PassOptions& options) {
  switch (options.part<TransformSolverOptions>().solver) {
    case TransformSolver::kRtn:
      return rtn_pass(method);
    case TransformSolver::kGptq:
      return gptq_pass(method, options);
    case TransformSolver::kNone:
      break;
  }
  return nullptr;
}

}  // namespace lcomp::pipeline
