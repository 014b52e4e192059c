#include "lcomp/quant/llm_int8.h"

#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"

namespace lcomp::pipeline {
namespace {

using LlmInt8PassOptions = PassOptionsOf<quant::LlmInt8Options>;

/// Features with outliers among the inputs, and how often.
std::vector<OutlierFeature> outlier_features(const calib::InputStats& stats) {
  std::vector<OutlierFeature> features;
  if (!stats.outlier_tokens.defined() || stats.tokens == 0) return features;
  const int64_t* tokens = stats.outlier_tokens.data_ptr<int64_t>();
  for (int64_t j = 0; j < stats.outlier_tokens.numel(); ++j) {
    if (tokens[j] == 0) continue;
    features.push_back({j, static_cast<double>(tokens[j]) / static_cast<double>(stats.tokens)});
  }
  return features;
}

class LlmInt8Pass final : public Pass {
 public:
  explicit LlmInt8Pass(const quant::LlmInt8Options& options) : threshold_(options.threshold) {}

  std::string name() const override { return "llm_int8"; }
  calib::Needs needs() const override { return {.outlier_threshold = threshold_}; }
  bool sequential() const override { return true; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    bool first = true;
    for (const size_t op : block.groups()[group].operators) {
      const PassOptions* settings = context.settings(block.ops()[op].info.name);
      if (settings == nullptr) continue;
      const auto start = std::chrono::steady_clock::now();
      MatrixResult result;
      const at::Tensor calibrated = stats.outlier_tokens.defined() ? stats.outlier_tokens > 0 : at::Tensor();
      result.weight = std::make_shared<quant::OutlierInt8Weight>(
          quant::llm_int8(block.ops()[op].weight->dense(), settings->part<quant::LlmInt8Options>(),
                          calibrated, context.model_dtype));
      result.row.product = "int8 product";
      // Operators of a group read one input: its features stand at the first.
      if (std::exchange(first, false)) result.row.outliers = outlier_features(stats);
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
      replace_and_report(block, op, std::move(result), name(), seconds, stats, context);
    }
  }

 private:
  double threshold_;
};

}  // namespace

MethodInfo llm_int8_method() {
  MethodInfo info;
  info.name = "llm_int8";
  info.summary = "int8 products with outlier columns of the input apart (LLM.int8(), Dettmers et al. 2022)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<LlmInt8PassOptions>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 5'000, .cubic = 0, .result_bytes = 1, .moment_bytes = 0, .weight_bytes = 34});
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    const auto& llm = options.part<quant::LlmInt8Options>();
    const bool all = llm.outlier_weights == quant::OutlierWeights::kOriginal;
    // How many columns the calibration will find is not known yet.
    const bool finds = llm.outlier_weights == quant::OutlierWeights::kCalibrated;
    return PlannedWeight{
        .scheme = fmt::format("llm.int8, outliers from {}, kept: {}{}", llm.threshold,
                              name_of(llm.outlier_weights), finds ? " (those found come on top)" : ""),
        .bytes_after =
            quant::llm_int8_bytes(op.out_features, op.in_features, all ? op.in_features : 0, op.dtype),
        .rounds_input = true,
        .is_estimate = finds};
  };
  info.pass_settings = {"threshold"};
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<LlmInt8Pass>(options.part<quant::LlmInt8Options>()));
  };
  return info;
}

}  // namespace lcomp::pipeline
