#pragma once

#include "lcomp/lowrank/low_rank.h"
#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/report_data.h"
#include "lcomp/pipeline/survey.h"
#include "pipeline/passes/model_loss.h"

namespace lcomp::pipeline {

/// How the ranks of a pass are chosen.
enum class RankAllocation {
  kUniform,      ///< every operator loses the same share of its numbers
  kEnergy,       ///< every one keeps the same share of the energy of its outputs (at least)
  kSensitivity,  ///< none costs the model more than any other: one threshold on the estimated loss
  kBudget,       ///< the least sum of estimated losses (`allocate_amounts`)
};

/// Whether operators that read one input may share the factor that reads it.
enum class ShareFactor {
  kNone,
  kAuto,  ///< where as many numbers lose less so
};

struct RankOptions {
  double removed = 0.2;
  int64_t rank = 0;
  int64_t rank_multiple = 1;
  lowrank::Form form = lowrank::Form::kPivoted;
  lowrank::Solver solver = lowrank::Solver::kAuto;
  ShareFactor share = ShareFactor::kNone;
  RankAllocation allocation = RankAllocation::kUniform;
  double max_removed = 1;
  Sensitivity sensitivity = Sensitivity::kModelLoss;
  int64_t sampled_rows = 64;
  double trust = 0.7;

  void visit(FieldVisitor& v);
  std::vector<IdleSetting> idle() const;

  /// The rank of an operator; 0: it stays dense, because nothing is to be removed or factors would not be
  /// smaller.
  int64_t rank_of(int64_t out, int64_t in) const;
};

/// How the factors are stored.
struct FactorOptions {
  int64_t factor_bits = 16;
  int64_t factor_group_size = 0;

  bool operator==(const FactorOptions&) const = default;

  void visit(FieldVisitor& v);
  std::vector<IdleSetting> idle() const;

  bool quantizes() const { return factor_bits < 16; }
  quant::QuantScheme scheme() const;
};

/// Stores factors (`lowrank::StoreFactor`): in the model's type, or rounded by GPTQ with the second moment of
/// what each reads, by round to nearest without one.
class FactorStore {
 public:
  /// moment: of the operator's inputs, or null. Notes in `row` what rounding took. Both must outlive this.
  FactorStore(const FactorOptions& options, const lowrank::InputMetric* moment, at::ScalarType dtype,
              OperatorRow& row)
      : options_(options), moment_(moment), dtype_(dtype), row_(row) {}

  WeightPtr operator()(const at::Tensor& values, const Weight* right) const;

 private:
  FactorOptions options_;
  const lowrank::InputMetric* moment_;
  at::ScalarType dtype_;
  OperatorRow& row_;
};

/// What `factored_weight` stores for an operator at a rank: bytes and description.
PlannedWeight plan_factored(const FactorOptions& factors, lowrank::Form form, int64_t rank,
                            const char* method, const PlannedOperator& op);

/// What factoring makes of an operator; `method` is named in errors.
PlannedWeight plan_factors(const PassOptions& options, const char* method, const PlannedOperator& op);

/// The factors of an operator at full rank, for a survey: rank k is their first k columns and rows.
using FullFactors = std::function<lowrank::Factors(const at::Tensor& weight, const calib::InputStats& own,
                                                   const PassOptions& settings, ThreadPool* pool)>;

/// Lets a method whose settings have the part RankOptions choose ranks for the whole model: the survey, null
/// for uniform ranks, and the settings that hold for a whole pass. `needs`: statistics that `full` reads.
void add_rank_allocation(MethodInfo& info, calib::Needs needs, FullFactors full);

}  // namespace lcomp::pipeline

namespace lcomp {
template <>
struct EnumNames<pipeline::ShareFactor> {
  static constexpr std::array<std::string_view, 2> names = {"none", "auto"};
};
template <>
struct EnumNames<pipeline::RankAllocation> {
  static constexpr std::array<std::string_view, 4> names = {"uniform", "energy", "sensitivity", "budget"};
};
}  // namespace lcomp
