#include "lcomp/lowrank/layer_tucker.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>

#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/survey.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/target_pass.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kLayerTucker = "tucker_layers";

struct LayerTuckerOptions {
  double removed = 0.2;

  void visit(FieldVisitor& v) {
    v.field("removed", removed, {0, 1}, "share of the numbers of the operators that is removed");
  }
};

/// What the survey decides for an operator; no setting of a job.
struct LayerTuckerBases {
  WeightPtr left;     ///< U [out, out_rank]; null: the operator stays dense
  WeightPtr right;    ///< V^T [in_rank, in]
  std::string owner;  ///< the operator with which they are stored

  void visit(FieldVisitor&) {}

  lowrank::LayerBases matrices() const {
    return {left->dense().to(at::kDouble), right->dense().to(at::kDouble).t()};
  }
};

using LayerTuckerPassOptions = PassOptionsOf<LayerTuckerOptions, GptqOrderOptions, LayerTuckerBases>;

/// Operators of one kind and shape, in the order of the layers.
struct Stack {
  int64_t out = 0;
  int64_t in = 0;
  std::vector<size_t> operators;  ///< in the plan's list
};

/// "model.layers.3.mlp.up_proj" -> "mlp.up_proj of 1536x576".
std::string stack_name(const std::string& block_prefix, const std::string& op, int64_t out, int64_t in) {
  return fmt::format("{} of {}x{}", op.substr(block_prefix.size()), out, in);
}

class LayerTuckerSurvey final : public Survey {
 public:
  explicit LayerTuckerSurvey(const model::Model& model) : model_(model) {}

  calib::Needs needs() const override { return {.second_moment = true}; }

  void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const override {
    stacks_of(operators, settings);
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    const lowrank::InputMetric metric = lowrank::InputMetric::moment(stats.second_moment);
    for (const size_t member : block.groups()[group].operators) {
      const model::LinearOp& op = block.ops()[member];
      if (context.settings(op.info.name) == nullptr) continue;
      const std::string stack = stack_name(model_.architecture().block_prefix(block.index()), op.info.name,
                                           op.info.out_features, op.info.in_features);
      sums_[stack].add(op.weight->dense(), metric, &context.pool);
    }
    return {};
  }

  io::NamedTensors sums() const override {
    io::NamedTensors tensors;
    for (const auto& [stack, sum] : sums_) {
      tensors.emplace_back(stack + "/outputs", sum.outputs);
      tensors.emplace_back(stack + "/rows", sum.rows);
      tensors.emplace_back(stack + "/moment", sum.moment);
    }
    return tensors;
  }

  void set_sums(const io::NamedTensors& tensors) override {
    sums_.clear();
    for (const auto& [name, tensor] : tensors) {
      const size_t slash = name.rfind('/');
      lowrank::LayerSums& sum = sums_[name.substr(0, slash)];
      const std::string part = name.substr(slash + 1);
      (part == "outputs" ? sum.outputs : part == "rows" ? sum.rows : sum.moment) = tensor;
    }
  }

  uint64_t planned_sums(const std::vector<OperatorPlan>& operators,
                        const OperatorSettings& settings) const override {
    uint64_t bytes = 0;
    for (const auto& [name, stack] : stacks_of(operators, settings))
      bytes += static_cast<uint64_t>(8 * (stack.out * stack.out + 2 * stack.in * stack.in));
    return bytes;
  }

  OperatorSettings decide(const SurveyNumbers&, const std::vector<OperatorPlan>& operators,
                          const OperatorSettings& settings, std::string& decision) const override {
    OperatorSettings decided = settings;
    for (const auto& [name, stack] : stacks_of(operators, settings)) {
      const auto& options = settings[stack.operators.front()]->part<LayerTuckerOptions>();
      const double share = lowrank::layer_rank_share(
          stack.out, stack.in, static_cast<int64_t>(stack.operators.size()), 1 - options.removed);
      if (!decision.empty()) decision += ", ";
      decision += name.substr(0, name.find(' '));
      if (options.removed == 0 || share >= 1) {
        decision += " dense";
        continue;
      }
      const auto rank_of = [&](int64_t width) {
        return std::max<int64_t>(1, static_cast<int64_t>(share * static_cast<double>(width)));
      };
      const lowrank::LayerBases bases =
          lowrank::layer_bases(sums_.at(name), rank_of(stack.out), rank_of(stack.in));
      decision += fmt::format(" {}x{}", rank_of(stack.out), rank_of(stack.in));
      LayerTuckerBases stored{stored_matrix(bases.left), stored_matrix(bases.right.t()),
                              operators[stack.operators.front()].name};
      for (const size_t op : stack.operators) {
        auto copy = settings[op]->clone();
        copy->part<LayerTuckerBases>() = stored;
        decided[op] = std::move(copy);
      }
    }
    decision = "cores of " + decision;
    return decided;
  }

 private:
  WeightPtr stored_matrix(const at::Tensor& matrix) const {
    return std::make_shared<DenseWeight>(matrix.to(model_.dtype()).contiguous());
  }

  /// Throws InvalidArgument where operators of a stack differ in their share.
  std::map<std::string, Stack> stacks_of(const std::vector<OperatorPlan>& operators,
                                         const OperatorSettings& settings) const {
    std::map<std::string, Stack> stacks;
    for (size_t i = 0; i < operators.size(); ++i) {
      if (!settings[i]) continue;
      const OperatorPlan& op = operators[i];
      Stack& stack = stacks[stack_name(model_.architecture().block_prefix(op.block), op.name, op.out_features,
                                       op.in_features)];
      stack.out = op.out_features;
      stack.in = op.in_features;
      stack.operators.push_back(i);
      const auto removed = [&](size_t at) { return settings[at]->part<LayerTuckerOptions>().removed; };
      if (removed(i) == removed(stack.operators.front())) continue;
      throw InvalidArgument(kLayerTucker,
                            fmt::format("removed must be the same for '{}' in all layers, which share their "
                                        "bases; it is {} and {}",
                                        op.name, removed(stack.operators.front()), removed(i)));
    }
    return stacks;
  }

  const model::Model& model_;
  std::map<std::string, lowrank::LayerSums> sums_;  // by stack_name
};

class LayerTuckerPass final : public TargetPass {
 public:
  explicit LayerTuckerPass(const PassOptions& entry)
      : TargetPass(kLayerTucker, {.second_moment = true}, &entry.part<GptqOrderOptions>()) {}

 protected:
  MatrixResult solve(const model::LinearOp& op, const Target& target, at::ScalarType model_dtype,
                     ThreadPool* pool) const override {
    const auto& bases = target.settings->part<LayerTuckerBases>();
    MatrixResult result;
    if (!bases.left) {
      result.weight = std::make_shared<DenseWeight>(op.weight->dense().to(model_dtype));
      return result;
    }
    const at::Tensor core = lowrank::layer_core(target.weight, bases.matrices(), *target.moment, pool);
    result.weight = std::make_shared<ProductWeight>(
        std::vector<WeightPtr>{basis(bases.left, bases.owner, op.info.name, 0),
                               std::make_shared<DenseWeight>(core.to(model_dtype).contiguous()),
                               basis(bases.right, bases.owner, op.info.name, 2)});
    result.row.loss = target.moment->loss(target.weight - result.weight->dense(), pool);
    return result;
  }

 private:
  /// A factor of `op` that is stored with its owner.
  static WeightPtr basis(const WeightPtr& weight, const std::string& owner, const std::string& op,
                         size_t factor) {
    if (op == owner) return weight;
    return std::make_shared<SharedWeight>(ProductWeight::factor_name(owner, factor), weight,
                                          SharedBy::kModel);
  }
};

}  // namespace

MethodInfo tucker_layers_method() {
  MethodInfo info;
  info.name = kLayerTucker;
  info.summary = "operators of all layers in bases that the layers share, with a core for each";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<LayerTuckerPassOptions>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 40'000, .cubic = 3, .result_bytes = 13, .moment_bytes = 35, .weight_bytes = 46});
  info.settle = [](PassOptions& options, const auto& given, bool is_last) {
    settle_mismatch(options.part<GptqOrderOptions>(), given, is_last);
  };
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    const auto size = static_cast<double>(op.out_features * op.in_features) *
                      static_cast<double>(c10::elementSize(op.dtype));
    return PlannedWeight{.scheme = "about: a core in bases of all layers",
                         .bytes_after = std::llround(size * (1 - options.part<LayerTuckerOptions>().removed)),
                         .is_estimate = true};
  };
  info.effect = [](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .reads_all_weights = true, .keeps_zeros = false};
  };
  info.pass_settings = {"true_sequential"};
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<LayerTuckerPass>(options));
  };
  info.make_survey = [](const PassOptions&, const model::Model& model) {
    return std::make_unique<LayerTuckerSurvey>(model);
  };
  return info;
}

}  // namespace lcomp::pipeline
