#include <ATen/ATen.h>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/lowrank/head_tucker.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/pass.h"
#include "pipeline/passes/passes.h"

namespace lcomp::pipeline {
namespace {

using lowrank::TensorTrainWeight;
using model::OperatorRole;

constexpr const char* kTucker = "tucker_heads";

struct TuckerOptions {
  double hidden_share = 0.6;
  double head_share = 0.9;

  void visit(FieldVisitor& v) {
    v.field("hidden_share", hidden_share, {0, 1},
            "rank of the basis of the hidden states, as a share of their width");
    v.field("head_share", head_share, {0, 1}, "rank of the basis of the heads, as a share of their width");
  }

  static int64_t rank_of(double share, int64_t width) {
    return std::clamp<int64_t>(std::llround(share * static_cast<double>(width)), 1, width);
  }
};

using TuckerPassOptions = PassOptionsOf<TuckerOptions>;

/// 1 (x) U: the same basis in every head. basis: [head_dim, R_2], or its transpose.
WeightPtr in_every_head(const at::Tensor& basis, int64_t heads, at::ScalarType type) {
  std::vector<at::Tensor> cores = {at::eye(heads, at::kFloat).to(type).reshape({1, heads, heads, 1}),
                                   basis.to(type).contiguous().reshape({1, basis.size(0), basis.size(1), 1})};
  return std::make_shared<TensorTrainWeight>(heads * basis.size(0), heads * basis.size(1), std::move(cores));
}

WeightPtr stored_matrix(const at::Tensor& matrix, at::ScalarType type) {
  return std::make_shared<DenseWeight>(matrix.to(type).contiguous());
}

/// The factors of q: what the other operators of the block take their bases from.
const ProductWeight* decomposed(const model::LinearOp& op) {
  const auto* product = dynamic_cast<const ProductWeight*>(op.weight.get());
  const bool fits = product != nullptr && product->factors().size() == 3 &&
                    dynamic_cast<const TensorTrainWeight*>(product->factors()[0].get()) != nullptr;
  return fits ? product : nullptr;
}

class TuckerPass final : public Pass {
 public:
  std::string name() const override { return kTucker; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  bool sequential() const override { return true; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const std::vector<size_t> members = block.groups()[group].operators;
    const OperatorRole first = block.ops()[members[0]].info.role;
    if (first == OperatorRole::kQuery) decompose_inputs(block, members, stats, context);
    if (first == OperatorRole::kOutput) decompose_output(block, members[0], stats, context);
  }

 private:
  static int64_t head_dim_of(const model::Block& block) {
    for (const model::LinearOp& op : block.ops()) {
      if (op.info.role == OperatorRole::kQuery) return op.info.out_features / block.widths().heads;
    }
    throw InternalError(kTucker, "a block must have queries");
  }

  /// q, k and v: the heads' basis, cores, and the basis of the hidden states that they share.
  static void decompose_inputs(model::Block& block, const std::vector<size_t>& members,
                               const calib::InputStats& stats, PassContext& context) {
    const PassOptions* settings = context.settings(block.ops()[members[0]].info.name);
    if (settings == nullptr) return;
    const auto& options = settings->part<TuckerOptions>();
    const Stopwatch watch;
    const int64_t head_dim = head_dim_of(block);
    std::vector<at::Tensor> slices;
    for (const model::LinearOp& op : block.ops()) {
      if (context.settings(op.info.name) == nullptr) continue;
      const bool output = op.info.role == OperatorRole::kOutput;
      const bool input = op.info.role == OperatorRole::kQuery || op.info.role == OperatorRole::kKey ||
                         op.info.role == OperatorRole::kValue;
      if (input) slices.push_back(op.weight->dense());
      if (output) slices.push_back(op.weight->dense().t());
    }
    const int64_t hidden = block.ops()[members[0]].info.in_features;
    const lowrank::HeadBases bases =
        lowrank::head_bases(slices, head_dim, TuckerOptions::rank_of(options.hidden_share, hidden),
                            TuckerOptions::rank_of(options.head_share, head_dim));
    const lowrank::InputMetric metric = lowrank::InputMetric::moment(stats.second_moment);
    const WeightPtr basis = stored_matrix(bases.hidden.t(), context.model_dtype);
    std::string owner;
    double seconds = watch.seconds();
    for (const size_t op : members) {
      const model::LinearOp& before = block.ops()[op];
      if (context.settings(before.info.name) == nullptr) continue;
      const Stopwatch one;
      const at::Tensor weight = before.weight->dense().to(at::kDouble);
      // The cores, solved by what they do to the outputs.
      lowrank::Factors cores{
          lowrank::heads_projected(weight, bases.head).mm(bases.hidden), basis->dense().to(at::kDouble), {}};
      lowrank::update_left(cores, lowrank::heads_projected(weight, bases.head), metric);
      WeightPtr shared = basis;
      if (!owner.empty()) shared = std::make_shared<SharedWeight>(owner, basis);
      if (owner.empty()) owner = ProductWeight::factor_name(before.info.name, 2);
      MatrixResult result;
      result.weight = std::make_shared<ProductWeight>(std::vector<WeightPtr>{
          in_every_head(bases.head, before.info.out_features / head_dim, context.model_dtype),
          stored_matrix(cores.left, context.model_dtype), shared});
      result.row.loss = metric.loss(weight - result.weight->dense());
      replace_and_report(block, op, std::move(result), kTucker, seconds + one.seconds(), stats, context);
      seconds = 0;
    }
  }

  /// o, with the bases of q.
  static void decompose_output(model::Block& block, size_t op, const calib::InputStats& stats,
                               PassContext& context) {
    const model::LinearOp& before = block.ops()[op];
    if (context.settings(before.info.name) == nullptr) return;
    const model::LinearOp* query = nullptr;
    for (const model::LinearOp& other : block.ops()) {
      if (other.info.role == OperatorRole::kQuery) query = &other;
    }
    const ProductWeight* of_query = query == nullptr ? nullptr : decomposed(*query);
    if (of_query == nullptr) {
      throw InvalidArgument(kTucker, fmt::format("'{}' takes its bases from the queries, which must be given "
                                                 "to the pass as well",
                                                 before.info.name));
    }
    const Stopwatch watch;
    const auto& every_head = dynamic_cast<const TensorTrainWeight&>(*of_query->factors()[0]);
    const at::Tensor head = every_head.cores()[1].to(at::kDouble).squeeze(3).squeeze(0);
    const at::Tensor hidden = of_query->factors()[2]->dense().to(at::kDouble).t();
    const at::Tensor weight = before.weight->dense().to(at::kDouble);
    // U_1^T W, whose columns by U_2 are fitted to what they do to the outputs: (A B) with B = 1 (x) U_2^T.
    const WeightPtr right =
        in_every_head(head.t(), before.info.in_features / head.size(0), context.model_dtype);
    const lowrank::InputMetric metric = lowrank::InputMetric::moment(stats.second_moment);
    const at::Tensor right_matrix = right->dense().to(at::kDouble);
    lowrank::Factors cores{hidden.t().mm(weight).mm(right_matrix.t()), right_matrix, {}};
    lowrank::update_left(cores, hidden.t().mm(weight), metric);
    MatrixResult result;
    result.weight = std::make_shared<ProductWeight>(std::vector<WeightPtr>{
        stored_matrix(hidden, context.model_dtype), stored_matrix(cores.left, context.model_dtype), right});
    result.row.loss = metric.loss(weight - result.weight->dense());
    replace_and_report(block, op, std::move(result), kTucker, watch.seconds(), stats, context);
  }
};

}  // namespace

MethodInfo tucker_heads_method() {
  MethodInfo info;
  info.name = kTucker;
  info.summary = "attention in bases that all heads share, with a core for each head (Gu et al. 2025)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<TuckerPassOptions>(); };
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    if (!op.attends)
      throw InvalidArgument(kTucker,
                            "targets must be operators of the attention (q, k, v, o); others are given");
    // Heads are not known here: cores, and a basis for each operator, of which some are shared.
    const auto& tucker = options.part<TuckerOptions>();
    const auto element = static_cast<int64_t>(c10::elementSize(op.dtype));
    const auto size = static_cast<double>(op.out_features * op.in_features);
    const double hidden =
        tucker.hidden_share * static_cast<double>(std::max(op.out_features, op.in_features));
    return PlannedWeight{
        .scheme = "about: bases that all heads share",
        .bytes_after = element * static_cast<int64_t>(size * tucker.hidden_share * tucker.head_share +
                                                      hidden * static_cast<double>(std::max(
                                                                   op.out_features, op.in_features)))};
  };
  info.effect = [](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .keeps_zeros = false};
  };
  info.pass_settings = {"hidden_share", "head_share"};
  info.make_passes = [](const PassOptions&) { return chain_of(std::make_unique<TuckerPass>()); };
  return info;
}

}  // namespace lcomp::pipeline
