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
#include "pipeline/passes/target_pass.h"

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
            "rank of the basis of the hidden states, as a share of their width; at least 1");
    v.field("head_share", head_share, {0, 1},
            "rank of the basis of the heads, as a share of their width; at least 1");
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

bool reads_hidden(OperatorRole role) {
  return role == OperatorRole::kQuery || role == OperatorRole::kKey || role == OperatorRole::kValue;
}

/// The bases by which q, k and v were decomposed; none where they were not.
std::optional<lowrank::HeadBases> bases_in(const model::Block& block, int64_t head_dim) {
  for (const model::LinearOp& op : block.ops()) {
    const auto* product = dynamic_cast<const ProductWeight*>(op.weight.get());
    if (!reads_hidden(op.info.role) || product == nullptr || product->factors().size() != 3) continue;
    const auto* heads = dynamic_cast<const TensorTrainWeight*>(product->factors()[0].get());
    if (heads == nullptr || heads->cores().size() != 2 || heads->cores()[1].size(1) != head_dim) continue;
    return lowrank::HeadBases{product->factors()[2]->dense().to(at::kDouble).t(),
                              heads->cores()[1].to(at::kDouble).squeeze(3).squeeze(0)};
  }
  return {};
}

class TuckerPass final : public Pass {
 public:
  std::string name() const override { return kTucker; }
  calib::Needs needs() const override { return {.second_moment = true}; }
  bool sequential() const override { return true; }

  void compress(model::Block& block, size_t group, const calib::InputStats& stats,
                PassContext& context) const override {
    const std::vector<size_t> members = block.groups()[group].operators;
    std::vector<size_t> wanted;
    std::copy_if(members.begin(), members.end(), std::back_inserter(wanted),
                 [&](size_t op) { return context.settings(block.ops()[op].info.name) != nullptr; });
    if (wanted.empty()) return;
    const OperatorRole first = block.ops()[wanted[0]].info.role;
    if (reads_hidden(first)) decompose_inputs(block, wanted, stats, context);
    if (first == OperatorRole::kOutput) decompose_output(block, wanted[0], stats, context);
  }

 private:
  static int64_t head_dim_of(const model::Block& block) {
    for (const model::LinearOp& op : block.ops()) {
      if (op.info.role == OperatorRole::kQuery) return op.info.out_features / block.widths().heads;
    }
    throw InternalError(kTucker, "a block must have queries");
  }

  /// Of all operators of the block that the pass is given.
  static lowrank::HeadBases bases_of(const model::Block& block, const TuckerOptions& options,
                                     const PassContext& context) {
    const int64_t head_dim = head_dim_of(block);
    std::vector<at::Tensor> slices;
    for (const model::LinearOp& op : block.ops()) {
      if (context.settings(op.info.name) == nullptr) continue;
      if (reads_hidden(op.info.role)) slices.push_back(op.weight->dense());
      if (op.info.role == OperatorRole::kOutput) slices.push_back(op.weight->dense().t());
    }
    const int64_t hidden = slices.front().size(1);
    return lowrank::head_bases(slices, head_dim, TuckerOptions::rank_of(options.hidden_share, hidden),
                               TuckerOptions::rank_of(options.head_share, head_dim));
  }

  /// q, k and v: the heads' basis, cores, and the basis of the hidden states that they share.
  static void decompose_inputs(model::Block& block, const std::vector<size_t>& members,
                               const calib::InputStats& stats, PassContext& context) {
    const PassOptions& settings = *context.settings(block.ops()[members[0]].info.name);
    const Stopwatch watch;
    const int64_t head_dim = head_dim_of(block);
    const lowrank::HeadBases bases = bases_of(block, settings.part<TuckerOptions>(), context);
    const lowrank::InputMetric metric = lowrank::InputMetric::moment(stats.second_moment);
    const WeightPtr basis = stored_matrix(bases.hidden.t(), context.model_dtype);
    std::string owner;
    int64_t size = 0, before_size = 0;
    std::vector<MatrixResult> results;
    for (const size_t op : members) {
      const model::LinearOp& before = block.ops()[op];
      const at::Tensor weight = before.weight->dense().to(at::kDouble);
      // The cores, solved by what they do to the outputs.
      lowrank::Factors cores{
          lowrank::heads_projected(weight, bases.head).mm(bases.hidden), basis->dense().to(at::kDouble), {}};
      lowrank::update_left(cores, lowrank::heads_projected(weight, bases.head), metric);
      WeightPtr shared = basis;
      if (!owner.empty()) shared = std::make_shared<SharedWeight>(owner, basis);
      if (owner.empty()) owner = ProductWeight::factor_name(before.info.name, 2);
      MatrixResult& result = results.emplace_back();
      result.weight = std::make_shared<ProductWeight>(std::vector<WeightPtr>{
          in_every_head(bases.head, before.info.out_features / head_dim, context.model_dtype),
          stored_matrix(cores.left, context.model_dtype), shared});
      result.row.loss = metric.loss(weight - result.weight->dense());
      report_factoring(metric, result.row);
      size += result.weight->parameters();
      before_size += weight.numel();
    }
    const double seconds = watch.seconds() / static_cast<double>(members.size());
    for (size_t i = 0; i < members.size(); ++i) {
      if (size >= before_size) results[i] = dense_result(block.ops()[members[i]], context);
      replace_and_report(block, members[i], std::move(results[i]), kTucker, seconds, stats, context);
    }
  }

  /// o, with the bases of q, k and v where there are some.
  static void decompose_output(model::Block& block, size_t op, const calib::InputStats& stats,
                               PassContext& context) {
    const model::LinearOp& before = block.ops()[op];
    const Stopwatch watch;
    const auto found = bases_in(block, head_dim_of(block));
    const auto& options = context.settings(before.info.name)->part<TuckerOptions>();
    const auto [hidden, head, error] = found ? *found : bases_of(block, options, context);
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
    report_factoring(metric, result.row);
    if (result.weight->parameters() >= weight.numel()) result = dense_result(before, context);
    replace_and_report(block, op, std::move(result), kTucker, watch.seconds(), stats, context);
  }

  /// Where bases and cores are no smaller than the matrices.
  static MatrixResult dense_result(const model::LinearOp& op, const PassContext& context) {
    MatrixResult result;
    result.weight = stored_matrix(op.weight->dense(), context.model_dtype);
    result.row.loss = 0;
    return result;
  }
};

}  // namespace

MethodInfo tucker_heads_method() {
  MethodInfo info;
  info.name = kTucker;
  info.summary = "attention in bases that all heads share, with a core for each head (Gu et al. 2025)";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<TuckerPassOptions>(); };
  info.cost = constant_cost(
      {.flops_per_weight = 40'000, .cubic = 3, .result_bytes = 5, .moment_bytes = 24, .weight_bytes = 40});
  info.plan_weight = [](const PassOptions& options, const PlannedOperator& op) {
    if (!op.attends)
      throw InvalidArgument(
          kTucker,
          fmt::format("targets must be operators of the attention (q, k, v, o); '{}' is none", op.name));
    // Heads are not known here: cores, and a basis for each operator, of which some are shared.
    const auto& tucker = options.part<TuckerOptions>();
    const auto element = static_cast<int64_t>(c10::elementSize(op.dtype));
    const auto size = static_cast<double>(op.out_features * op.in_features);
    const double hidden =
        tucker.hidden_share * static_cast<double>(std::max(op.out_features, op.in_features));
    return PlannedWeight{
        .scheme = "about: bases that all heads share",
        .bytes_after = element * static_cast<int64_t>(
                                     size * tucker.hidden_share * tucker.head_share +
                                     hidden * static_cast<double>(std::max(op.out_features, op.in_features))),
        .is_estimate = true};
  };
  info.effect = [](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .keeps_zeros = false};
  };
  info.pass_settings = {"hidden_share", "head_share"};
  info.make_passes = [](const PassOptions&) { return chain_of(std::make_unique<TuckerPass>()); };
  return info;
}

}  // namespace lcomp::pipeline
