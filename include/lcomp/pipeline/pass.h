#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lcomp/calib/input_stats.h"
#include "lcomp/core/threads.h"
#include "lcomp/model/block.h"
#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// What a pass may use while it compresses.
struct PassContext {
  ThreadPool& pool;
  bool strict = false;  ///< numerical trouble is an error instead of a recorded fallback
  /// Type of the model's weights: scales are stored in it unless a scheme says otherwise.
  at::ScalarType model_dtype = at::kFloat;
  /// Settings of an operator by its name; null: the pass leaves it alone.
  std::function<const PassOptions*(const std::string& operator_name)> settings;
  /// Rows for the report, appended in the order of the operators.
  std::vector<OperatorRow>& rows;
};

/// One method applied to a model, block by block and group by group.
class Pass {
 public:
  virtual ~Pass() = default;

  virtual std::string name() const = 0;
  /// Statistics of the operators' inputs that `compress` reads; none means that no forward pass is run for
  /// it.
  virtual calib::Needs needs() const = 0;
  /// Whether the statistics of a group must be taken after the groups before it are compressed ("true
  /// sequential"), rather than for all groups of the block at once.
  virtual bool sequential() const { return false; }
  /// Whether it only moves scales between operators and what makes their inputs (`model::fold_input_scale`).
  /// Statistics taken before it then follow by algebra and are not taken again.
  virtual bool keeps_function() const { return false; }
  /// Replaces the weights of the operators of `group` that `context.settings` knows, and appends their rows.
  virtual void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) const = 0;
};

/// The passes of a method: `chain_of(linear_pass(...))`.
template <class... Passes>
PassChain chain_of(std::unique_ptr<Passes>... passes) {
  PassChain chain;
  (chain.push_back(std::move(passes)), ...);
  return chain;
}

/// What a function on one matrix returns to `linear_pass`: the weight, and the fields of the row that only it
/// knows (loss, damping, rung, fallback ...); names, sizes and errors are filled in by the caller.
struct MatrixResult {
  WeightPtr weight;
  OperatorRow row;
};

/// Compresses one matrix `[out, in]`. A pass made of such a function gives, for each operator, what a direct
/// call with the same inputs gives, bit for bit.
using MatrixFunction = std::function<MatrixResult(const at::Tensor& weight, const calib::InputStats& stats,
                                                  const PassOptions& options, PassContext& context)>;

/// The statistics of a group as the operator at position `k` in it sees them: of what is one operator's only
/// its own.
calib::InputStats of_operator(const calib::InputStats& stats, size_t k);

/// Lifts a function on matrices into a pass.
std::unique_ptr<Pass> linear_pass(std::string name, calib::Needs needs, bool sequential,
                                  MatrixFunction function);

/// Bytes that an operator takes in a model of type `model_dtype`: transforms leave float32 matrices between
/// the passes, which are not what is stored.
int64_t stored_bytes(const model::LinearOp& op, at::ScalarType model_dtype);

/// In strict mode, throws NumericalError where the row tells of another step of the numerical ladder than the
/// regular one.
void require_regular(const OperatorRow& row, const PassContext& context);

/// Puts `result` into the block in place of operator `op` and appends its row, with sizes and weight errors
/// measured here. Used by passes that are more than a function on one matrix.
void replace_and_report(model::Block& block, size_t op, MatrixResult result, const std::string& method,
                        double seconds, const calib::InputStats& stats, PassContext& context);

}  // namespace lcomp::pipeline
