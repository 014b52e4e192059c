#include "report/view.h"

#include <set>

#include "report/format.h"

namespace lcomp::report {
namespace {

using pipeline::OperatorRow;
using pipeline::RunReport;
using pipeline::RunStatus;

double error_of(const OperatorRow& row) {
  return row.activation_error.value_or(row.weight_error.value_or(-1));
}

/// Larger is further from the regular way.
std::pair<bool, int64_t> severity(const OperatorRow& row) {
  return {row.fell_back, row.rung_index};
}

/// A mean over the values that are there.
class Mean {
 public:
  void add(const std::optional<double>& value) {
    if (!value) return;
    sum_ += *value;
    ++count_;
  }
  std::optional<double> get() const {
    return count_ > 0 ? std::optional<double>(sum_ / static_cast<double>(count_)) : std::nullopt;
  }

 private:
  double sum_ = 0;
  int64_t count_ = 0;
};

class KindTotals {
 public:
  void add(const OperatorRow& row) {
    out_.kind = row.kind;
    ++out_.operators;
    if (std::find(schemes_.begin(), schemes_.end(), row.scheme) == schemes_.end())
      schemes_.push_back(row.scheme);
    bytes_ += static_cast<double>(row.bytes_after);
    weights_ += static_cast<double>(row.out_features) * static_cast<double>(row.in_features);
    activation_.add(row.activation_error);
    weight_.add(row.weight_error);
    if (row.activation_error > out_.worst_activation_error) {
      out_.worst_activation_error = row.activation_error;
      out_.worst_block = row.block;
    }
    if (!loss_ratio(row)) return;
    loss_ += *row.loss;
    rtn_loss_ += *row.rtn_loss;
  }

  KindSummary summary() const {
    KindSummary out = out_;
    out.bits_per_weight = weights_ > 0 ? 8 * bytes_ / weights_ : 0;
    out.stored = schemes_.front();
    if (schemes_.size() > 1)
      out.stored += fmt::format("; {} other {}", schemes_.size() - 1, schemes_.size() > 2 ? "ways" : "way");
    out.activation_error = activation_.get();
    out.weight_error = weight_.get();
    if (rtn_loss_ > 0) out.loss_ratio = loss_ / rtn_loss_;
    return out;
  }

 private:
  KindSummary out_;
  std::vector<std::string> schemes_;
  Mean activation_, weight_;
  double bytes_ = 0, weights_ = 0, loss_ = 0, rtn_loss_ = 0;
};

std::string blocks_done(const RunReport& report) {
  const auto done = static_cast<int64_t>(report.blocks.size());
  if (report.model.blocks <= 0) return "No block is done yet.";
  return fmt::format("{} of {} blocks are done.", exact(done), exact(report.model.blocks));
}

}  // namespace

const OperatorRow* OperatorGrid::at(int64_t kind, int64_t block) const {
  const auto found = cells.find({kind, block});
  return found == cells.end() ? nullptr : found->second;
}

OperatorGrid arrange(const RunReport& report) {
  OperatorGrid grid;
  grid.columns = report.model.blocks;
  std::map<std::string, int64_t> position;
  for (const OperatorRow* row : final_rows(report)) {
    if (row->block < 0) continue;
    const auto [found, fresh] = position.try_emplace(row->kind, static_cast<int64_t>(position.size()));
    if (fresh) grid.kinds.push_back(row->kind);
    grid.cells[{found->second, row->block}] = row;
    grid.columns = std::max(grid.columns, row->block < kMaxColumns ? row->block + 1 : kMaxColumns);
  }
  grid.columns = std::clamp<int64_t>(grid.columns, 0, kMaxColumns);
  return grid;
}

std::vector<const OperatorRow*> final_rows(const RunReport& report) {
  std::map<std::string_view, size_t> position;
  std::vector<const OperatorRow*> rows;
  for (const OperatorRow& row : report.operators) {
    const auto [found, fresh] = position.try_emplace(row.name, rows.size());
    if (fresh) {
      rows.push_back(&row);
    } else {
      rows[found->second] = &row;
    }
  }
  return rows;
}

std::vector<KindSummary> summarize_kinds(const RunReport& report) {
  std::map<std::string, size_t> position;
  std::vector<KindTotals> totals;
  for (const OperatorRow* row : final_rows(report)) {
    const auto [found, fresh] = position.try_emplace(row->kind, totals.size());
    if (fresh) totals.emplace_back();
    totals[found->second].add(*row);
  }
  std::vector<KindSummary> out;
  out.reserve(totals.size());
  for (const KindTotals& entry : totals) out.push_back(entry.summary());
  return out;
}

std::optional<double> bits_before(const RunReport& report) {
  const auto& totals = report.totals;
  if (totals.bytes_before <= 0 || totals.parameters <= 0) return std::nullopt;
  return 8.0 * static_cast<double>(totals.bytes_before) / static_cast<double>(totals.parameters);
}

std::optional<double> loss_ratio(const OperatorRow& row) {
  if (!row.loss || !row.rtn_loss || !(*row.rtn_loss > 0)) return std::nullopt;
  return *row.loss / *row.rtn_loss;
}

std::vector<RungCount> count_rungs(const RunReport& report) {
  std::map<std::pair<int64_t, std::string>, RungCount> counts;
  for (const OperatorRow& row : report.operators) {
    if (row.rung.empty()) continue;
    RungCount& entry = counts[{row.rung_index, row.rung}];
    entry.index = row.rung_index;
    entry.rung = row.rung;
    ++entry.operators;
    entry.max_damping = std::max(entry.max_damping, row.damping.value_or(0));
  }
  std::vector<RungCount> out;
  out.reserve(counts.size());
  for (auto& [key, entry] : counts) out.push_back(std::move(entry));
  return out;
}

std::vector<const OperatorRow*> irregular_rows(const RunReport& report) {
  std::vector<const OperatorRow*> rows;
  for (const OperatorRow& row : report.operators)
    if (row.fell_back || row.rung_index > 0 || row.dead_columns > 0) rows.push_back(&row);
  std::stable_sort(rows.begin(), rows.end(),
                   [](const auto* a, const auto* b) { return severity(*a) > severity(*b); });
  return rows;
}

std::vector<const OperatorRow*> worst_rows(const RunReport& report, size_t n) {
  std::vector<const OperatorRow*> rows = final_rows(report);
  std::erase_if(rows, [](const auto* row) { return !(error_of(*row) >= 0); });
  std::stable_sort(rows.begin(), rows.end(),
                   [](const auto* a, const auto* b) { return error_of(*a) > error_of(*b); });
  if (rows.size() > n) rows.resize(n);
  return rows;
}

pipeline::EvaluationRow evaluation_of(const RunReport& report, std::string_view model) {
  for (const auto& row : report.evaluation)
    if (row.model == model) return row;
  return {};
}

std::string describe_change(const std::optional<double>& from, const std::optional<double>& to) {
  return from && to ? change(*from, *to) : std::string();
}

std::string describe_passes(const RunReport& report) {
  // The embedding is compressed before the blocks.
  std::vector<std::string> parts;
  for (const auto& pass : report.passes) {
    const std::string text = pass.summary.empty() ? pass.method : pass.method + ": " + pass.summary;
    parts.insert(pass.method == pipeline::kEmbeddingPass ? parts.begin() : parts.end(), text);
  }
  return fmt::format("{}", fmt::join(parts, "; then "));
}

std::string status_notice(const RunReport& report) {
  switch (report.status) {
    case RunStatus::kDone:
      return {};
    case RunStatus::kRunning:
      return "This report was written while the run was on. " + blocks_done(report) +
             " If no lcomp process is at work any more, the run was killed: the same command continues it.";
    case RunStatus::kInterrupted:
      return "The run was interrupted. " + blocks_done(report) + " The same command continues it.";
    case RunStatus::kFailed:
      return "The run failed. " + blocks_done(report) + " Nothing was published. " + report.message;
  }
  return {};
}

std::string describe_host(const pipeline::HostFacts& host) {
  std::vector<std::string> parts;
  if (!host.processor.empty()) parts.push_back(host.processor);
  if (!host.instructions.empty()) parts.push_back(fmt::format("{}", fmt::join(host.instructions, " ")));
  if (host.threads > 0)
    parts.push_back(fmt::format("{} {}", host.threads, host.threads == 1 ? "thread" : "threads"));
  if (!host.compute.empty()) parts.push_back(host.compute + " arithmetic");
  return fmt::format("{}", fmt::join(parts, " · "));
}

std::string describe_windows(const pipeline::CalibrationFacts& calibration) {
  int64_t windows = 0;
  double tokens = 0;
  for (const auto& entry : calibration.lengths) {
    windows += entry.count;
    tokens += static_cast<double>(entry.length) * static_cast<double>(entry.count);
  }
  if (windows <= 0) return fmt::format("{} windows", exact(calibration.samples));
  const int64_t low = calibration.lengths.front().length;
  const int64_t high = calibration.lengths.back().length;
  if (low == high) return fmt::format("{} windows of {} tokens", exact(windows), exact(low));
  return fmt::format("{} windows of {} to {} tokens (mean {})", exact(windows), exact(low), exact(high),
                     number(tokens / static_cast<double>(windows), 3));
}

std::string describe_windows(const pipeline::EvaluationRow& row) {
  if (row.stride == 0)  // sentences do not overlap
    return fmt::format("{} sentences of up to {} tokens", exact(row.windows), exact(row.window));
  return fmt::format("{} {} of {} tokens, stride {}", exact(row.windows),
                     row.windows == 1 ? "window" : "windows", exact(row.window), exact(row.stride));
}

std::string describe_products(const RunReport& report) {
  std::map<std::string, int64_t> counts;
  for (const auto& row : report.operators) {
    if (!row.product.empty()) ++counts[row.product];
  }
  std::string out;
  for (const auto& [product, operators] : counts)
    out += fmt::format("{}{} operators by {}", out.empty() ? "Rounded inputs are multiplied in " : ", in ",
                       exact(operators), product);
  return out.empty() ? out : out + ".";
}

std::string describe_outliers(const RunReport& report) {
  if (report.outliers.empty()) return "";
  const auto systematic = std::count_if(report.outliers.begin(), report.outliers.end(),
                                        [](const pipeline::OutlierRow& row) { return row.systematic; });
  return fmt::format(
      "{} input features had an outlier on some token; {} of them systematically: in at least 25 % "
      "of the layers and on at least 6 % of the tokens.",
      exact(static_cast<int64_t>(report.outliers.size())), exact(systematic));
}

std::vector<const pipeline::OutlierRow*> shown_outliers(const RunReport& report, size_t n) {
  std::vector<const pipeline::OutlierRow*> rows;
  for (const auto& row : report.outliers) rows.push_back(&row);
  std::stable_sort(rows.begin(), rows.end(), [](const auto* a, const auto* b) {
    return std::tuple(a->systematic, a->layers, a->tokens) > std::tuple(b->systematic, b->layers, b->tokens);
  });
  if (rows.size() > n) rows.resize(n);
  return rows;
}

std::string describe_verification(const RunReport& report) {
  if (!report.verification) return "The output has not been verified.";
  const auto& v = *report.verification;
  const std::string counts =
      fmt::format("{} tensors decoded and {} compared, {} files hashed, {}", exact(v.tensors_decoded),
                  exact(v.tensors_compared), exact(v.files_hashed), duration(v.seconds));
  if (v.passed)
    return "Verified: the output was reopened from disk and agrees with what was computed (" + counts + ").";
  return fmt::format("Verification FAILED ({}): {}", counts, v.message);
}

}  // namespace lcomp::report
