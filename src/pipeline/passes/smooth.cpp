#include "lcomp/quant/smooth.h"

#include <array>
#include <optional>

#include "core/stopwatch.h"
#include "lcomp/model/fold.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/solver.h"

namespace lcomp::pipeline {

/// Which groups SmoothQuant scales.
enum class SmoothGroups {
  kAll,    ///< every group that something in front can absorb the scale of
  kNorms,  ///< those behind a norm, as the authors
};

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::SmoothGroups> {
  static constexpr std::array<std::string_view, 2> names = {"all", "norms"};
};
}  // namespace lcomp

namespace lcomp::pipeline {
namespace {

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

using SmoothPassOptions =
    PassOptionsOf<quant::QuantScheme, quant::ActivationScheme, quant::SmoothOptions, SmoothGroupOptions>;

class SmoothPass final : public Pass {
 public:
  explicit SmoothPass(bool searches) : searches_(searches) {}

  std::string name() const override { return "smoothquant"; }
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
    report_transform(block, members, fmt::format("inputs scaled, alpha {:.2f}", found.alpha), name(), losses,
                     watch.seconds(), stats, context);
  }

 private:
  bool searches_;
};

std::unique_ptr<PassOptions> smooth_options() {
  auto options = std::make_unique<SmoothPassOptions>();
  options->get<quant::QuantScheme>().bits = 8;
  options->get<quant::QuantScheme>().granularity = quant::Granularity::kChannel;
  return options;
}

}  // namespace

MethodInfo smoothquant_method() {
  MethodInfo info;
  info.name = "smoothquant";
  info.summary =
      "the range of outlier channels moved from activations into weights (Xiao et al. 2023); a pass behind "
      "it quantizes";
  info.needs_calibration = true;
  info.default_options = smooth_options;
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    options.part<quant::QuantScheme>().validate({op.out_features, op.in_features}, "smoothquant", op.name);
    options.part<quant::ActivationScheme>().validate("smoothquant");
    return plan_scaled(op);
  };
  info.effect = [](const PassOptions&) { return Effect{.transforms = true, .quantizes = false}; };
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<SmoothPass>(options.part<quant::SmoothOptions>().search_alpha));
  };
  return info;
}

}  // namespace lcomp::pipeline
