#include <map>
#include <utility>

#include "lcomp/core/allocation.h"
#include "lcomp/core/error.h"
#include "lcomp/pipeline/survey.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/sensitivity.h"
#include "pipeline/passes/model_loss.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/scheme_plan.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kMethod = "mixed_precision";

struct MixedPrecisionOptions {
  double bits_per_weight = 4.25;
  int64_t min_bits = 2;
  int64_t max_bits = 8;
  Sensitivity sensitivity = Sensitivity::kModelLoss;
  int64_t sampled_rows = 64;
  double trust = 0.7;

  void visit(FieldVisitor& v) {
    v.field("bits_per_weight", bits_per_weight, {2, 16},
            "budget: stored bits per weight over the operators of the pass, scales included");
    v.field("min_bits", min_bits, {2, 8}, "least bits that an operator may get");
    v.field("max_bits", max_bits, {2, 8}, "most bits that an operator may get");
    v.field("sensitivity", sensitivity,
            "what errors of operators are weighed by: the gradients of the model's loss, or the size of "
            "their own outputs");
    v.field("sampled_rows", sampled_rows, {1},
            "rows of a matrix by which its loss at each width is estimated");
    v.field(
        "trust", trust, {0, 1},
        "how far estimates of the loss per weight are believed: 1 as they are, 0 not at all; the ratio of an "
        "operator's to the mean is raised to this power");
  }
};

using Options =
    PassOptionsOf<quant::QuantScheme, quant::GptqOptions, GptqOrderOptions, MixedPrecisionOptions>;

const MixedPrecisionOptions& mixed(const PassOptions& options) {
  return options.part<MixedPrecisionOptions>();
}

std::vector<int64_t> widths(const MixedPrecisionOptions& options) {
  std::vector<int64_t> bits;
  for (int64_t b = options.min_bits; b <= options.max_bits; ++b) bits.push_back(b);
  return bits;
}

quant::QuantScheme with_bits(const PassOptions& options, int64_t bits) {
  quant::QuantScheme scheme = options.part<quant::QuantScheme>();
  scheme.bits = bits;
  return scheme;
}

/// Operators that get the same width, because they read one input and are run as one matrix by other
/// software (q, k and v; gate and up).
struct Item {
  std::vector<size_t> operators;
};

std::vector<Item> items_of(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) {
  std::map<std::pair<int64_t, int64_t>, Item> items;
  for (size_t i = 0; i < operators.size(); ++i) {
    if (settings[i]) items[{operators[i].block, operators[i].group}].operators.push_back(i);
  }
  std::vector<Item> out;
  out.reserve(items.size());
  for (auto& [place, item] : items) out.push_back(std::move(item));
  return out;
}

class WidthSurvey final : public Survey {
 public:
  WidthSurvey(const PassOptions& entry, at::ScalarType dtype) : budget_(mixed(entry)), dtype_(dtype) {}

  calib::Needs needs() const override { return needs_of(budget_.sensitivity); }

  void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const override {
    int64_t least = 0;
    for (const Item& item : items_of(operators, settings)) {
      const std::vector<int64_t> bits = shared_widths(item, operators, settings);
      least += cost(item, bits.front(), operators, settings);
    }
    const int64_t budget = budget_bytes(operators, settings);
    if (least <= budget) return;
    throw InvalidArgument(
        kMethod,
        fmt::format("bits_per_weight must allow min_bits everywhere, which takes {:.4g} with the "
                    "scales; it is {}",
                    budget_.bits_per_weight * static_cast<double>(least) / static_cast<double>(budget),
                    budget_.bits_per_weight));
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    SurveyNumbers numbers;
    // Operators with the same settings share the factor of their common input.
    std::map<const PassOptions*, quant::GptqFactor> factors;
    const std::vector<size_t>& members = block.groups()[group].operators;
    for (size_t k = 0; k < members.size(); ++k) {
      const model::LinearOp& op = block.ops()[members[k]];
      const PassOptions* settings = context.settings(op.info.name);
      if (settings == nullptr) continue;
      const auto scheme = with_scale_type(settings->part<quant::QuantScheme>(), context.model_dtype);
      quant::GptqOptions gptq = settings->part<quant::GptqOptions>();
      gptq.sweeps = 0;  // they lower the losses of all alike
      gptq.refit = false;
      auto factor = factors.find(settings);
      if (factor == factors.end()) {
        auto made = quant::gptq_factor(stats.second_moment, scheme, gptq, &context.pool);
        factor = factors.emplace(settings, std::move(made)).first;
      }
      const at::Tensor weight = op.weight->dense();
      const LossWeights loss = loss_weights(budget_.sensitivity, weight, stats, k, &context.pool);
      numbers[op.info.name] =
          quant::losses_by_bits(weight, factor->second, scheme, widths(mixed(*settings)), gptq,
                                mixed(*settings).sampled_rows, loss.row_weights, loss.moment, &context.pool);
    }
    return numbers;
  }

  OperatorSettings decide(const SurveyNumbers& numbers, const std::vector<OperatorPlan>& operators,
                          const OperatorSettings& settings, std::string& decision) const override {
    const std::vector<Item> items = items_of(operators, settings);
    std::vector<std::vector<AllocationOption>> options;
    int64_t common = 0;  // a width that all items have, or the nearest they have
    for (const Item& item : items)
      common = std::max(common, shared_widths(item, operators, settings).front());
    std::vector<AllocationOption> at_common;
    for (const Item& item : items) {
      auto& of_item = options.emplace_back();
      const std::vector<int64_t> bits_of_item = shared_widths(item, operators, settings);
      for (const int64_t bits : bits_of_item) {
        double loss = 0;
        for (const size_t i : item.operators) {
          const auto least = mixed(*settings[i]).min_bits;
          loss += numbers.at(operators[i].name).at(static_cast<size_t>(bits - least));
        }
        of_item.push_back({cost(item, bits, operators, settings), loss});
      }
      const int64_t bits = std::min(common, bits_of_item.back());
      at_common.push_back(of_item[static_cast<size_t>(bits - bits_of_item.front())]);
    }
    shrink(options, at_common);
    const std::vector<size_t> chosen = allocate(options, budget_bytes(operators, settings));
    OperatorSettings decided = settings;
    int64_t bytes = 0;
    std::map<int64_t, int64_t> counts;
    for (size_t k = 0; k < items.size(); ++k) {
      bytes += options[k][chosen[k]].cost;
      const int64_t bits = shared_widths(items[k], operators, settings)[chosen[k]];
      for (const size_t i : items[k].operators) {
        auto copy = settings[i]->clone();
        copy->part<quant::QuantScheme>().bits = bits;
        decided[i] = std::move(copy);
        ++counts[bits];
      }
    }
    decision = describe(counts, 8.0 * static_cast<double>(bytes) / weights(operators, settings));
    return decided;
  }

 private:
  /// Draws the loss per byte of every item towards the mean (`shrinkage`). Items are compared at one width;
  /// the course of the loss over the widths stays.
  void shrink(std::vector<std::vector<AllocationOption>>& items,
              const std::vector<AllocationOption>& at_common) const {
    const std::vector<double> factors = shrinkage(at_common, budget_.trust);
    for (size_t k = 0; k < items.size(); ++k) {
      for (AllocationOption& option : items[k]) option.loss *= factors[k];
    }
  }

  static double weights(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) {
    double sum = 0;
    for (size_t i = 0; i < operators.size(); ++i) {
      if (settings[i])
        sum += static_cast<double>(operators[i].out_features) * static_cast<double>(operators[i].in_features);
    }
    return sum;
  }

  int64_t budget_bytes(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const {
    return static_cast<int64_t>(budget_.bits_per_weight * weights(operators, settings) / 8);
  }

  /// Widths that all operators of the item allow.
  static std::vector<int64_t> shared_widths(const Item& item, const std::vector<OperatorPlan>& operators,
                                            const OperatorSettings& settings) {
    MixedPrecisionOptions shared = mixed(*settings[item.operators.front()]);
    for (const size_t i : item.operators) {
      shared.min_bits = std::max(shared.min_bits, mixed(*settings[i]).min_bits);
      shared.max_bits = std::min(shared.max_bits, mixed(*settings[i]).max_bits);
    }
    if (shared.min_bits > shared.max_bits) {
      throw InvalidArgument(
          kMethod, fmt::format("min_bits must not exceed max_bits for operators that read one input; for "
                               "'{}' and those beside it they are {} and {}",
                               operators[item.operators.front()].name, shared.min_bits, shared.max_bits));
    }
    return widths(shared);
  }

  int64_t cost(const Item& item, int64_t bits, const std::vector<OperatorPlan>& operators,
               const OperatorSettings& settings) const {
    int64_t bytes = 0;
    for (const size_t i : item.operators) {
      const quant::QuantScheme scheme = with_bits(*settings[i], bits);
      bytes += quant::packed_bytes(scheme, operators[i].out_features, operators[i].in_features,
                                   scheme.scale_type(dtype_));
    }
    return bytes;
  }

  static std::string describe(const std::map<int64_t, int64_t>& counts, double bits_per_weight) {
    std::string text = fmt::format("{:.4g} bits per weight:", bits_per_weight);
    for (const auto& [bits, count] : counts) text += fmt::format(" int{} x {},", bits, count);
    text.pop_back();
    return text;
  }

  MixedPrecisionOptions budget_;
  at::ScalarType dtype_;
};

PlannedWeight plan_weight(const PassOptions& options, const PlannedOperator& op) {
  const MixedPrecisionOptions& mix = mixed(options);
  if (mix.min_bits > mix.max_bits) {
    throw InvalidArgument(kMethod, fmt::format("min_bits must not exceed max_bits; they are {} and {}",
                                               mix.min_bits, mix.max_bits));
  }
  const auto& scheme = options.part<quant::QuantScheme>();
  if (scheme.bits != quant::QuantScheme().bits) {
    throw InvalidArgument(
        kMethod, fmt::format("bits is what the method chooses, between min_bits and max_bits; set those "
                             "instead of bits, which is {}",
                             scheme.bits));
  }
  if (scheme.format != quant::NumberFormat::kInt) {
    throw InvalidArgument(kMethod,
                          fmt::format("format must be int, which alone has a choice of bits; it is {}",
                                      name_of(scheme.format)));
  }
  if (scheme.granularity == quant::Granularity::kTensor)
    throw InvalidArgument(
        kMethod, "granularity must be channel or group, so that rows can stand for a matrix; it is tensor");
  check_gptq(options);
  const PlannedWeight widest = plan_scheme(with_bits(options, mix.max_bits), kMethod, op);
  const double weights = static_cast<double>(op.out_features) * static_cast<double>(op.in_features);
  return {
      .scheme = fmt::format("int{} to {}", mix.min_bits, widest.scheme),
      .bytes_after = std::min(widest.bytes_after, static_cast<int64_t>(mix.bits_per_weight * weights / 8)),
      .is_estimate = true};
}

}  // namespace

MethodInfo mixed_precision_method() {
  MethodInfo info;
  info.name = kMethod;
  info.summary =
      "gptq with the bits of each group of operators chosen under a size budget, by estimated loss";
  info.needs_calibration = true;
  info.default_options = [] {
    auto options = std::make_unique<Options>();
    options->get<quant::QuantScheme>().range = quant::RangeRule::kHessian;  // as gptq
    return options;
  };
  info.settle = settle_as_gptq<Options>;
  info.cost = constant_cost(
      {.flops_per_weight = 150'000, .cubic = 30, .result_bytes = 4, .moment_bytes = 3, .weight_bytes = 35});
  info.plan_weight = plan_weight;
  info.effect = scheme_effect;
  info.pass_settings = {"true_sequential", "bits_per_weight", "sensitivity", "trust"};
  info.make_passes = [](const PassOptions& options) { return chain_of(gptq_pass(kMethod, options)); };
  info.make_survey = [](const PassOptions& options, const model::Model& model) {
    return std::make_unique<WidthSurvey>(options, model.dtype());
  };
  return info;
}

}  // namespace lcomp::pipeline
