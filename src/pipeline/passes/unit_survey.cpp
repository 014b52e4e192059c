#include "pipeline/passes/unit_survey.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numeric>

#include "lcomp/core/error.h"
#include "lcomp/eval/latency.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/survey.h"

namespace lcomp::pipeline {
namespace {

using model::DependencyGroup;
using model::UnitKind;

/// Importance of the units of one dependency group, summed over what each operator says of them.
struct RankedGroup {
  int64_t block = 0;
  size_t first = 0;  ///< position of the block's first operator in the list of all
  DependencyGroup units;
  std::vector<double> scores;

  /// Position of the closing operator in the list of all.
  size_t closing() const { return first + units.closing().op; }
};

/// Weights that belong to one unit.
double unit_parameters(const DependencyGroup& units, const std::vector<model::OperatorInfo>& operators) {
  double sum = 0;
  for (const model::UnitSlice& slice : units.slices) {
    const model::OperatorInfo& op = operators.at(slice.op);
    sum += static_cast<double>(slice.per_unit * (slice.rows ? op.in_features : op.out_features));
  }
  return sum;
}

/// The text of an error without the "[place] " that it begins with, to stand in another.
std::string without_place(const std::string& text) {
  const size_t end = text.starts_with("[") ? text.find("] ") : std::string::npos;
  return end == std::string::npos ? text : text.substr(end + 2);
}

/// What the surveys of both methods share: which dependency groups of the model the pass works on, and
/// turning numbers of kept units into settings.
class UnitSurvey : public Survey {
 public:
  UnitSurvey(const PassOptions& entry, const model::Model& model, const char* method)
      : shrink_(entry.part<ShrinkOptions>()),
        model_(model),
        architecture_(model.architecture()),
        method_(method) {}

  void check(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const override {
    std::vector<RankedGroup> groups = groups_of(operators, settings);
    if (groups.empty())
      throw InvalidArgument(method_,
                            "no units are left that may be deleted; ignore or protect fewer operators");
    for (RankedGroup& group : groups) {
      const int64_t units = group.units.units;
      if (group.units.kind == UnitKind::kChannel && shrink_.channel_step > units) {
        throw InvalidArgument(method_,
                              fmt::format("channel_step must be at most the {} channels of block {}; it "
                                          "is {}",
                                          units, group.block, shrink_.channel_step));
      }
      group.scores.assign(static_cast<size_t>(units), 1.0);
    }
    refuse_packed(operators, settings);
    check_more(groups);
    int64_t deleted = 0;
    try {
      const std::vector<int64_t> counts = choose(groups);
      for (size_t g = 0; g < groups.size(); ++g) deleted += groups[g].units.units - counts[g];
    } catch (const InvalidArgument& misfit) {
      throw InvalidArgument(method_,
                            fmt::format("ratio must leave one attention group and channel_step = {} "
                                        "channels in every block; with {} it does not ({})",
                                        shrink_.channel_step, shrink_.ratio, without_place(misfit.what())));
    }
    if (deleted == 0) {
      throw InvalidArgument(method_, fmt::format("ratio must be large enough to delete a unit; with {} and "
                                                 "channel_step = {} none goes",
                                                 shrink_.ratio, shrink_.channel_step));
    }
  }

  OperatorSettings decide(const SurveyNumbers& numbers, const std::vector<OperatorPlan>& operators,
                          const OperatorSettings& settings, std::string& decision) const override {
    std::vector<RankedGroup> groups = groups_of(operators, settings);
    for (RankedGroup& group : groups) {
      std::vector<std::vector<double>> slices;
      for (const model::UnitSlice& slice : group.units.slices) {
        const auto found = numbers.find(operators[group.first + slice.op].name);
        if (found != numbers.end()) slices.push_back(found->second);
      }
      group.scores = fuse(slices);
      for (const double score : group.scores) {
        if (std::isfinite(score)) continue;
        throw NumericalError(method_, fmt::format("importances of units must be finite; one of '{}' is not",
                                                  operators[group.closing()].name));
      }
    }
    const std::vector<int64_t> counts = choose(groups);
    OperatorSettings decided = settings;
    for (size_t g = 0; g < groups.size(); ++g) {
      const RankedGroup& group = groups[g];
      auto copy = settings[group.closing()]->clone();
      copy->part<ChosenUnits>().kept =
          complement(sparse::lowest_units(group.scores, group.units.units - counts[g]), group.units.units);
      decided[group.closing()] = std::move(copy);
    }
    decision = describe(groups, counts);
    return decided;
  }

 protected:
  virtual std::vector<double> fuse(const std::vector<std::vector<double>>& slices) const = 0;
  /// How many units each group keeps.
  virtual std::vector<int64_t> choose(const std::vector<RankedGroup>& groups) const = 0;
  virtual bool is_protected(int64_t /*block*/) const { return false; }
  /// What else of the groups' numbers cannot be.
  virtual void check_more(const std::vector<RankedGroup>& /*groups*/) const {}

  const ShrinkOptions& shrink() const { return shrink_; }
  const model::Architecture& architecture() const { return architecture_; }

  /// Counts of the search, in the order of the groups; blocks without a group of a kind have no scores of it.
  static std::vector<int64_t> in_order(const std::vector<RankedGroup>& groups,
                                       const sparse::UnitCounts& counts) {
    std::vector<int64_t> out;
    std::map<int64_t, size_t> rows = rows_of(groups);
    for (const RankedGroup& group : groups) {
      const size_t row = rows.at(group.block);
      out.push_back(group.units.kind == UnitKind::kAttention ? counts.attention[row] : counts.channels[row]);
    }
    return out;
  }

  static sparse::UnitScores scores_of(const std::vector<RankedGroup>& groups) {
    const std::map<int64_t, size_t> rows = rows_of(groups);
    sparse::UnitScores scores{std::vector<std::vector<double>>(rows.size()),
                              std::vector<std::vector<double>>(rows.size())};
    for (const RankedGroup& group : groups) {
      const size_t row = rows.at(group.block);
      (group.units.kind == UnitKind::kAttention ? scores.attention : scores.channels)[row] = group.scores;
    }
    return scores;
  }

  /// Costs of units in parameters, and for `tokens` > 0 in multiply-adds of a sequence.
  sparse::UnitCosts costs(int64_t tokens) const {
    sparse::UnitCosts costs{.channel_step = shrink_.channel_step};
    const model::BlockWidths& widths = architecture_.block_widths(0);
    const int64_t queries = widths.heads / widths.kv_heads * architecture_.head_dim;
    for (const DependencyGroup& units : architecture_.dependency_groups(0)) {
      double cost = unit_parameters(units, architecture_.operators(0));
      if (tokens > 0) {
        const auto length = static_cast<double>(tokens);
        cost *= length;
        // Scores and context of each query head (Kwon et al. count them without the causal mask).
        if (units.kind == UnitKind::kAttention) {
          cost += 2.0 * length * length * static_cast<double>(queries);
        }
      }
      (units.kind == UnitKind::kAttention ? costs.attention : costs.channel) = cost;
    }
    return costs;
  }

  static double total(const std::vector<RankedGroup>& groups, const sparse::UnitCosts& costs) {
    double sum = 0;
    for (const RankedGroup& group : groups) {
      sum += static_cast<double>(group.units.units) *
             (group.units.kind == UnitKind::kAttention ? costs.attention : costs.channel);
    }
    return sum;
  }

 private:
  void refuse_packed(const std::vector<OperatorPlan>& operators, const OperatorSettings& settings) const {
    for (int64_t block = 0; block < architecture_.layers; ++block) {
      const auto infos = architecture_.operators(block);
      for (size_t i = 0; i < infos.size(); ++i) {
        const auto* stored = model_.group_of(infos[i]);
        if (stored == nullptr || !settings[static_cast<size_t>(block) * infos.size() + i]) continue;
        throw InvalidArgument(
            method_,
            fmt::format("operators whose units are deleted must be stored dense; '{}' "
                        "is {}",
                        operators[static_cast<size_t>(block) * infos.size() + i].name, stored->format));
      }
    }
  }

  static std::map<int64_t, size_t> rows_of(const std::vector<RankedGroup>& groups) {
    std::map<int64_t, size_t> rows;
    for (const RankedGroup& group : groups) rows.emplace(group.block, rows.size());
    return rows;
  }

  std::vector<RankedGroup> groups_of(const std::vector<OperatorPlan>& operators,
                                     const OperatorSettings& settings) const {
    std::vector<RankedGroup> groups;
    const auto per_block = operators.size() / static_cast<size_t>(architecture_.layers);
    for (int64_t block = 0; block < architecture_.layers; ++block) {
      const size_t first = static_cast<size_t>(block) * per_block;
      for (DependencyGroup& units : architecture_.dependency_groups(block)) {
        std::vector<std::string> given, missing;
        for (const model::UnitSlice& slice : units.slices)
          (settings[first + slice.op] ? given : missing).push_back(operators[first + slice.op].name);
        if (given.empty() || is_protected(block)) continue;
        if (!missing.empty()) {
          throw InvalidArgument(
              method_,
              fmt::format("{} units have a part in each of their operators, which must be given together "
                          "or not at all; '{}' is given and '{}' is not",
                          units.name, given.front(), missing.front()));
        }
        groups.push_back({block, first, std::move(units), {}});
      }
    }
    return groups;
  }

  std::string describe(const std::vector<RankedGroup>& groups, const std::vector<int64_t>& counts) const {
    std::string text;
    double kept = 0, all = 0;
    for (const UnitKind kind : {UnitKind::kAttention, UnitKind::kChannel}) {
      int64_t least = INT64_MAX, most = 0, units = 0;
      for (size_t g = 0; g < groups.size(); ++g) {
        const RankedGroup& group = groups[g];
        if (group.units.kind != kind) continue;
        least = std::min(least, counts[g]);
        most = std::max(most, counts[g]);
        units = std::max(units, group.units.units);
        const double parameters = unit_parameters(group.units, architecture_.operators(group.block));
        kept += static_cast<double>(counts[g]) * parameters;
        all += static_cast<double>(group.units.units) * parameters;
      }
      if (units == 0) continue;
      const std::string range = least == most ? std::to_string(most) : fmt::format("{} to {}", least, most);
      text += fmt::format("{} of {} {} a block, ", range, units,
                          kind == UnitKind::kAttention ? "attention groups" : "channels");
    }
    return fmt::format("{}{:.1f} % of the weights", text, 100 * kept / all);
  }

  ShrinkOptions shrink_;
  const model::Model& model_;
  const model::Architecture& architecture_;
  const char* method_;
};

class FisherMaskSurvey final : public UnitSurvey {
 public:
  FisherMaskSurvey(const PassOptions& entry, const model::Model& model)
      : UnitSurvey(entry, model, "fisher_mask"), options_(entry.part<FisherMaskOptions>()) {
    if (options_.budget == UnitBudget::kLatency) {
      measured_ = read_latency_table();
    } else if (!options_.latency_table.empty()) {
      throw InvalidArgument("fisher_mask",
                            fmt::format("latency_table must be empty unless budget is latency; it is "
                                        "'{}'",
                                        options_.latency_table));
    }
  }

  calib::Needs needs() const override { return {.unit_gradients = true}; }

  void check_samples(int64_t samples) const override {
    if (samples / 2 >= options_.gradient_batch) return;
    throw InvalidArgument("fisher_mask",
                          fmt::format("gradient_batch must leave at least two batches of the {} calibration "
                                      "samples; it is {}",
                                      samples, options_.gradient_batch));
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    SurveyNumbers numbers;
    if (!stats.unit_gradients.defined()) return numbers;
    const std::string& closing = block.ops()[block.groups()[group].operators.front()].info.name;
    if (context.settings(closing) == nullptr) return numbers;
    check_samples(stats.unit_gradients.size(0));
    const at::Tensor fisher =
        batched(stats.unit_gradients, options_.gradient_batch).square().sum(0).contiguous();
    numbers[closing].assign(fisher.data_ptr<double>(), fisher.data_ptr<double>() + fisher.numel());
    return numbers;
  }

 protected:
  std::vector<double> fuse(const std::vector<std::vector<double>>& slices) const override {
    return slices.front();
  }

  std::vector<int64_t> choose(const std::vector<RankedGroup>& groups) const override {
    const sparse::UnitScores scores = scores_of(groups);
    if (options_.budget == UnitBudget::kLatency) {
      double whole = 0;
      for (const RankedGroup& group : groups) whole += of_kind(measured_, group).at(group.scores.size());
      const double budget = (1 - shrink().ratio) * whole;
      const int64_t step = shrink().channel_step;
      return in_order(groups,
                      options_.uniform
                          ? sparse::search_uniform_units(scores, measured_, step, budget, legal_of(groups))
                          : sparse::search_measured_units(scores, measured_, step, budget));
    }
    const sparse::UnitCosts of_units = costs(options_.budget == UnitBudget::kMacs ? options_.tokens : 0);
    const double budget = (1 - shrink().ratio) * total(groups, of_units);
    if (!options_.uniform) return in_order(groups, sparse::search_units(scores, of_units, budget));
    const model::BlockWidths widest = architecture().widest();
    const auto multiples = sparse::as_measured(of_units, widest.kv_heads, widest.intermediate);
    return in_order(groups, sparse::search_uniform_units(scores, multiples, shrink().channel_step, budget,
                                                         legal_of(groups)));
  }

  void check_more(const std::vector<RankedGroup>& groups) const override {
    if (!options_.uniform) return;
    const std::vector<model::BlockWidths>& widths = architecture().widths;
    const bool even =
        std::all_of(widths.begin(), widths.end(), [&](const auto& w) { return w == widths[0]; });
    const auto of_channels =
        static_cast<size_t>(std::count_if(groups.begin(), groups.end(), [](const RankedGroup& group) {
          return group.units.kind == UnitKind::kChannel;
        }));
    const auto all_or_none = [&](size_t count) { return count == 0 || count == widths.size(); };
    if (even && all_or_none(of_channels) && all_or_none(groups.size() - of_channels)) return;
    throw InvalidArgument(
        "fisher_mask",
        "uniform must be false unless the heads or the channels (or both) of all blocks are "
        "given, and the blocks have one width now; it is true");
  }

 private:
  static const std::vector<double>& of_kind(const sparse::MeasuredCosts& costs, const RankedGroup& group) {
    return group.units.kind == UnitKind::kAttention ? costs.attention : costs.channels;
  }

  /// The table for every number of units: between the widths that were timed on a straight line, and where
  /// noise made more units cheaper, as dear as fewer.
  sparse::MeasuredCosts read_latency_table() const {
    if (options_.latency_table.empty())
      throw InvalidArgument("fisher_mask", "latency_table must name a file for budget latency; it is empty");
    const eval::LatencyTable table = eval::read_latency_table(options_.latency_table);
    const model::BlockWidths widest = architecture().widest();
    if (static_cast<int64_t>(table.attention.size()) != widest.kv_heads + 1 ||
        table.mlp_widths.back() != widest.intermediate) {
      throw InvalidArgument(
          "fisher_mask",
          fmt::format(
              "latency_table must be that of blocks with {} key-value heads and {} channels; '{}' is of {} "
              "and {}",
              widest.kv_heads, widest.intermediate, options_.latency_table, table.attention.size() - 1,
              table.mlp_widths.back()));
    }
    sparse::MeasuredCosts costs{table.attention, {0}};
    for (size_t i = 1; i < table.mlp_widths.size(); ++i) {
      const int64_t from = table.mlp_widths[i - 1], to = table.mlp_widths[i];
      for (int64_t width = from + 1; width <= to; ++width) {
        const double share = static_cast<double>(width - from) / static_cast<double>(to - from);
        costs.channels.push_back(table.mlp[i - 1] + share * (table.mlp[i] - table.mlp[i - 1]));
      }
    }
    for (std::vector<double>* seconds : {&costs.attention, &costs.channels})
      std::inclusive_scan(seconds->begin(), seconds->end(), seconds->begin(),
                          [](double a, double b) { return std::max(a, b); });
    return costs;
  }

  /// Numbers of key-value heads with which other software loads the model; none to count where the pass is of
  /// channels alone.
  std::vector<int64_t> legal_of(const std::vector<RankedGroup>& groups) const {
    const bool has_heads = std::any_of(groups.begin(), groups.end(), [](const RankedGroup& group) {
      return group.units.kind == UnitKind::kAttention;
    });
    if (!has_heads) return {0};
    model::Architecture narrower = architecture();
    const model::BlockWidths widths = narrower.block_widths(0);
    const int64_t shared = widths.heads / widths.kv_heads;
    std::vector<int64_t> legal;
    for (int64_t count = 1; count <= widths.kv_heads; ++count) {
      std::fill(narrower.widths.begin(), narrower.widths.end(),
                model::BlockWidths{count * shared, count, widths.intermediate});
      if (narrower.common_widths().kv_heads == count) legal.push_back(count);
    }
    return legal;
  }

  FisherMaskOptions options_;
  sparse::MeasuredCosts measured_;  // with budget latency
};

class PrunerSurvey final : public UnitSurvey {
 public:
  PrunerSurvey(const PassOptions& entry, const model::Model& model)
      : UnitSurvey(entry, model, "llm_pruner"), options_(entry.part<PrunerOptions>()) {}

  calib::Needs needs() const override {
    using sparse::UnitImportance;
    const UnitImportance i = options_.importance;
    return {.gradient_squares = i == UnitImportance::kParamSecond || i == UnitImportance::kParamMix,
            .gradient_products = i == UnitImportance::kParamFirst || i == UnitImportance::kParamMix ||
                                 i == UnitImportance::kVector};
  }

  SurveyNumbers measure(const model::Block& block, size_t group, const calib::InputStats& stats,
                        PassContext& context) override {
    SurveyNumbers numbers;
    const std::vector<size_t>& members = block.groups()[group].operators;
    for (const DependencyGroup& units : block.dependency_groups()) {
      for (const model::UnitSlice& slice : units.slices) {
        const auto member = std::find(members.begin(), members.end(), slice.op);
        const model::LinearOp& op = block.ops()[slice.op];
        if (member == members.end() || context.settings(op.info.name) == nullptr) continue;
        const auto k = static_cast<size_t>(member - members.begin());
        sparse::SliceGradients gradients;
        if (!stats.gradient_products.empty()) gradients.products = stats.gradient_products[k];
        if (!stats.gradient_squares.empty()) gradients.squares = stats.gradient_squares[k];
        // In the pool, so that its sums do not depend on the number of processors.
        parallel_for(&context.pool, 1, [&](int64_t, int) {
          numbers[op.info.name] = sparse::slice_importance(op.weight->dense(), gradients, slice.rows,
                                                           slice.per_unit, options_.importance);
        });
      }
    }
    return numbers;
  }

 protected:
  std::vector<double> fuse(const std::vector<std::vector<double>>& slices) const override {
    return sparse::grouped_importance(slices, options_.grouping);
  }

  std::vector<int64_t> choose(const std::vector<RankedGroup>& groups) const override {
    const sparse::UnitCosts of_units = costs(0);
    if (options_.selection == UnitSelection::kGlobal) {
      const double budget = (1 - shrink().ratio) * total(groups, of_units);
      return in_order(groups, sparse::threshold_units(scores_of(groups), of_units, budget));
    }
    std::vector<int64_t> counts;
    for (const RankedGroup& group : groups) {
      const int64_t units = group.units.units;
      const int64_t step = group.units.kind == UnitKind::kChannel ? shrink().channel_step : 1;
      // Whole units that fit into the share; 0.3 * 10 in floating point is a little less than 3.
      const auto removed =
          static_cast<int64_t>(std::floor(static_cast<double>(units) * shrink().ratio + 1e-9));
      const int64_t kept = removed == 0 ? units : (units - removed) / step * step;
      if (kept < step) throw InvalidArgument("llm_pruner", "a block would keep none");
      counts.push_back(kept);
    }
    return counts;
  }

  bool is_protected(int64_t block) const override {
    return block < options_.protect_first || block >= architecture().layers - options_.protect_last;
  }

 private:
  PrunerOptions options_;
};

}  // namespace

std::vector<int64_t> complement(const std::vector<int64_t>& removed, int64_t units) {
  std::vector<int64_t> kept;
  size_t next = 0;
  for (int64_t u = 0; u < units; ++u) {
    if (next < removed.size() && removed[next] == u) {
      ++next;
    } else {
      kept.push_back(u);
    }
  }
  return kept;
}

at::Tensor batched(const at::Tensor& gradients, int64_t batch) {
  if (batch == 1) return gradients.to(at::kDouble);
  std::vector<at::Tensor> means;
  for (const at::Tensor& part : gradients.to(at::kDouble).split(batch)) means.push_back(part.mean(0));
  return at::stack(means);
}

std::unique_ptr<Survey> fisher_mask_survey(const PassOptions& entry, const model::Model& model) {
  return std::make_unique<FisherMaskSurvey>(entry, model);
}

std::unique_ptr<Survey> llm_pruner_survey(const PassOptions& entry, const model::Model& model) {
  return std::make_unique<PrunerSurvey>(entry, model);
}

}  // namespace lcomp::pipeline
