#include "lcomp/lowrank/tensor_train.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include "lcomp/core/error.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/target_pass.h"

namespace lcomp::pipeline {
namespace {

constexpr const char* kTensorTrain = "tensor_train";
/// Relative to the mean. What is fitted badly for its weak input is divided by this when it is run, and the
/// inverse is stored in the model's type.
constexpr double kLeastStrength = 0.1;

/// What inputs count for, float64 [in], positive with mean about 1.
at::Tensor strengths(const at::Tensor& second_moment, double alpha) {
  const at::Tensor root_mean_square = second_moment.diagonal().to(at::kDouble).clamp_min(0).sqrt();
  const at::Tensor strength = root_mean_square.pow(alpha);
  const double mean = strength.mean().item<double>();
  if (!(mean > 0)) return at::ones_like(strength);
  return (strength / mean).clamp_min(kLeastStrength);
}

struct TensorTrainOptions {
  double removed = 0.2;
  int64_t rank = 0;
  int64_t cores = 2;
  double alpha = 0.5;

  void visit(FieldVisitor& v) {
    v.field("removed", removed, {0, 1}, "share of the numbers of the operators that is removed");
    v.field("rank", rank, {0}, "largest rank between the cores; 0: by the share removed, at least 1");
    v.field("cores", cores, {2, 8}, "cores of a train; two are a sum of Kronecker products");
    v.field("alpha", alpha, {0, 2},
            "inputs count as the root of their mean square to this power, which is stored beside the cores; "
            "0: all count alike, and nothing is stored");
  }
  std::vector<IdleSetting> idle() const {
    if (rank == 0) return {};
    return {{"removed", "with rank 0"}};
  }
};

using TensorTrainPassOptions = PassOptionsOf<TensorTrainOptions>;

std::vector<int64_t> train_ranks(const lowrank::MatrixShapes& shapes, int64_t rank) {
  std::vector<int64_t> ranks(shapes.rows.size() + 1, 1);
  for (size_t cut = 1; cut < shapes.rows.size(); ++cut) {
    int64_t left = 1, right = 1;  // what a cut can have
    for (size_t k = 0; k < shapes.rows.size(); ++k)
      (k < cut ? left : right) *= shapes.rows[k] * shapes.columns[k];
    ranks[cut] = std::min({rank, left, right});
  }
  return ranks;
}

int64_t train_size(const lowrank::MatrixShapes& shapes, int64_t rank) {
  return lowrank::train_cost(shapes.rows, shapes.columns, train_ranks(shapes, rank)).parameters;
}

/// The largest rank of the cuts; 0: the operator stays dense.
int64_t train_rank_of(const TensorTrainOptions& options, int64_t out, int64_t in) {
  const lowrank::MatrixShapes shapes = lowrank::paired_shapes(out, in, options.cores);
  const int64_t all = out * in, extra = options.alpha > 0 ? in : 0;
  const auto smaller = [&](int64_t rank) { return train_size(shapes, rank) + extra < all; };
  if (options.rank > 0) return smaller(options.rank) ? options.rank : 0;
  if (options.removed == 0) return 0;
  const auto size = static_cast<int64_t>((1 - options.removed) * static_cast<double>(all) + 1e-6) - extra;
  int64_t low = 0, high = all;
  while (low < high) {
    const int64_t middle = low + (high - low + 1) / 2;
    if (train_size(shapes, middle) <= size) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (low == 0 && smaller(1)) return 1;  // the least there is
  return low;
}

class TensorTrainPass final : public TargetPass {
 public:
  explicit TensorTrainPass(const PassOptions& entry)
      : TargetPass(kTensorTrain, {.second_moment = entry.part<TensorTrainOptions>().alpha > 0}, nullptr) {}

  bool sequential() const override { return needs_.any(); }

 protected:
  MatrixResult solve(const model::LinearOp& op, const Target& target, at::ScalarType model_dtype,
                     ThreadPool* pool) const override {
    const auto& options = target.settings->part<TensorTrainOptions>();
    const int64_t out = op.info.out_features, in = op.info.in_features;
    const int64_t rank = train_rank_of(options, out, in);
    MatrixResult result;
    if (rank == 0) {
      result.weight = std::make_shared<DenseWeight>(op.weight->dense().to(model_dtype));
      return result;
    }
    at::Tensor scale;
    if (options.alpha > 0) scale = strengths(target.own.second_moment, options.alpha);
    const lowrank::MatrixShapes shapes = lowrank::paired_shapes(out, in, options.cores);
    const at::Tensor scaled = scale.defined() ? target.weight * scale : target.weight;
    const auto train = lowrank::tt_matrix(scaled, shapes.rows, shapes.columns,
                                          {.ranks = {rank}, .solver = linalg::SvdSolver::kGram});
    const at::Tensor stored_scale = scale.defined() ? scale.reciprocal().to(model_dtype) : at::Tensor();
    result.weight = std::make_shared<lowrank::TensorTrainWeight>(train, model_dtype, stored_scale);
    if (target.moment != nullptr)
      result.row.loss = target.moment->loss(target.weight - result.weight->dense(), pool);
    return result;
  }
};

PlannedWeight plan_tensor_train(const PassOptions& settings, const PlannedOperator& op) {
  const auto& options = settings.part<TensorTrainOptions>();
  const auto element = static_cast<int64_t>(c10::elementSize(op.dtype));
  const int64_t rank = train_rank_of(options, op.out_features, op.in_features);
  if (rank == 0) {
    return {.scheme = "dense: a train would not be smaller",
            .bytes_after = op.out_features * op.in_features * element};
  }
  const lowrank::MatrixShapes shapes = lowrank::paired_shapes(op.out_features, op.in_features, options.cores);
  const int64_t numbers = train_size(shapes, rank) + (options.alpha > 0 ? op.in_features : 0);
  const int64_t shape_bytes = 8 * (2 + 2 * options.cores);
  return {.scheme = fmt::format("tensor train of {} x {}, rank {}", fmt::join(shapes.rows, "."),
                                fmt::join(shapes.columns, "."), rank),
          .bytes_after = numbers * element + shape_bytes};
}

}  // namespace

MethodInfo tensor_train_method() {
  MethodInfo info;
  info.name = kTensorTrain;
  info.summary = "tensor trains over digits of rows and columns; with two cores, sums of Kronecker products";
  info.needs_calibration = true;
  info.default_options = [] { return std::make_unique<TensorTrainPassOptions>(); };
  info.plan_weight = plan_tensor_train;
  info.cost = constant_cost(
      {.flops_per_weight = 40'000, .cubic = 3, .result_bytes = 12, .moment_bytes = 11, .weight_bytes = 40});
  info.effect = [](const PassOptions&) {
    return Effect{.quantizes = false, .factors = true, .keeps_zeros = false};
  };
  info.pass_settings = {"alpha"};
  info.make_passes = [](const PassOptions& options) {
    return chain_of(std::make_unique<TensorTrainPass>(options));
  };
  return info;
}

}  // namespace lcomp::pipeline
