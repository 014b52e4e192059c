#include "pipeline/passes/rank_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "lcomp/core/allocation.h"
#include "lcomp/core/error.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/quant/rtn.h"
#include "lcomp/quant/sensitivity.h"
#include "pipeline/passes/scheme_plan.h"
#include "pipeline/passes/target_pass.h"

namespace lcomp::pipeline {
namespace {

using lowrank::Form;

/// Shares removed that losses are estimated at lie at most this far apart.
constexpr double kShareStep = 0.05;
/// Estimates are of single operators and of small changes: by default none loses more than this beyond what
/// all would lose evenly, nor more than half of what that leaves (docs/lowrank.md).
constexpr double kMostBeyond = 0.25;
/// Stored with each pivot row: its position.
constexpr int64_t kPivotBytes = 4;
/// Stored with each product: the number of its factors.
constexpr int64_t kCountBytes = 8;

const RankOptions& ranks_of(const PassOptions& options) {
  return options.part<RankOptions>();
}

/// An operator that the pass factors, and its choices.
struct Factored {
  size_t index = 0;  ///< in the plan's operators
  const OperatorPlan* op = nullptr;
  const PassOptions* settings = nullptr;

  const RankOptions& ranks() const { return ranks_of(*settings); }
  int64_t count() const { return op->out_features * op->in_features; }
  int64_t rank_at(int64_t size) const {
    return lowrank::largest_rank(ranks().form, op->out_features, op->in_features, size,
                                 ranks().rank_multiple);
  }
  /// What is removed at a rank; nothing where factors are no smaller.
  int64_t removed_at(int64_t rank) const {
    if (rank == 0) return 0;
    const int64_t size = lowrank::factored_size(ranks().form, op->out_features, op->in_features, rank);
    return std::max<int64_t>(0, count() - size);
  }
  /// What the same share of all would remove of it: nothing where no rank is smaller.
  double removed_evenly() const {
    if (ranks().rank_of(op->out_features, op->in_features) == 0) return 0;
    return ranks().removed * static_cast<double>(count());
  }
  /// The largest rank that removes at least `amount`, or what max_removed and the least rank allow; 0: the
  /// full matrix.
  int64_t rank_removing(double amount) const {
    if (amount < 0.5) return 0;
    const auto most = static_cast<int64_t>(ranks().max_removed * static_cast<double>(count()) + 1e-6);
    const int64_t step = ranks().rank_multiple;
    const int64_t full = std::min(op->out_features, op->in_features);
    int64_t rank = std::max(rank_at(count() - static_cast<int64_t>(std::ceil(amount))), step);
    while (rank <= full && removed_at(rank) > most) rank += step;
    return rank <= full && removed_at(rank) > 0 ? rank : 0;
  }
  /// From the full matrix (0) to the least rank; removed amounts ascend.
  std::vector<int64_t> grid() const {
    std::vector<int64_t> ranks_on_grid = {0};
    const int64_t steps = std::llround(std::ceil(ranks().max_removed / kShareStep - 1e-9));
    for (int64_t g = 1; g <= steps; ++g) {
      const double share = ranks().max_removed * static_cast<double>(g) / static_cast<double>(steps);
      const int64_t rank = rank_removing(share * static_cast<double>(count()));
      if (removed_at(rank) > removed_at(ranks_on_grid.back())) ranks_on_grid.push_back(rank);
    }
    return ranks_on_grid;
  }
};

std::vector<Factored> factored_of(const std::vector<OperatorPlan>& operators,
                                  const OperatorSettings& settings) {
  std::vector<Factored> factored;
  for (size_t i = 0; i < operators.size(); ++i) {
    if (settings[i]) factored.push_back({i, &operators[i], settings[i].get()});
  }
  return factored;
}

/// Losses by what is removed of an operator.
using LossCurve = std::vector<CurvePoint>;

/// The most that may be removed at a loss of at most `threshold`, linear between the points.
double amount_at(const LossCurve& curve, double threshold) {
  size_t above = 0;
  while (above < curve.size() && curve[above].loss <= threshold) ++above;
  if (above == 0) return curve.front().amount;
  if (above == curve.size()) return curve.back().amount;
  const CurvePoint &low = curve[above - 1], &high = curve[above];
  return low.amount + (high.amount - low.amount) * (threshold - low.loss) / (high.loss - low.loss);
}

/// One threshold on the losses of all, so that `total` is removed.
std::vector<double> amounts_by_threshold(const std::vector<LossCurve>& curves, double total) {
  double low = 0, high = 0;
  for (const LossCurve& curve : curves) high = std::max(high, curve.back().loss);
  const auto amounts = [&](double threshold) {
    std::vector<double> found;
    found.reserve(curves.size());
    for (const LossCurve& curve : curves) found.push_back(amount_at(curve, threshold));
    return found;
  };
  constexpr int kBisections = 80;
  for (int i = 0; i < kBisections; ++i) {
    const double middle = (low + high) / 2;
    double sum = 0;
    for (const double amount : amounts(middle)) sum += amount;
    (sum < total ? low : high) = middle;
  }
  return amounts(high);
}

/// Ranks that remove the amounts in all, and less than one step of a rank more: what rounding removes too
/// much of one operator is left to the next ones.
std::vector<int64_t> ranks_removing(const std::vector<double>& amounts,
                                    const std::vector<Factored>& factored) {
  std::vector<int64_t> ranks;
  double surplus = 0;
  for (size_t i = 0; i < factored.size(); ++i) {
    ranks.push_back(factored[i].rank_removing(amounts[i] - surplus));
    surplus += static_cast<double>(factored[i].removed_at(ranks[i])) - amounts[i];
  }
  return ranks;
}

class RankSurvey final : public Survey {
 public:
  RankSurvey(std::string method, const RankOptions& options, calib::Needs needs, FullFactors full)
      : method_(std::move(method)), options_(options), needs_(needs), full_(std::move(full)) {}

  calib::Needs needs() const override { return needs_of(sensitivity()) | needs_; }

  void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const override {
    double count = 0, wanted = 0, most = 0;
    const std::vector<Factored> factored = factored_of(operators, settings);
    for (const Factored& f : factored) {
      count += static_cast<double>(f.count());
      wanted += f.removed_evenly();
      most += static_cast<double>(f.removed_at(f.grid().back()));
    }
    if (wanted <= most + 0.5) return;
    throw InvalidArgument(
        method_,
        fmt::format(
            "max_removed {} and rank_multiple {} must leave room for what is to be removed, {:.4g} % of the "
            "operators' numbers; they allow {:.4g} %",
            options_.max_removed, options_.rank_multiple, 100 * wanted / count, 100 * most / count));
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    SurveyNumbers numbers;
    const std::vector<size_t>& members = block.groups()[group].operators;
    for (size_t k = 0; k < members.size(); ++k) {
      const model::LinearOp& op = block.ops()[members[k]];
      const PassOptions* settings = context.settings(op.info.name);
      if (settings == nullptr) continue;
      OperatorPlan shape;
      shape.out_features = op.info.out_features;
      shape.in_features = op.info.in_features;
      numbers[op.info.name] =
          losses(op.weight->dense(), stats, k, Factored{0, &shape, settings}, &context.pool);
    }
    return numbers;
  }

  OperatorSettings decide(const SurveyNumbers& numbers, const std::vector<OperatorPlan>& operators,
                          const OperatorSettings& settings, std::string& decision) const override {
    const std::vector<Factored> factored = factored_of(operators, settings);
    const std::vector<int64_t> chosen = ranks_removing(amounts_of(numbers, factored), factored);
    OperatorSettings decided = settings;
    int64_t removed = 0, count = 0, dense = 0;
    double least = 1, most = 0;
    for (size_t i = 0; i < factored.size(); ++i) {
      const Factored& f = factored[i];
      auto copy = f.settings->clone();
      auto& ranks = copy->part<RankOptions>();
      ranks.rank = chosen[i];
      const int64_t gone = f.removed_at(ranks.rank);
      ranks.removed = static_cast<double>(gone) / static_cast<double>(f.count());
      dense += ranks.rank == 0 ? 1 : 0;
      removed += gone;
      count += f.count();
      least = std::min(least, ranks.removed);
      most = std::max(most, ranks.removed);
      decided[f.index] = std::move(copy);
    }
    decision =
        fmt::format("{:.4g} % removed: {:.4g} to {:.4g} %",
                    100 * static_cast<double>(removed) / static_cast<double>(count), 100 * least, 100 * most);
    if (dense > 0) decision += fmt::format("; {} of {} operators stay dense", dense, factored.size());
    return decided;
  }

 private:
  Sensitivity sensitivity() const {
    return options_.allocation == RankAllocation::kEnergy ? Sensitivity::kOutputs : options_.sensitivity;
  }

  std::vector<double> losses(const at::Tensor& weight, const calib::InputStats& stats, size_t k,
                             const Factored& f, ThreadPool* pool) const {
    const lowrank::Factors full = full_(weight, of_operator(stats, k), *f.settings, pool);
    const LossWeights loss = loss_weights(sensitivity(), weight, stats, k, pool);
    const std::vector<int64_t> grid = f.grid();
    std::vector<double> found = quant::sampled_losses(
        weight, loss.moment, loss.row_weights, f.ranks().sampled_rows, grid.size(),
        [&](const at::Tensor& rows, size_t way) {
          if (grid[way] == 0) return weight.index_select(0, rows);
          const at::Tensor left = full.left.narrow(1, 0, grid[way]).index_select(0, rows);
          return left.mm(full.right.narrow(0, 0, grid[way])).to(at::kFloat);
        });
    for (size_t g = 1; g < found.size(); ++g) found[g] = std::max(found[g], found[g - 1]);
    return found;
  }

  std::vector<double> amounts_of(const SurveyNumbers& numbers, const std::vector<Factored>& factored) const {
    std::vector<LossCurve> curves;
    std::vector<AllocationOption> evenly;
    double total = 0;
    for (const Factored& f : factored) {
      const std::vector<int64_t> grid = f.grid();
      const std::vector<double>& losses = numbers.at(f.op->name);
      LossCurve& curve = curves.emplace_back();
      for (size_t g = 0; g < grid.size(); ++g)
        curve.push_back({static_cast<double>(f.removed_at(grid[g])), losses.at(g)});
      const double amount = f.removed_evenly();
      total += amount;
      size_t at = 0;
      while (at + 1 < curve.size() && curve[at].amount < amount) ++at;
      evenly.push_back({f.count(), curve[at].loss});
    }
    double most = 0;
    for (const LossCurve& curve : curves) most += curve.back().amount;
    total = std::min(total, most);
    if (options_.allocation != RankAllocation::kBudget) return amounts_by_threshold(curves, total);
    const std::vector<double> factors = shrinkage(evenly, options_.trust);
    for (size_t i = 0; i < curves.size(); ++i) {
      for (CurvePoint& point : curves[i]) point.loss *= factors[i];
    }
    return allocate_amounts(curves, total);
  }

  std::string method_;
  RankOptions options_;
  calib::Needs needs_;
  FullFactors full_;
};

}  // namespace

void RankOptions::visit(FieldVisitor& v) {
  v.field("removed", removed, {0, 1}, "share of the numbers of the operators that is removed");
  v.field("rank", rank, {0}, "rank of every operator; 0: by the share removed");
  v.field("rank_multiple", rank_multiple, {1, 4096},
          "ranks are rounded down to multiples of this, at least it");
  v.field("form", form,
          "how factors are stored: a pair, or pivoted: some rows of the product and the others as "
          "combinations of them, which takes rank^2 numbers less for the same product");
  v.field("solver", solver,
          "how the strongest directions are found: eigenvalues of the smaller Gram matrix (gram), singular "
          "values (exact), a random subspace with power iterations (randomized), or that for at most a 32nd "
          "of the directions of sides from 1024 up and gram else (auto)");
  v.field(
      "share", share,
      "whether q, k and v, or gate and up, share the factor that reads their common input: auto where the "
      "same numbers then lose less of their outputs");
  v.field("allocation", allocation,
          "how ranks are shared out among the operators: the same share removed from all, the same share "
          "of the outputs' energy kept, one threshold on the estimated loss of the model (sensitivity), or "
          "the least sum of estimated losses (budget)");
  v.field("max_removed", max_removed, {0, 1},
          "largest share that an allocation may remove from an operator; where a job does not say, 0.25 "
          "above removed, and at least half of what that keeps must stay");
  v.field("sensitivity", sensitivity,
          "of allocations: what errors of operators are weighed by: the gradients of the model's loss, or "
          "the size of their own outputs");
  v.field("sampled_rows", sampled_rows, {1},
          "of allocations: rows of a matrix by which its loss at each rank is estimated");
  v.field("trust", trust, {0, 1},
          "of budget: how far estimates of the loss per weight are believed: 1 as they are, 0 not at all");
}

std::vector<IdleSetting> RankOptions::idle() const {
  std::vector<IdleSetting> idle;
  if (rank > 0) idle.push_back({"removed", "with rank 0"});
  if (allocation != RankAllocation::kBudget) idle.push_back({"trust", "with allocation budget"});
  if (allocation == RankAllocation::kUniform || allocation == RankAllocation::kEnergy)
    idle.push_back({"sensitivity", "with allocation sensitivity or budget"});
  if (allocation == RankAllocation::kUniform) {
    for (const std::string_view name : {"max_removed", "sampled_rows"})
      idle.push_back({name, "with an allocation other than uniform"});
  }
  return idle;
}

int64_t RankOptions::rank_of(int64_t out, int64_t in) const {
  const int64_t all = out * in;
  const auto size = static_cast<int64_t>((1 - removed) * static_cast<double>(all) + 1e-6);
  if (rank == 0 && removed == 0) return 0;
  const int64_t wanted = rank > 0 ? rank / rank_multiple * rank_multiple
                                  : lowrank::largest_rank(form, out, in, size, rank_multiple);
  const int64_t found = std::max(wanted, rank_multiple);  // the least there is
  const bool smaller =
      found > 0 && found <= std::min(out, in) && lowrank::factored_size(form, out, in, found) < all;
  return smaller ? found : 0;
}

void FactorOptions::visit(FieldVisitor& v) {
  v.field("factor_bits", factor_bits, {2, 16},
          "bits of the factors' numbers, rounded by GPTQ with the statistics of what each factor reads; 16 "
          "leaves them in the model's type");
  v.field("factor_group_size", factor_group_size, {0},
          "columns of a factor that share a scale; 0: all of a row. Ranks are then best multiples of it");
}

std::vector<IdleSetting> FactorOptions::idle() const {
  if (quantizes()) return {};
  return {{"factor_group_size", "with factor_bits below 16"}};
}

quant::QuantScheme FactorOptions::scheme() const {
  quant::QuantScheme scheme;
  scheme.bits = factor_bits;
  scheme.granularity = factor_group_size > 0 ? quant::Granularity::kGroup : quant::Granularity::kChannel;
  if (factor_group_size > 0) scheme.group_size = factor_group_size;
  return scheme;
}

WeightPtr FactorStore::operator()(const at::Tensor& values, const Weight* right) const {
  if (!options_.quantizes()) return std::make_shared<DenseWeight>(values.to(dtype_));
  const quant::QuantScheme scheme = with_scale_type(options_.scheme(), dtype_);
  if (moment_ == nullptr)
    return std::make_shared<quant::QuantizedWeight>(quant::rtn(values.to(at::kFloat), scheme));
  const at::Tensor read = right == nullptr ? at::eye(moment_->in_features(), at::kDouble) : right->dense();
  quant::GptqResult rounded =
      quant::gptq(values.to(at::kFloat), moment_->energy(read), scheme, {.sweeps = 2, .refit = true});
  report_rung(rounded.rung, row_);
  if (rounded.rung == linalg::Rung::kFailed)
    report_fallback("rtn of a factor: its moment could not be factored", row_);
  return std::make_shared<quant::QuantizedWeight>(std::move(rounded.weight));
}

PlannedWeight plan_factored(const FactorOptions& factors, lowrank::Form form, int64_t rank,
                            const char* method, const PlannedOperator& op) {
  const int64_t out = op.out_features, in = op.in_features;
  const bool pivoted = form == Form::kPivoted && rank < out;
  const int64_t rows = pivoted ? out - rank : out;
  PlannedWeight planned;
  planned.scheme = fmt::format("rank {}{}", rank, pivoted ? ", pivoted" : "");
  planned.bytes_after = kCountBytes + (pivoted ? rank * kPivotBytes : 0);
  if (factors.quantizes()) {
    const int64_t group = factors.factor_group_size;
    if (group > 0 && (rank % group != 0 || in % group != 0)) {
      throw InvalidArgument(method,
                            fmt::format("factor_group_size must divide the rank of '{}', {}, and its {} "
                                        "inputs; it is {}. rank_multiple makes ranks multiples of it",
                                        op.name, rank, in, group));
    }
    const quant::QuantScheme scheme = factors.scheme();
    const PlannedWeight left = plan_scheme(scheme, method, {op.name, rows, rank, op.dtype});
    const PlannedWeight right = plan_scheme(scheme, method, {op.name, rank, in, op.dtype});
    planned.bytes_after += left.bytes_after + right.bytes_after;
    planned.scheme += ", " + right.scheme;
  } else {
    planned.bytes_after += (rows * rank + rank * in) * static_cast<int64_t>(c10::elementSize(op.dtype));
  }
  return planned;
}

PlannedWeight plan_factors(const PassOptions& options, const char* method, const PlannedOperator& op) {
  const RankOptions& ranks = ranks_of(options);
  const int64_t out = op.out_features, in = op.in_features;
  const bool allocated = ranks.allocation != RankAllocation::kUniform;
  if (allocated && ranks.rank > 0) {
    throw InvalidArgument(method, fmt::format("rank must be 0 for an allocation by {}; it is {}",
                                              name_of(ranks.allocation), ranks.rank));
  }
  if (allocated && ranks.max_removed < ranks.removed) {
    throw InvalidArgument(method, fmt::format("max_removed must be at least removed; they are {} and {}",
                                              ranks.max_removed, ranks.removed));
  }
  RankOptions even = ranks;
  if (allocated) even.rank_multiple = 1;  // roundings of several operators make up for each other
  const int64_t rank = even.rank_of(out, in);
  if (rank == 0) {
    return {.scheme = ranks.rank == 0 && ranks.removed == 0 ? "dense: nothing is to be removed"
                                                            : "dense: factors would not be smaller",
            .bytes_after = out * in * static_cast<int64_t>(c10::elementSize(op.dtype))};
  }
  PlannedWeight planned = plan_factored(options.part<FactorOptions>(), ranks.form, rank, method, op);
  if (allocated) {
    planned.scheme = fmt::format("about {}, by {}", planned.scheme, name_of(ranks.allocation));
    planned.is_estimate = true;
  }
  if (ranks.share == ShareFactor::kAuto) planned.scheme += ", or a shared factor";
  return planned;
}

void add_rank_allocation(MethodInfo& info, calib::Needs needs, FullFactors full) {
  const auto settle = info.settle;
  info.settle = [settle](PassOptions& options, const auto& given, bool is_last) {
    if (settle) settle(options, given, is_last);
    auto& ranks = options.part<RankOptions>();
    if (ranks.allocation != RankAllocation::kUniform && !given("max_removed"))
      ranks.max_removed = ranks.removed + std::min(kMostBeyond, (1 - ranks.removed) / 2);
  };
  info.make_survey = [method = info.name, needs, full = std::move(full)](
                         const PassOptions& entry, const model::Model&) -> std::unique_ptr<Survey> {
    const RankOptions& ranks = ranks_of(entry);
    if (ranks.allocation == RankAllocation::kUniform) return nullptr;
    return std::make_unique<RankSurvey>(method, ranks, needs, full);
  };
  for (const char* name : {"allocation", "sensitivity", "trust"}) info.pass_settings.emplace_back(name);
}

}  // namespace lcomp::pipeline
