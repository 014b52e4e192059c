#include "lcomp/quant/gptq.h"

#include <chrono>

#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

using GptqPassOptions = PassOptionsOf<quant::QuantScheme, quant::GptqOptions, GptqOrderOptions>;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string rung_text(const quant::GptqResult& result) {
  switch (result.rung) {
    case linalg::Rung::kPlain:
      return "cholesky";
    case linalg::Rung::kMoreDamping:
      return "more damping";
    case linalg::Rung::kDiagonalFloor:
      return "diagonal floor";
    case linalg::Rung::kFailed:
      break;
  }
  return "failed";
}

MatrixResult to_matrix_result(quant::GptqResult result) {
  OperatorRow row;
  row.loss = result.loss;
  if (std::isfinite(result.rtn_loss)) row.rtn_loss = result.rtn_loss;
  row.damping = result.damping;
  row.rung = rung_text(result);
  row.rung_index = static_cast<int64_t>(result.rung);
  row.dead_columns = result.dead_columns;
  row.fell_back = result.fell_back;
  if (result.fell_back) {
    row.fallback = result.rung == linalg::Rung::kFailed
                       ? "rtn: the second moment could not be factored"
                       : fmt::format("rtn: its loss {:.4g} is not above that of gptq", result.rtn_loss);
  }
  return {std::make_shared<quant::QuantizedWeight>(std::move(result.weight)), std::move(row)};
}

class GptqPass final : public Pass {
 public:
  GptqPass(std::string method, bool sequential) : method_(std::move(method)), sequential_(sequential) {}

  std::string name() const override { return method_; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  bool sequential() const override { return sequential_; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    struct Solved {
      size_t op;
      MatrixResult result;
      double seconds;
    };
    std::vector<Solved> solved;
    {
      // Operators of a group read one input, so those with the same settings share one factorisation. It is
      // freed before the results are measured.
      std::map<const PassOptions*, quant::GptqFactor> factors;
      for (const size_t op : block.groups()[group].operators) {
        const PassOptions* settings = context.settings(block.ops()[op].info.name);
        if (settings == nullptr) continue;
        const auto start = std::chrono::steady_clock::now();
        MatrixResult result = solve(block.ops()[op], *settings, stats, factors, context);
        solved.push_back({op, std::move(result), seconds_since(start)});
      }
    }
    for (Solved& s : solved) {
      replace_and_report(block, s.op, std::move(s.result), name(), s.seconds, stats, context);
    }
  }

 private:
  static MatrixResult solve(const model::LinearOp& op, const PassOptions& settings,
                            const calib::InputStats& stats,
                            std::map<const PassOptions*, quant::GptqFactor>& factors,
                            const PassContext& context) {
    const auto scheme = with_scale_type(settings.part<quant::QuantScheme>(), context.model_dtype);
    quant::GptqOptions options = settings.part<quant::GptqOptions>();
    options.strict = options.strict || context.strict;
    auto factor = factors.find(&settings);
    if (factor == factors.end()) {
      auto made = quant::gptq_factor(stats.second_moment, scheme, options, &context.pool);
      factor = factors.emplace(&settings, std::move(made)).first;
    }
    return to_matrix_result(quant::gptq(op.weight->dense(), factor->second, scheme, options, &context.pool));
  }

  std::string method_;
  bool sequential_;
};

}  // namespace

std::unique_ptr<Pass> gptq_pass(std::string method, const PassOptions& options) {
  return std::make_unique<GptqPass>(std::move(method), options.part<GptqOrderOptions>().true_sequential);
}

MethodInfo gptq_method() {
  MethodInfo info;
  info.name = "gptq";
  info.summary = "rounding with second-order error compensation, column by column (Frantar et al. 2023)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<GptqPassOptions>(); };
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    return plan_scheme(options.part<quant::QuantScheme>(), "gptq", op);
  };
  info.make_passes = [](const PassOptions& options) { return chain_of(gptq_pass("gptq", options)); };
  return info;
}

}  // namespace lcomp::pipeline
