#pragma once

#include "lcomp/linalg/cholesky.h"
#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/mismatch.h"

/// One function per method: its row of the table.
namespace lcomp::pipeline {

/// How GPTQ is run over the operators of a block.
struct GptqOrderOptions {
  bool true_sequential = true;
  quant::MismatchRule mismatch = quant::MismatchRule::kNone;
  double mismatch_weight = 0.5;

  bool operator==(const GptqOrderOptions&) const = default;

  void visit(FieldVisitor& v) {
    v.field("mismatch", mismatch,
            "make up for inputs that compression has changed: none, fixed (by mismatch_weight), or split (as "
            "far as one half of the samples confirms the other); where a job does not say, gptq, "
            "mixed_precision, svd_llm, tucker_layers and lqer by gptq take split in its last pass");
    v.field("mismatch_weight", mismatch_weight, {0, 1}, "share of the correction that mismatch fixed takes");
    v.field("true_sequential", true_sequential,
            "take the statistics of each group of operators after the groups before it are compressed, "
            "instead of once per block");
  }
  std::vector<IdleSetting> idle() const {
    if (mismatch == quant::MismatchRule::kFixed) return {};
    return {{"mismatch_weight", "with mismatch fixed"}};
  }
};

/// Takes the correction for changed inputs where it can be had and the job does not say.
void settle_mismatch(GptqOrderOptions& order, const std::function<bool(std::string_view)>& given,
                     bool is_last);

/// The parts of settings that `settle_gptq` looks at.
struct GptqSettings {
  const quant::QuantScheme& scheme;
  quant::GptqOptions& options;
  GptqOrderOptions& order;
};

/// `MethodInfo::settle` of methods that are GPTQ: refit, sweeps and the correction for changed inputs where
/// they can be had.
void settle_gptq(GptqSettings settings, const std::function<bool(std::string_view)>& given, bool is_last);

/// The same for settings that are a PassOptionsOf with those parts.
template <class Options>
void settle_as_gptq(PassOptions& options, const std::function<bool(std::string_view)>& given, bool is_last) {
  auto& all = dynamic_cast<Options&>(options);
  settle_gptq({all.template get<quant::QuantScheme>(), all.template get<quant::GptqOptions>(),
               all.template get<GptqOrderOptions>()},
              given, is_last);
}

/// What GPTQ takes.
inline constexpr MethodCost kGptqCost{
    .flops_per_weight = 40'000, .cubic = 3, .result_bytes = 3.5, .moment_bytes = 3, .weight_bytes = 30};

/// What a method takes that takes `own` itself and may round by GPTQ.
inline MethodCost cost_with_gptq(const MethodCost& own, bool rounds_by_gptq) {
  return rounds_by_gptq ? larger_of(own, kGptqCost) : own;
}

/// The settings of GPTQ, of a method whose solver is another.
std::vector<IdleSetting> idle_without_gptq();

/// What rounds the weights of a method that does something besides.
enum class Solver { kRtn, kGptq };

struct SolverOptions {
  Solver solver = Solver::kRtn;

  void visit(FieldVisitor& v) { v.field("solver", solver, "what quantizes the weights: rtn or gptq"); }
  std::vector<IdleSetting> idle() const;
};

/// The passes that other methods' chains end in; `method` is the name in the report. RTN reads the part
/// QuantScheme of the settings, GPTQ also GptqOptions and GptqOrderOptions.
std::unique_ptr<Pass> rtn_pass(std::string method);
std::unique_ptr<Pass> gptq_pass(std::string method, const PassOptions& options);

/// Weights by RTN or GPTQ, and the inputs of the operators quantized as well. Reads the parts QuantScheme,
/// ActivationScheme, SolverOptions, GptqOptions and GptqOrderOptions of the settings.
std::unique_ptr<Pass> quantized_input_pass(const std::string& method, const PassOptions& options);
/// The same around any pass that leaves QuantizedWeights behind, for other methods' chains. Reads the part
/// ActivationScheme.
std::unique_ptr<Pass> quantized_input_pass(std::unique_ptr<Pass> weights, const PassOptions& options);
/// What it makes of an operator; throws InvalidArgument for settings that do not fit it or each other.
PlannedWeight plan_quantized_input(const PassOptions& options, const char* method, const PlannedOperator& op);

/// The share of the correction for changed inputs, by GptqOrderOptions, that the operators of a group with
/// these settings take.
double mismatch_weight(const model::Block& block, size_t group, const PassOptions& settings,
                       const calib::InputStats& stats, double damping, const PassContext& context);

/// Notes in the row the rung of the ladder of factorisations that a damped inverse took; of several the
/// furthest from the regular way.
void report_rung(linalg::Rung rung, OperatorRow& row);
/// The same for ways that are no such rungs: 0 is the regular one.
void report_step(std::string step, int64_t index, OperatorRow& row);

/// What was done instead of the method's own, and why.
void report_fallback(std::string fallback, OperatorRow& row);

MethodInfo rtn_method();
MethodInfo gptq_method();
MethodInfo int8_method();
MethodInfo llm_int8_method();
MethodInfo squeezellm_method();
MethodInfo awq_method();
MethodInfo smoothquant_method();
MethodInfo mixed_precision_method();
MethodInfo magnitude_method();
MethodInfo wanda_method();
MethodInfo ria_method();
MethodInfo obd_method();
MethodInfo sparsegpt_method();
MethodInfo wrp_method();
MethodInfo fisher_mask_method();
MethodInfo llm_pruner_method();
MethodInfo svd_method();
MethodInfo fwsvd_method();
MethodInfo asvd_method();
MethodInfo svd_llm_method();
MethodInfo pca_method();
MethodInfo lqer_method();
MethodInfo oats_method();
MethodInfo tensor_train_method();
MethodInfo tucker_heads_method();
MethodInfo tucker_layers_method();

}  // namespace lcomp::pipeline

namespace lcomp {

template <>
struct EnumNames<pipeline::Solver> {
  static constexpr std::array<std::string_view, 2> names = {"rtn", "gptq"};
};

}  // namespace lcomp
