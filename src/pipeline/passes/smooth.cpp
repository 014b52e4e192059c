#include "lcomp/quant/smooth.h"

#include <array>
#include <optional>

#include "core/stopwatch.h"
#include "lcomp/model/fold.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/quant/gptq.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/solver.h"

namespace lcomp::pipeline {

/// The authors' levels of efficiency (Xiao et al. 2023, table 2): one scale for a whole weight matrix, and
/// for activations as below. Each is a set of presets of the settings `granularity` and `activation_...`.
enum class SmoothLevel {
  kCustom,  ///< those settings as they are given
  kO1,      ///< dynamic, per token
  kO2,      ///< dynamic, per tensor
  kO3,      ///< static, per tensor
};

/// Which groups SmoothQuant scales.
enum class SmoothGroups {
  kAll,    ///< every group that something in front can absorb the scale of
  kNorms,  ///< those behind a norm, as the authors
};

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::SmoothLevel> {
  static constexpr std::array<std::string_view, 4> names = {"custom", "o1", "o2", "o3"};
};
template <>
struct EnumNames<pipeline::SmoothGroups> {
  static constexpr std::array<std::string_view, 2> names = {"all", "norms"};
};
}  // namespace lcomp

namespace lcomp::pipeline {
namespace {

constexpr const char* kSmoothQuant = "smoothquant";

/// Tokens that the search for alpha looks at.
constexpr int64_t kSampledTokens = 256;

struct SmoothGroupOptions {
  SmoothGroups groups = SmoothGroups::kAll;

  void visit(FieldVisitor& v) {
    v.field("smooth_groups", groups,
            "which inputs are scaled: all that something in front can absorb the scale of, or those behind "
            "norms");
  }
};

using SmoothParts =
    PassOptionsOf<quant::QuantScheme, quant::ActivationScheme, quant::SmoothOptions, SmoothGroupOptions,
                  TransformSolverOptions, quant::GptqOptions, GptqOrderOptions>;

class SmoothPassOptions final : public SmoothParts {
 public:
  /// The level comes first: settings that a job gives beside it win over its presets.
  void visit(FieldVisitor& v) override {
    const SmoothLevel before = level_;
    v.field("level", level_,
            "presets of granularity and activation_...: o1 (weights per tensor; activations per token), o2 "
            "(activations per tensor), o3 (static), or custom (none)");
    if (level_ != before) apply(level_);
    SmoothParts::visit(v);
  }
  std::unique_ptr<PassOptions> clone() const override { return std::make_unique<SmoothPassOptions>(*this); }

 private:
  void apply(SmoothLevel level) {
    if (level == SmoothLevel::kCustom) return;
    get<quant::QuantScheme>().granularity = quant::Granularity::kTensor;
    auto& activations = get<quant::ActivationScheme>();
    activations.granularity = level == SmoothLevel::kO1 ? quant::ActivationGranularity::kToken
                                                        : quant::ActivationGranularity::kTensor;
    activations.dynamic = level != SmoothLevel::kO3;
  }

  SmoothLevel level_ = SmoothLevel::kCustom;
};

class SmoothPass final : public Pass {
 public:
  explicit SmoothPass(bool searches) : searches_(searches) {}

  std::string name() const override { return kSmoothQuant; }
  calib::Needs needs() const override {
    return {.abs_max = true, .sampled_tokens = searches_ ? kSampledTokens : 0};
  }
  bool keeps_function() const override { return true; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const Stopwatch watch;
    const TransformGroup members(block, group, context);
    const at::Tensor sources = model::absorber_rows(block, group);
    if (members.ops.empty() || !sources.defined()) return;
    const PassOptions& settings = *members.settings[0];
    const bool behind_norm = block.vector(block.groups()[group].absorber + ".weight").defined();
    if (settings.part<SmoothGroupOptions>().groups == SmoothGroups::kNorms && !behind_norm) return;
    const auto& options = settings.part<quant::SmoothOptions>();
    quant::SmoothSearch found;
    found.alpha = options.alpha;
    if (options.search_alpha) {
      found = quant::smooth_search(members.weights, members.schemes, settings.part<quant::ActivationScheme>(),
                                   stats.abs_max, stats.samples, sources, &context.pool);
    } else {
      found.scale = quant::smooth_scale(members.weights, stats.abs_max, options.alpha, sources);
    }
    if (!options.search_alpha || found.index >= 0) model::fold_input_scale(block, group, found.scale);
    const auto losses =
        options.search_alpha ? std::make_optional(TransformLoss{found.loss, found.plain_loss}) : std::nullopt;
    const bool is_scaled = !options.search_alpha || found.index >= 0;
    const std::string what =
        is_scaled ? fmt::format("inputs scaled, alpha {:.2f}", found.alpha) : "inputs as they were";
    report_transform(block, members, what, name(), losses, watch.seconds(), stats, context);
  }

 private:
  bool searches_;
};

std::unique_ptr<PassOptions> smooth_options() {
  auto options = std::make_unique<SmoothPassOptions>();
  options->get<quant::QuantScheme>() = scheme_beside_activations();
  return options;
}

PlannedWeight plan_smooth(const PassOptions& options, const PlannedOperator& op) {
  const TransformSolver solver = options.part<TransformSolverOptions>().solver;
  check_solver(options, solver, kSmoothQuant);
  if (options.part<quant::SmoothOptions>().search_alpha &&
      options.part<quant::QuantScheme>().range == quant::RangeRule::kHessian) {
    throw InvalidArgument(
        kSmoothQuant,
        "range must be min_max or mse with search_alpha, which takes no second moment; it is hessian");
  }
  const PlannedWeight planned = plan_quantized_input(options, kSmoothQuant, op);
  return solver == TransformSolver::kNone ? plan_scaled(op) : planned;
}

PassChain smooth_passes(const PassOptions& options) {
  PassChain chain = chain_of(std::make_unique<SmoothPass>(options.part<quant::SmoothOptions>().search_alpha));
  if (auto solver = solver_pass(kSmoothQuant, options))
    chain.push_back(quantized_input_pass(std::move(solver), options));
  return chain;
}

}  // namespace

MethodInfo smoothquant_method() {
  MethodInfo info;
  info.name = kSmoothQuant;
  info.summary =
      "the range of outlier channels moved from activations into weights, then both as integers of 8 bits "
      "(Xiao et al. 2023)";
  info.needs_calibration = true;
  info.default_options = smooth_options;
  info.cost = [](const PassOptions& options) {
    return cost_with_solver(
        {.flops_per_weight = 5'000, .cubic = 0, .result_bytes = 3.5, .moment_bytes = 0, .weight_bytes = 6},
        options);
  };
  info.plan_weight = plan_smooth;
  info.effect = [](const PassOptions& options) {
    return Effect{.transforms = true,
                  .quantizes = options.part<TransformSolverOptions>().solver != TransformSolver::kNone,
                  .keeps_zeros = options.part<quant::QuantScheme>().has_zero()};
  };
  info.pass_settings = {"solver", "search_alpha", "true_sequential", "activation_dynamic"};
  info.make_passes = smooth_passes;
  return info;
}

}  // namespace lcomp::pipeline
