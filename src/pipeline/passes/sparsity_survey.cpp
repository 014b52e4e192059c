#include "pipeline/passes/sparsity_survey.h"

#include <algorithm>
#include <cmath>

#include "lcomp/core/allocation.h"
#include "lcomp/core/error.h"
#include "lcomp/quant/sensitivity.h"
#include "lcomp/sparse/allocation.h"
#include "lcomp/sparse/saliency.h"

namespace lcomp::pipeline {
namespace {

using sparse::Scope;
using sparse::ScoreHistogram;
using sparse::Sparsity;

/// Sparsities that losses are estimated at, besides the bounds: steps of this.
constexpr double kStep = 0.05;
/// Estimates of the loss are of single operators and of small changes: where hardly anything is left of one
/// they promise too much (docs/sparsity.md). So by default no operator is this far above its uniform
/// sparsity, nor keeps less than half of what that keeps.
constexpr double kMostAbove = 0.15;

const AllocationOptions& allocation_of(const PassOptions& options) {
  return options.part<AllocationOptions>();
}

/// Operators that the pass prunes, in order.
struct Pruned {
  size_t index = 0;  ///< in the plan's operators
  const OperatorPlan* op = nullptr;
  const PassOptions* settings = nullptr;

  const Sparsity& sparsity() const { return settings->part<Sparsity>(); }
  int64_t count() const { return op->out_features * op->in_features; }
  /// Weights that go together: one of every row, or any.
  int64_t unit() const { return sparsity().scope == Scope::kRow ? op->out_features : 1; }
  int64_t removed_uniformly() const { return sparsity().removed(op->out_features, op->in_features); }
  int64_t removed_at(double share) const { return sparse::share_of(share, count() / unit()) * unit(); }
  sparse::RemovalBounds bounds() const {
    const AllocationOptions& a = allocation_of(*settings);
    return {removed_at(a.min_sparsity), removed_at(a.max_sparsity)};
  }
};

std::vector<Pruned> pruned_of(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) {
  std::vector<Pruned> pruned;
  for (size_t i = 0; i < operators.size(); ++i) {
    if (settings[i]) pruned.push_back({i, &operators[i], settings[i].get()});
  }
  return pruned;
}

int64_t removed_uniformly(const std::vector<Pruned>& pruned) {
  int64_t sum = 0;
  for (const Pruned& p : pruned) sum += p.removed_uniformly();
  return sum;
}

class SparsitySurvey : public Survey {
 public:
  explicit SparsitySurvey(PrunedBy by) : by_(std::move(by)) {}

  void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const override {
    const std::vector<Pruned> pruned = pruned_of(operators, settings);
    double weights = 0, least = 0, most = 0;
    for (const Pruned& p : pruned) {
      weights += static_cast<double>(p.count());
      least += static_cast<double>(p.bounds().least);
      most += static_cast<double>(p.bounds().most);
    }
    const auto wanted = static_cast<double>(removed_uniformly(pruned));
    if (least <= wanted && wanted <= most) return;
    throw InvalidArgument(
        by_.method,
        fmt::format(
            "the zeros asked for must fit between min_sparsity and max_sparsity of the operators; they "
            "are {:.4g} % of all weights, and the bounds allow {:.4g} to {:.4g} %",
            100 * wanted / weights, 100 * least / weights, 100 * most / weights));
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    SurveyNumbers numbers;
    const OperatorPruner pruner = starts_groups() ? by_.start_group(stats, context) : OperatorPruner();
    const std::vector<size_t>& members = block.groups()[group].operators;
    for (size_t k = 0; k < members.size(); ++k) {
      const model::LinearOp& op = block.ops()[members[k]];
      const PassOptions* settings = context.settings(op.info.name);
      if (settings == nullptr) continue;
      numbers[op.info.name] = numbers_of(op.weight->dense(), stats, k, *settings, pruner, context);
    }
    return numbers;
  }

  OperatorSettings decide(const SurveyNumbers& numbers, const std::vector<OperatorPlan>& operators,
                          const OperatorSettings& settings, std::string& decision) const override {
    const std::vector<Pruned> pruned = pruned_of(operators, settings);
    const std::vector<double> amounts = amounts_of(numbers, pruned);
    OperatorSettings decided = settings;
    double carried = 0, least = 1, most = 0;
    int64_t removed = 0, weights = 0;
    for (size_t k = 0; k < pruned.size(); ++k) {
      // What rounding to whole units leaves over goes to those that follow, half a unit to each at most.
      const Pruned& p = pruned[k];
      const auto unit = static_cast<double>(p.unit());
      const double wanted = amounts[k] + std::clamp(carried, -unit / 2, unit / 2);
      const int64_t units = std::clamp<int64_t>(std::llround(wanted / unit), 0, p.count() / p.unit());
      carried += amounts[k] - static_cast<double>(units) * unit;
      const double share = static_cast<double>(units * p.unit()) / static_cast<double>(p.count());
      auto copy = p.settings->clone();
      copy->part<Sparsity>().sparsity = share;
      decided[p.index] = std::move(copy);
      removed += units * p.unit();
      weights += p.count();
      least = std::min(least, share);
      most = std::max(most, share);
    }
    decision = fmt::format("{:.4g} % zeros: {:.4g} to {:.4g} %",
                           100 * static_cast<double>(removed) / static_cast<double>(weights), 100 * least,
                           100 * most);
    return decided;
  }

 protected:
  virtual bool starts_groups() const { return false; }
  virtual std::vector<double> numbers_of(const at::Tensor& weight, const calib::InputStats& stats, size_t k,
                                         const PassOptions& settings, const OperatorPruner& pruner,
                                         PassContext& context) const = 0;
  /// Weights that every operator is to lose.
  virtual std::vector<double> amounts_of(const SurveyNumbers& numbers,
                                         const std::vector<Pruned>& pruned) const = 0;

  const PrunedBy by_;
};

class OwlSurvey final : public SparsitySurvey {
 public:
  OwlSurvey(const AllocationOptions& options, PrunedBy by)
      : SparsitySurvey(std::move(by)), spread_(options.owl_spread), outlier_(options.owl_outlier) {}

  calib::Needs needs() const override { return {.second_moment = true}; }

 protected:
  std::vector<double> numbers_of(const at::Tensor& weight, const calib::InputStats& stats, size_t,
                                 const PassOptions&, const OperatorPruner&, PassContext&) const override {
    return ScoreHistogram(sparse::wanda(weight, stats.second_moment.diagonal())).numbers();
  }

  std::vector<double> amounts_of(const SurveyNumbers& numbers,
                                 const std::vector<Pruned>& pruned) const override {
    std::map<int64_t, ScoreHistogram> scores;
    std::map<int64_t, double> counts;
    for (const Pruned& p : pruned) {
      scores[p.op->block].merge(ScoreHistogram::from_numbers(numbers.at(p.op->name)));
      counts[p.op->block] += static_cast<double>(p.count());
    }
    std::vector<double> ratios, weights;
    for (const auto& [block, of_block] : scores) {
      ratios.push_back(100 * of_block.share_above(outlier_ * of_block.mean()));
      weights.push_back(counts[block]);
    }
    const std::vector<double> shifts = sparse::owl_shifts(ratios, weights, spread_);
    std::map<int64_t, double> shift_of;
    for (const auto& [block, of_block] : scores) shift_of[block] = shifts[shift_of.size()];
    std::vector<double> wanted;
    wanted.reserve(pruned.size());
    for (const Pruned& p : pruned) wanted.push_back(p.sparsity().sparsity + shift_of[p.op->block]);
    return within_bounds(wanted, pruned);
  }

 private:
  /// The wanted shares of all operators plus one constant, within their bounds: as many weights as uniformly.
  static std::vector<double> within_bounds(const std::vector<double>& wanted,
                                           const std::vector<Pruned>& pruned) {
    const auto total = static_cast<double>(removed_uniformly(pruned));
    const auto amounts_with = [&](double constant) {
      std::vector<double> amounts;
      for (size_t k = 0; k < pruned.size(); ++k) {
        const sparse::RemovalBounds bounds = pruned[k].bounds();
        amounts.push_back(std::clamp((wanted[k] + constant) * static_cast<double>(pruned[k].count()),
                                     static_cast<double>(bounds.least), static_cast<double>(bounds.most)));
      }
      return amounts;
    };
    double low = -1, high = 1;
    for (int step = 0; step < 60; ++step) {
      const double middle = 0.5 * (low + high);
      const std::vector<double> amounts = amounts_with(middle);
      (std::accumulate(amounts.begin(), amounts.end(), 0.0) <= total ? low : high) = middle;
    }
    return amounts_with(low);
  }

  double spread_, outlier_;
};

class GlobalSurvey final : public SparsitySurvey {
 public:
  explicit GlobalSurvey(PrunedBy by) : SparsitySurvey(std::move(by)) {}

  calib::Needs needs() const override { return by_.needs; }

 protected:
  std::vector<double> numbers_of(const at::Tensor& weight, const calib::InputStats& stats, size_t k,
                                 const PassOptions& settings, const OperatorPruner&,
                                 PassContext&) const override {
    return ScoreHistogram(by_.scores(weight, of_operator(stats, k), settings)).numbers();
  }

  std::vector<double> amounts_of(const SurveyNumbers& numbers,
                                 const std::vector<Pruned>& pruned) const override {
    std::vector<ScoreHistogram> scores;
    std::vector<sparse::RemovalBounds> bounds;
    for (const Pruned& p : pruned) {
      scores.push_back(ScoreHistogram::from_numbers(numbers.at(p.op->name)));
      bounds.push_back(p.bounds());
    }
    const auto removed = sparse::removed_below_threshold(scores, bounds, removed_uniformly(pruned));
    return {removed.begin(), removed.end()};
  }
};

class BudgetSurvey final : public SparsitySurvey {
 public:
  BudgetSurvey(const AllocationOptions& options, PrunedBy by)
      : SparsitySurvey(std::move(by)),
        options_(options),
        needs_(needs_of(options_.sensitivity) | by_.needs) {}

  calib::Needs needs() const override { return needs_; }

 protected:
  bool starts_groups() const override { return true; }

  std::vector<double> numbers_of(const at::Tensor& weight, const calib::InputStats& stats, size_t k,
                                 const PassOptions& settings, const OperatorPruner& pruner,
                                 PassContext& context) const override {
    const RowPruner prune = pruner(weight, of_operator(stats, k), settings);
    const LossWeights loss = loss_weights(options_.sensitivity, weight, stats, k, &context.pool);
    const std::vector<double> grid = grid_of(settings);
    Sparsity sparsity = settings.part<Sparsity>();
    std::vector<double> losses =
        quant::sampled_losses(weight, loss.moment, loss.row_weights, allocation_of(settings).sampled_rows,
                              grid.size(), [&](const at::Tensor& rows, size_t way) {
                                sparsity.sparsity = grid[way];
                                return prune(rows, sparsity);
                              });
    for (size_t g = 1; g < losses.size(); ++g) losses[g] = std::max(losses[g], losses[g - 1]);
    return losses;
  }

  std::vector<double> amounts_of(const SurveyNumbers& numbers,
                                 const std::vector<Pruned>& pruned) const override {
    std::vector<std::vector<CurvePoint>> curves;
    std::vector<AllocationOption> at_target;
    for (const Pruned& p : pruned) {
      const std::vector<double> grid = grid_of(*p.settings);
      const std::vector<double>& losses = numbers.at(p.op->name);
      auto& curve = curves.emplace_back();
      for (size_t g = 0; g < grid.size(); ++g) {
        const auto amount = static_cast<double>(p.removed_at(grid[g]));
        if (curve.empty() || amount > curve.back().amount) curve.push_back({amount, losses[g]});
      }
      const auto target = static_cast<size_t>(
          std::lower_bound(grid.begin(), grid.end(), p.sparsity().sparsity) - grid.begin());
      at_target.push_back({p.count(), losses[std::min(target, losses.size() - 1)]});
    }
    const std::vector<double> factors = shrinkage(at_target, options_.trust);
    for (size_t k = 0; k < curves.size(); ++k) {
      for (CurvePoint& point : curves[k]) point.loss *= factors[k];
    }
    return allocate_amounts(curves, static_cast<double>(removed_uniformly(pruned)));
  }

 private:
  /// From the least to the most sparsity of an operator.
  static std::vector<double> grid_of(const PassOptions& settings) {
    const AllocationOptions& a = allocation_of(settings);
    const double least = a.min_sparsity, most = a.max_sparsity;
    std::vector<double> grid = {least};
    const int64_t steps = std::llround(std::ceil((most - least) / kStep - 1e-9));
    for (int64_t g = 1; g <= steps; ++g)
      grid.push_back(least + (most - least) * static_cast<double>(g) / static_cast<double>(steps));
    return grid;
  }

  AllocationOptions options_;
  calib::Needs needs_;
};

std::unique_ptr<Survey> survey_of(const AllocationOptions& options, const PrunedBy& by) {
  switch (options.allocation) {
    case Allocation::kUniform:
      break;
    case Allocation::kOwl:
      return std::make_unique<OwlSurvey>(options, by);
    case Allocation::kBudget:
      return std::make_unique<BudgetSurvey>(options, by);
    case Allocation::kGlobal:
      return std::make_unique<GlobalSurvey>(by);
  }
  return nullptr;
}

/// Settings of one allocation do nothing in another.
void refuse_idle(const AllocationOptions& options, const char* method) {
  const AllocationOptions none;
  if (options.allocation == Allocation::kUniform &&
      (options.min_sparsity != none.min_sparsity || options.max_sparsity != none.max_sparsity)) {
    throw InvalidArgument(
        method,
        fmt::format("min_sparsity and max_sparsity must be 0 and 1 for allocation uniform, which gives "
                    "every operator its sparsity; they are {} and {}",
                    options.min_sparsity, options.max_sparsity));
  }
  if (options.allocation != Allocation::kOwl && options.owl_spread != none.owl_spread) {
    throw InvalidArgument(
        method, fmt::format("owl_spread must be left out unless allocation is owl; it is {}, for {}",
                            options.owl_spread, name_of(options.allocation)));
  }
}

}  // namespace

void AllocationOptions::visit(FieldVisitor& v) {
  v.field("allocation", allocation,
          "how the zeros are shared out among the operators: the same share to all, by the outliers of each "
          "block (owl), by the least estimated loss (budget), or by one threshold over all scores (global; "
          "magnitude and obd)");
  v.field("min_sparsity", min_sparsity, {0, 1}, "least sparsity that an operator may be allocated");
  v.field("max_sparsity", max_sparsity, {0, 1},
          "most sparsity that an operator may be allocated; where a job does not say, 0.15 above sparsity, "
          "and at least half of what that keeps must stay");
  v.field("owl_spread", owl_spread, {0, 0.5}, "of owl: sparsities of blocks lie at most twice this apart");
  v.field("owl_outlier", owl_outlier, {1},
          "of owl: scores above this many times the mean of a block are outliers");
  v.field(
      "sensitivity", sensitivity,
      "of budget: what errors of operators are weighed by: the gradients of the model's loss, or the size "
      "of their own outputs");
  v.field("sampled_rows", sampled_rows, {1},
          "of budget: rows of a matrix by which its loss at each sparsity is estimated");
  v.field(
      "trust", trust, {0, 1},
      "of budget: how far estimates of the loss per weight are believed: 1 as they are, 0 not at all; the "
      "ratio of an operator's to the mean is raised to this power");
}

void add_allocation(MethodInfo& info, PrunedBy by) {
  info.settle = [](PassOptions& options, const auto& given, bool) {
    auto& allocation = options.part<AllocationOptions>();
    auto& sparsity = options.part<Sparsity>();
    if (allocation.allocation == Allocation::kUniform) return;
    const double even = sparsity.sparsity;
    if (!given("max_sparsity")) allocation.max_sparsity = even + std::min(kMostAbove, (1 - even) / 2);
    if (allocation.allocation == Allocation::kGlobal && !given("scope")) sparsity.scope = Scope::kTensor;
  };
  info.make_survey = [by = std::move(by)](const PassOptions& entry, const model::Model&) {
    return survey_of(allocation_of(entry), by);
  };
  for (const char* name : {"allocation", "owl_spread", "owl_outlier", "sensitivity", "trust"})
    info.pass_settings.emplace_back(name);
}

PlannedWeight plan_allocated(const PassOptions& options, const char* method, bool comparable,
                             const PlannedOperator& op) {
  const AllocationOptions& a = allocation_of(options);
  const auto& sparsity = options.part<Sparsity>();
  PlannedWeight planned = plan_sparse(sparsity, options.part<SparseStorageOptions>(), method, op);
  refuse_idle(a, method);
  if (a.allocation == Allocation::kUniform) return planned;
  const auto name = name_of(a.allocation);
  if (sparsity.n_of_m(method)) {
    throw InvalidArgument(method,
                          fmt::format("pattern must be unstructured for allocation {}: every operator has "
                                      "as many zeros in a pattern; it is {}",
                                      name, sparsity.pattern));
  }
  if (a.allocation == Allocation::kGlobal && !comparable) {
    throw InvalidArgument(method,
                          "allocation must not be global: the scores of the method do not compare between "
                          "operators; magnitude and obd have some that do");
  }
  if (a.allocation == Allocation::kGlobal && sparsity.scope != Scope::kTensor)
    throw InvalidArgument(method, "scope must be tensor for allocation global; it is row");
  if (a.min_sparsity > a.max_sparsity) {
    throw InvalidArgument(method, fmt::format("min_sparsity must be at most max_sparsity; they are {} and {}",
                                              a.min_sparsity, a.max_sparsity));
  }
  planned.scheme = fmt::format("about {}, by {}", planned.scheme, name);
  planned.is_estimate = true;
  return planned;
}

}  // namespace lcomp::pipeline
