// Adds a method of our own to the table and runs it in a job like a built-in one. The method rounds to
// nearest with scales that are powers of two, so that decoding needs shifts and no multiplication; of several
// powers each group takes the one that hurts the layer's outputs least. docs/adding_a_method.md walks through
// this file.
//
//   example_03_write_your_own_pass EXAMPLES_FOLDER

#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "lcomp/core/error.h"
#include "lcomp/lcomp.h"

namespace calib = lcomp::calib;
namespace pipeline = lcomp::pipeline;
namespace quant = lcomp::quant;

namespace {

// ---- The mathematics: a function on tensors, which knows nothing of models and jobs.

struct PowerOfTwoOptions {
  int64_t candidates = 3;

  void visit(lcomp::FieldVisitor& v) {
    v.field("candidates", candidates, {1, 8}, "powers of two that each group tries, from the largest down");
  }
};

/// Rounds `weight` [out, in] to a symmetric grid whose scales are powers of two. Per group it keeps, of the
/// powers 2^k, 2^(k-1), ... with 2^k >= the min-max scale (without its sign), the one with the least sum of
/// a_j^2 (w_j - w^_j)^2. `magnitudes` [in] are the a_j: how large input j usually is.
quant::QuantizedWeight power_of_two(const at::Tensor& weight, const at::Tensor& magnitudes,
                                    const quant::QuantScheme& scheme, const PowerOfTwoOptions& options) {
  const int64_t out = weight.size(0), in = weight.size(1), groups = scheme.groups(in);
  const at::Tensor importance = magnitudes.to(at::kDouble).square();
  const at::Tensor largest = quant::fit_grid(weight, scheme).scale.to(at::kDouble).abs().log2().ceil().exp2();

  at::Tensor best_scale, best_error;
  for (int64_t k = 0; k < options.candidates; ++k) {
    const quant::Grid grid{largest * std::exp2(-static_cast<double>(k)), {}};
    const at::Tensor rounded = quant::dequantize(quant::quantize(weight, grid, scheme), grid);
    const at::Tensor loss = (weight - rounded).square() * importance;
    const at::Tensor error = loss.reshape({out, groups, in / groups}).sum(2);  // [out, groups]
    if (k == 0) {
      best_scale = grid.scale;
      best_error = error;
      continue;
    }
    const at::Tensor better = error < best_error;
    best_scale = at::where(better, grid.scale, best_scale);
    best_error = at::where(better, error, best_error);
  }
  // A power of two is exact in every storage type.
  const at::Tensor scale = best_scale.to(scheme.scale_type(weight.scalar_type()));
  return {scheme, quant::quantize(weight, {scale, {}}, scheme), scale};
}

// ---- The adaptor: settings from the job file in, a weight for the block out.

using Settings = pipeline::PassOptionsOf<quant::QuantScheme, PowerOfTwoOptions>;

const Settings& settings_of(const pipeline::PassOptions& options) {
  return dynamic_cast<const Settings&>(options);
}

pipeline::MatrixResult compress(const at::Tensor& weight, const calib::InputStats& stats,
                                const pipeline::PassOptions& options, pipeline::PassContext& context) {
  const Settings& settings = settings_of(options);
  // The pipeline hands out float32; scales are to be stored in the type of the model.
  auto result = power_of_two(weight.to(context.model_dtype), stats.abs_mean,
                             settings.get<quant::QuantScheme>(), settings.get<PowerOfTwoOptions>());
  return {std::make_shared<quant::QuantizedWeight>(std::move(result)), {}};
}

pipeline::PlannedWeight plan(const pipeline::PassOptions& options, const pipeline::PlannedOperator& op) {
  const auto& scheme = settings_of(options).get<quant::QuantScheme>();
  scheme.validate({op.out_features, op.in_features}, "power_of_two", op.name);
  if (!scheme.symmetric || scheme.granularity == quant::Granularity::kTensor) {
    throw lcomp::InvalidArgument(
        "power_of_two", "the scheme must be symmetric, per channel or group; it is " + scheme.describe());
  }
  return {scheme.describe() + ", scales 2^k",
          quant::packed_bytes(scheme, op.out_features, op.in_features, scheme.scale_type(op.dtype))};
}

// ---- The row of the table.

pipeline::MethodInfo power_of_two_method() {
  pipeline::MethodInfo info;
  info.name = "power_of_two";
  info.summary = "round to nearest on a grid whose scales are powers of two";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<Settings>(); };
  info.plan_weight = plan;
  info.make_passes = [](const pipeline::PassOptions&) {
    return pipeline::chain_of(
        pipeline::linear_pass("power_of_two", {.abs_mean = true}, /*sequential=*/false, compress));
  };
  return info;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string data = argc > 1 ? argv[1] : "examples";
  const std::filesystem::path output = "power-of-two";
  std::filesystem::remove_all(output);

  pipeline::MethodTable methods = pipeline::builtin_methods();
  methods.add(power_of_two_method());

  const std::string text = R"({
    "model": ")" + data + R"(/model",
    "output": "power-of-two",
    "calibration": { "text": ")" +
                           data + R"(/text/kjv-calib.txt", "samples": 16, "length": 256 },
    "passes": [ { "method": "power_of_two", "bits": 5, "group_size": 64, "candidates": 2 } ],
    "evaluate": { "text": ")" +
                           data +
                           R"(/text/kjv-eval.txt", "window": 256, "max_windows": 16, "reference": true }
  })";
  const pipeline::Job job = pipeline::parse_job(text, "example job", methods);
  lcomp::Observer silent;
  const pipeline::RunReport report = pipeline::run(job, methods, silent, lcomp::report::write_reports);

  std::printf("%zu operators, for example %s: %s, weight error %.4f\n", report.operators.size(),
              report.operators.front().name.c_str(), report.operators.front().scheme.c_str(),
              report.operators.front().weight_error.value_or(0));
  for (const pipeline::EvaluationRow& row : report.evaluation) {
    std::printf("%-10s perplexity %.3f\n", row.model.c_str(), row.perplexity.value_or(0));
  }
  return report.verification && report.verification->passed ? 0 : 1;
}
