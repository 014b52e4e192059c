#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/pipeline/report_data.h"

/// What the pages show that the report does not hold as such: groupings, extremes, sentences.
namespace lcomp::report {

/// Blocks beyond this have no column in the heat map: a number from a file must not size the page.
inline constexpr int64_t kMaxColumns = 1024;

/// Operators arranged as kinds (rows, in order of first appearance) by blocks (columns).
/// Of several passes over one operator the last counts; operators outside the blocks are left out.
struct OperatorGrid {
  std::vector<std::string> kinds;
  int64_t columns = 0;  ///< blocks of the model, compressed or not, up to `kMaxColumns`
  std::map<std::pair<int64_t, int64_t>, const pipeline::OperatorRow*> cells;  ///< (kind, block)

  /// Null where the model has no such operator or it was not changed.
  const pipeline::OperatorRow* at(int64_t kind, int64_t block) const;
};

OperatorGrid arrange(const pipeline::RunReport& report);

/// The rows of `report.operators` that describe what was stored: for each name the last.
std::vector<const pipeline::OperatorRow*> final_rows(const pipeline::RunReport& report);

/// The operators of one kind together; means over those that have the number.
struct KindSummary {
  std::string kind;
  int64_t operators = 0;
  double bits_per_weight = 0;
  std::string stored;                      ///< "rank 106, pivoted; 3 other ways"
  std::optional<double> activation_error;  ///< mean
  std::optional<double> worst_activation_error;
  int64_t worst_block = -1;
  std::optional<double> weight_error;  ///< mean
  std::optional<double> loss_ratio;    ///< sum of losses over sum of the losses of rounding to nearest
};
std::vector<KindSummary> summarize_kinds(const pipeline::RunReport& report);

/// Bits per weight of the model as it came.
std::optional<double> bits_before(const pipeline::RunReport& report);

/// loss / rtn_loss, below 1 where the method beats rounding to nearest.
std::optional<double> loss_ratio(const pipeline::OperatorRow& row);

/// How often each step of the numerical ladder was the one that succeeded, from the regular one down.
struct RungCount {
  int64_t index = 0;
  std::string rung;
  int64_t operators = 0;
  double max_damping = 0;
};
std::vector<RungCount> count_rungs(const pipeline::RunReport& report);

/// Rows that went another way than the regular one (another rung, a fallback, dead columns), worst first.
std::vector<const pipeline::OperatorRow*> irregular_rows(const pipeline::RunReport& report);

/// The `n` rows with the largest activation-weighted error (weight error where that is absent).
std::vector<const pipeline::OperatorRow*> worst_rows(const pipeline::RunReport& report, size_t n);

/// First evaluation row of "dense" or "compressed"; an empty one when it was not evaluated.
pipeline::EvaluationRow evaluation_of(const pipeline::RunReport& report, std::string_view model);

/// Relative change from `from` to `to` for people; empty when either was not measured.
std::string describe_change(const std::optional<double>& from, const std::optional<double>& to);

/// "gptq: int4 symmetric, groups of 64; then ...".
std::string describe_passes(const pipeline::RunReport& report);

/// What a reader has to know first when the run is not done, or empty when it is.
std::string status_notice(const pipeline::RunReport& report);

/// "fma, avx2 · 2 threads · f32 arithmetic" and the like, empty parts left out.
std::string describe_host(const pipeline::HostFacts& host);

/// "74 windows of 64 to 2,048 tokens (mean 221)".
std::string describe_windows(const pipeline::CalibrationFacts& calibration);

/// "16 windows of 2,048 tokens, stride 2,048".
std::string describe_windows(const pipeline::EvaluationRow& row);

/// How the operators that round their input multiply it, in a sentence; empty when there are none.
std::string describe_products(const pipeline::RunReport& report);

/// How many outlier features were found, by which criteria; empty when no pass looked for any.
std::string describe_outliers(const pipeline::RunReport& report);

/// The outlier features worth a line of a table: the systematic ones first, `n` in all at most.
std::vector<const pipeline::OutlierRow*> shown_outliers(const pipeline::RunReport& report, size_t n);

/// The verdict of the verification in a sentence.
std::string describe_verification(const pipeline::RunReport& report);

}  // namespace lcomp::report
