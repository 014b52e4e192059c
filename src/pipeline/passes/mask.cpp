#include "lcomp/core/error.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/linalg/cholesky.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/sparse/recover.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "lcomp/sparse/sparse_weight.h"
#include "pipeline/passes/passes.h"
#include "pipeline/passes/sparsity_plan.h"
#include "pipeline/passes/sparsity_survey.h"

namespace lcomp::pipeline {
namespace {

/// What else than the mask is computed.
struct MaskOptions {
  bool refit = false;
  double damping = 0.01;

  void visit(FieldVisitor& v) {
    v.field("refit", refit,
            "set the kept weights to the least squares of the mask on the calibration inputs");
    v.field("damping", damping, {0, 1},
            "of the refit: added to the diagonal of the second moment, relative to its mean");
  }
};

struct RelativeImportanceOptions {
  double power = 0.5;

  void visit(FieldVisitor& v) {
    v.field("power", power, {0, 4},
            "exponent of the inputs' norm beside the relative importance of a weight");
  }
};

using MaskPassOptions = PassOptionsOf<sparse::Sparsity, AllocationOptions, SparseStorageOptions, MaskOptions>;
using RelativePassOptions = PassOptionsOf<sparse::Sparsity, AllocationOptions, SparseStorageOptions,
                                          MaskOptions, RelativeImportanceOptions>;

using RecoverPassOptions =
    PassOptionsOf<sparse::Sparsity, SparseStorageOptions, MaskOptions, sparse::RecoverOptions>;

using Saliency = at::Tensor (*)(const at::Tensor& weight, const calib::InputStats& stats,
                                const PassOptions& options);

at::Tensor by_magnitude(const at::Tensor& weight, const calib::InputStats&, const PassOptions&) {
  return sparse::magnitude(weight);
}

at::Tensor by_wanda(const at::Tensor& weight, const calib::InputStats& stats, const PassOptions&) {
  return sparse::wanda(weight, stats.second_moment.diagonal());
}

at::Tensor by_relative_importance(const at::Tensor& weight, const calib::InputStats& stats,
                                  const PassOptions& options) {
  return sparse::relative_importance(weight, stats.second_moment.diagonal(),
                                     options.part<RelativeImportanceOptions>().power);
}

at::Tensor by_damage(const at::Tensor& weight, const calib::InputStats& stats, const PassOptions&) {
  return sparse::optimal_brain_damage(weight, stats.gradient_squares.at(0));
}

/// The kept weights set to the least squares of the mask.
at::Tensor refitted(const at::Tensor& weight, const at::Tensor& kept, const calib::InputStats& stats,
                    const MaskOptions& options, const PassContext& context, OperatorRow& row) {
  const auto inverse = linalg::damped_inverse(stats.second_moment, options.damping, {}, &context.pool);
  if (inverse.rung == linalg::Rung::kFailed) {
    if (context.strict) throw NumericalError("refit", "the damped second moment must have a Cholesky factor");
    row.fell_back = true;
    row.fallback = "masked only: the second moment could not be factored";
    return weight * kept;
  }
  row.damping = inverse.damping;
  return sparse::refit(weight, stats.second_moment, inverse.added, kept, &context.pool).weight.to(at::kFloat);
}

MatrixResult with_loss(WeightPtr stored, const at::Tensor& weight, const calib::InputStats& stats,
                       OperatorRow row, const PassContext& context) {
  if (stats.second_moment.defined()) {
    row.loss =
        activation_energy(weight.to(at::kDouble) - stored->dense(), stats.second_moment, &context.pool);
  }
  return {std::move(stored), std::move(row)};
}

/// Removes what counts least, and leaves the rest as it is or refits it.
MatrixResult prune(Saliency saliency, const at::Tensor& weight, const calib::InputStats& stats,
                   const PassOptions& options, PassContext& context) {
  const auto& rest = options.part<MaskOptions>();
  const at::Tensor kept =
      sparse::select_kept(saliency(weight, stats, options), options.part<sparse::Sparsity>(), &context.pool);
  OperatorRow row;
  const at::Tensor pruned = rest.refit ? refitted(weight, kept, stats, rest, context, row) : weight * kept;
  WeightPtr stored = store_sparse(pruned, options.part<SparseStorageOptions>(), context.model_dtype);
  return with_loss(std::move(stored), weight, stats, std::move(row), context);
}

/// Keeps a pattern, and the best of what it removed beside it.
MatrixResult prune_and_recover(const at::Tensor& weight, const calib::InputStats& stats,
                               const PassOptions& options, PassContext& context) {
  const auto& rest = options.part<MaskOptions>();
  const auto& recovery = options.part<sparse::RecoverOptions>();
  const at::Tensor scores = by_wanda(weight, stats, options);
  const at::Tensor kept = sparse::select_kept(scores, options.part<sparse::Sparsity>(), &context.pool);
  const at::Tensor back = sparse::recovered(scores, kept, recovery);
  OperatorRow row;
  const at::Tensor both = kept.logical_or(back);
  const at::Tensor pruned = rest.refit ? refitted(weight, both, stats, rest, context, row) : weight * both;
  const auto beside = recovery.recover_as == sparse::RecoveredAs::kRows ? sparse::SparseFormat::kCsr
                                                                        : sparse::SparseFormat::kBlockedEll;
  std::vector<WeightPtr> parts = {
      store_sparse(pruned * kept, options.part<SparseStorageOptions>(), context.model_dtype),
      std::make_shared<sparse::SparseWeight>((pruned * back).to(context.model_dtype), beside)};
  return with_loss(std::make_shared<SumWeight>(std::move(parts)), weight, stats, std::move(row), context);
}

PlannedWeight plan_recovered(const PassOptions& options, const PlannedOperator& op) {
  const auto& sparsity = options.part<sparse::Sparsity>();
  const auto& recovery = options.part<sparse::RecoverOptions>();
  const auto pattern = sparsity.n_of_m("wrp");
  if (!pattern) throw InvalidArgument("wrp", "pattern must be N:M, such as 2:4; it is " + sparsity.pattern);
  PlannedWeight planned = plan_sparse(sparsity, options.part<SparseStorageOptions>(), "wrp", op);
  const auto element = static_cast<int64_t>(c10::elementSize(op.dtype));
  const int64_t in = op.in_features, out = op.out_features;
  const bool rows = recovery.recover_as == sparse::RecoveredAs::kRows;
  if (!rows && recovery.block_edge != sparse::kStoredBlockEdge) {
    throw Unsupported("wrp", fmt::format("block_edge must be {}, that of the stored blocks; it is {}",
                                         sparse::kStoredBlockEdge, recovery.block_edge));
  }
  const int64_t back = out * sparse::expected_recovered(in, *pattern, recovery);
  planned.scheme += rows ? " + recovered csr" : " + recovered blocks";
  planned.bytes_after += 8 + (rows ? sparse::sparse_bytes(sparse::SparseFormat::kCsr, out, in, back, element)
                                   : sparse::blocked_ell_bytes(out, in, recovery.blocks_per_row, element));
  return planned;
}

struct Facts {
  const char* name;
  const char* summary;
  Saliency saliency;
  bool reads_inputs;
  bool reads_gradients;
  bool comparable = false;  ///< scores of different operators
  MethodCost cost = {};
};

/// Masks of some rows, for surveys; what a refit adds does not count.
OperatorPruner row_masks(Saliency saliency, ThreadPool& pool) {
  return [saliency, &pool](const at::Tensor& weight, const calib::InputStats& own,
                           const PassOptions& settings) -> RowPruner {
    return [weight, scores = saliency(weight, own, settings), &pool](const at::Tensor& rows,
                                                                     const sparse::Sparsity& sparsity) {
      return weight.index_select(0, rows) *
             sparse::select_kept(scores.index_select(0, rows), sparsity, &pool);
    };
  };
}

PrunedBy pruned_by(const Facts& facts) {
  PrunedBy by;
  by.method = facts.name;
  by.needs = {.second_moment = facts.reads_inputs, .gradient_squares = facts.reads_gradients};
  by.start_group = [saliency = facts.saliency](const calib::InputStats&, PassContext& context) {
    return row_masks(saliency, context.pool);
  };
  by.scores = facts.saliency;
  return by;
}

template <class Options>
MethodInfo mask_method(const Facts& facts) {
  MethodInfo info;
  info.name = facts.name;
  info.summary = facts.summary;
  info.needs_calibration = facts.reads_inputs || facts.reads_gradients;
  info.default_options = [] { return std::make_unique<Options>(); };
  info.cost = constant_cost(facts.cost);
  info.plan_weight = [facts](const PassOptions& options, const PlannedOperator& op) {
    return plan_allocated(options, facts.name, facts.comparable, op);
  };
  add_allocation(info, pruned_by(facts));
  info.make_passes = [facts](const PassOptions& options) {
    const bool moment = facts.reads_inputs || options.part<MaskOptions>().refit;
    const calib::Needs needs{.second_moment = moment, .gradient_squares = facts.reads_gradients};
    return chain_of(
        linear_pass(facts.name, needs, moment,
                    [saliency = facts.saliency](const at::Tensor& weight, const calib::InputStats& stats,
                                                const PassOptions& settings, PassContext& context) {
                      return prune(saliency, weight, stats, settings, context);
                    }));
  };
  info.effect = [reads = facts.reads_gradients](const PassOptions&) {
    return Effect{.quantizes = false, .reads_gradients = reads, .prunes = true};
  };
  return info;
}

}  // namespace

MethodInfo magnitude_method() {
  return mask_method<MaskPassOptions>(
      {"magnitude",
       "removes the smallest weights",
       by_magnitude,
       false,
       false,
       true,
       {.flops_per_weight = 14'000, .cubic = 0, .result_bytes = 7.5, .moment_bytes = 0, .weight_bytes = 0}});
}

MethodInfo wanda_method() {
  return mask_method<MaskPassOptions>(
      {"wanda",
       "removes the weights with the least |w| |x| (Sun et al. 2024)",
       by_wanda,
       true,
       false,
       false,
       {.flops_per_weight = 19'000, .cubic = 1, .result_bytes = 3.4, .moment_bytes = 0, .weight_bytes = 33}});
}

MethodInfo ria_method() {
  return mask_method<RelativePassOptions>(
      {"ria",
       "removes the weights that count least in their row and column (Zhang et al. 2024)",
       by_relative_importance,
       true,
       false,
       false,
       {.flops_per_weight = 19'000, .cubic = 1, .result_bytes = 4.1, .moment_bytes = 0, .weight_bytes = 30}});
}

MethodInfo obd_method() {
  return mask_method<MaskPassOptions>(
      {"obd",
       "removes the weights with the least w^2 F, F the Fisher information (LeCun et al. 1989)",
       by_damage,
       false,
       true,
       true,
       {.flops_per_weight = 14'000, .cubic = 0, .result_bytes = 9.2, .moment_bytes = 0, .weight_bytes = 33}});
}

MethodInfo wrp_method() {
  MethodInfo info;
  info.name = "wrp";
  info.summary = "keeps N of M weights, and a few of those removed beside them (Tan et al. 2024)";
  info.needs_calibration = true;
  info.default_options = [] {
    auto options = std::make_unique<RecoverPassOptions>();
    options->get<sparse::Sparsity>().pattern = "2:4";
    return options;
  };
  info.plan_weight = plan_recovered;
  info.cost = constant_cost(
      {.flops_per_weight = 23'000, .cubic = 1, .result_bytes = 6.7, .moment_bytes = 0, .weight_bytes = 37});
  info.make_passes = [](const PassOptions&) {
    return chain_of(linear_pass("wrp", {.second_moment = true}, true, prune_and_recover));
  };
  info.effect = [](const PassOptions&) { return Effect{.quantizes = false, .prunes = true}; };
  return info;
}

}  // namespace lcomp::pipeline
