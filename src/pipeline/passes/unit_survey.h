#pragma once

#include <ATen/core/Tensor.h>
#include <fmt/ranges.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/pipeline/method.h"
#include "lcomp/sparse/structured.h"

/// Settings of the methods that delete units of blocks, and the surveys that rank the units of the whole
/// model and decide how many each block keeps.
namespace lcomp::pipeline {

/// What the operator that reads the units does about those that go.
enum class Compensation { kNone, kScales, kRefit };

/// What a budget counts.
enum class UnitBudget { kParameters, kMacs, kLatency };

enum class UnitSelection { kLocal, kGlobal };

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::Compensation> {
  static constexpr std::array<std::string_view, 3> names = {"none", "scales", "refit"};
};
template <>
struct EnumNames<pipeline::UnitBudget> {
  static constexpr std::array<std::string_view, 3> names = {"parameters", "macs", "latency"};
};
template <>
struct EnumNames<pipeline::UnitSelection> {
  static constexpr std::array<std::string_view, 2> names = {"local", "global"};
};
}  // namespace lcomp

namespace lcomp::pipeline {

struct ShrinkOptions {
  double ratio = 0.2;
  int64_t channel_step = 8;
  Compensation compensate = Compensation::kRefit;
  double damping = 0.01;

  void visit(FieldVisitor& v) {
    v.field("ratio", ratio, {0, 1}, "share to remove of what the operators of the pass have in all");
    v.field("channel_step", channel_step, {1}, "feed-forward channels are kept in multiples of this");
    v.field(
        "compensate", compensate,
        "how o_proj and down_proj make up for inputs that are gone: none, scales (a factor for each unit, "
        "as Kwon et al. tune their masks), or refit (least squares of the whole operator)");
    v.field("damping", damping, {0, 1},
            "of refit and scales: added to what is solved, relative to the mean of its diagonal");
  }
};

struct FisherMaskOptions {
  UnitBudget budget = UnitBudget::kParameters;
  int64_t tokens = 512;
  std::string latency_table;
  bool uniform = false;
  int64_t gradient_batch = 1;
  bool rearrange = true;

  void visit(FieldVisitor& v) {
    v.field(
        "budget", budget,
        "what ratio is a share of: parameters, the macs of a sequence of tokens, attention included, or the "
        "latency that latency_table tells");
    v.field("tokens", tokens, {1}, "length of the sequence that budget macs counts for");
    v.field("latency_table", latency_table,
            "file that `lcomp bench --latency-table` wrote on the machine the model shall run on");
    v.field("uniform", uniform,
            "the same widths in every block, which makes an ordinary checkpoint that other software loads");
    v.field("gradient_batch", gradient_batch, {1},
            "samples whose gradients are averaged before they are squared");
    v.field("rearrange", rearrange,
            "exchange units within a block, their number fixed, by the products of their gradients");
  }
};

struct PrunerOptions {
  sparse::UnitImportance importance = sparse::UnitImportance::kParamFirst;
  sparse::UnitGrouping grouping = sparse::UnitGrouping::kSum;
  UnitSelection selection = UnitSelection::kLocal;
  int64_t protect_first = 0;
  int64_t protect_last = 0;

  void visit(FieldVisitor& v) {
    v.field("importance", importance,
            "what a weight counts for: param_first |w g|, param_second w^2 a, param_mix, vector (w g summed "
            "over a unit's rows or columns with its sign), or without gradients l1 |w| and l2 w^2");
    v.field("grouping", grouping, "how the importances of a unit's operators become one");
    v.field("selection", selection,
            "local: the same share of the units of every block; global: the least important units of all");
    v.field("protect_first", protect_first, {0}, "blocks at the beginning that keep all units");
    v.field("protect_last", protect_last, {0}, "blocks at the end that keep all units");
  }
};

/// What the survey chose for the operator that closes a dependency group; no setting of a job.
struct ChosenUnits {
  std::vector<int64_t> kept;

  void visit(FieldVisitor& /*v*/) {}
  std::string chosen() const { return fmt::format("{}", kept); }
};

using FisherMaskSettings = PassOptionsOf<ShrinkOptions, FisherMaskOptions, ChosenUnits>;
using PrunerSettings = PassOptionsOf<ShrinkOptions, PrunerOptions, ChosenUnits>;

/// Units that are not in `removed`, ascending.
std::vector<int64_t> complement(const std::vector<int64_t>& removed, int64_t units);

/// Mean gradients of `batch` consecutive samples each, float64 `[batches, units]`.
at::Tensor batched(const at::Tensor& gradients, int64_t batch);

/// From settings that are FisherMaskSettings, and PrunerSettings.
std::unique_ptr<Survey> fisher_mask_survey(const PassOptions& entry, const model::Model& model);
std::unique_ptr<Survey> llm_pruner_survey(const PassOptions& entry, const model::Model& model);

}  // namespace lcomp::pipeline
