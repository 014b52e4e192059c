#include "lcomp/pipeline/pass.h"

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"

namespace lcomp::pipeline {
namespace {

class LinearPass final : public Pass {
 public:
  LinearPass(std::string name, calib::Needs needs, bool sequential, MatrixFunction function)
      : name_(std::move(name)), needs_(needs), sequential_(sequential), function_(std::move(function)) {}

  std::string name() const override { return name_; }
  calib::Needs needs() const override { return needs_; }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const std::vector<size_t>& operators = block.groups()[group].operators;
    for (size_t k = 0; k < operators.size(); ++k) {
      const size_t op = operators[k];
      const PassOptions* options = context.settings(block.ops()[op].info.name);
      if (options == nullptr) continue;
      const Stopwatch watch;
      MatrixResult result =
          function_(block.ops()[op].weight->dense(), of_operator(stats, k), *options, context);
      replace_and_report(block, op, std::move(result), name_, watch.seconds(), stats, context);
    }
  }

 private:
  std::string name_;
  calib::Needs needs_;
  bool sequential_;
  MatrixFunction function_;
};

}  // namespace

calib::InputStats of_operator(const calib::InputStats& stats, size_t k) {
  calib::InputStats own = stats;
  if (!stats.gradient_squares.empty()) own.gradient_squares = {stats.gradient_squares[k]};
  return own;
}

std::unique_ptr<Pass> linear_pass(std::string name, calib::Needs needs, bool sequential,
                                  MatrixFunction function) {
  return std::make_unique<LinearPass>(std::move(name), needs, sequential, std::move(function));
}

int64_t stored_bytes(const model::LinearOp& op, at::ScalarType model_dtype) {
  if (dynamic_cast<const DenseWeight*>(op.weight.get()) == nullptr) return op.weight->bytes();
  return op.info.out_features * op.info.in_features * static_cast<int64_t>(c10::elementSize(model_dtype));
}

void require_regular(const OperatorRow& row, const PassContext& context) {
  if (!context.strict || row.rung_index == 0) return;
  throw NumericalError(row.method,
                       fmt::format("in strict mode '{}' must be solved the regular way; it took \"{}\". More "
                                   "calibration tokens, or other ones, may help",
                                   row.name, row.rung));
}

void replace_and_report(model::Block& block, size_t op, MatrixResult result, const std::string& method,
                        double seconds, const calib::InputStats& stats, PassContext& context) {
  const model::LinearOp& before = block.ops()[op];
  const at::Tensor original = before.weight->dense();
  OperatorRow row = std::move(result.row);
  row.name = before.info.name;
  row.kind = before.info.kind;
  row.block = block.index();
  row.method = method;
  row.scheme = result.weight->describe();
  row.out_features = before.info.out_features;
  row.in_features = before.info.in_features;
  row.bytes_before = stored_bytes(before, context.model_dtype);
  row.bytes_after = result.weight->bytes();
  row.bits_per_weight = 8.0 * static_cast<double>(row.bytes_after) / static_cast<double>(original.numel());
  if (result.weight->parameters() != original.numel()) {
    row.parameters = result.weight->parameters();
    row.macs = result.weight->macs_per_token();
  }
  row.tokens = stats.tokens;
  row.seconds = seconds;
  require_regular(row, context);
  const WeightError error = weight_error(original, result.weight->dense(), {}, &context.pool);
  if (!std::isfinite(error.relative)) {
    throw NumericalError(method, fmt::format("the new weight of '{}' must be finite; it is not", row.name));
  }
  row.weight_error = error.relative;
  row.max_abs_error = error.largest;
  if (row.loss && stats.second_moment.defined()) {
    const double energy = activation_energy(original, stats.second_moment, &context.pool);
    if (energy > 0) row.activation_error = std::sqrt(std::max(0.0, *row.loss) / energy);
  }
  block.replace(op, std::move(result.weight));
  context.rows.push_back(std::move(row));
}

}  // namespace lcomp::pipeline
