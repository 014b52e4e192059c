#include <array>
#include <iterator>

#include "report/format.h"
#include "report/html_parts.h"
#include "report/view.h"

namespace lcomp::report::html {
namespace {

using pipeline::BlockRow;
using pipeline::RunReport;

/// The phases that have a colour of their own in the style sheet.
constexpr std::array<std::string_view, 7> kPhases = {"load",  "calibrate", "solve",   "forward",
                                                     "write", "verify",    "evaluate"};

std::string colour(std::string_view phase) {
  const bool known = std::find(kPhases.begin(), kPhases.end(), phase) != kPhases.end();
  return fmt::format("var(--{})", known ? phase : "other");
}

std::string swatch(std::string_view phase) {
  return fmt::format("<span class=swatch style=\"background:{}\"></span>", colour(phase));
}

std::array<std::pair<std::string_view, double>, 5> phases_of(const BlockRow& row) {
  return {{{"load", row.load_seconds},
           {"calibrate", row.calibrate_seconds},
           {"solve", row.solve_seconds},
           {"forward", row.forward_seconds},
           {"write", row.write_seconds}}};
}

/// A height or width as CSS wants it; what is not a share of the whole is nothing.
std::string css_percent(double part, double whole) {
  const double share = whole > 0 && std::isfinite(part) ? std::clamp(part / whole, 0.0, 1.0) : 0.0;
  return fmt::format("{:.2f}%", 100 * share);
}

std::string block_tip(const BlockRow& row) {
  std::string out = fmt::format("block {}\n", row.block);
  for (const auto& [phase, seconds] : phases_of(row)) out += fmt::format("{} {}\n", phase, duration(seconds));
  out += "together " + duration(row.seconds());
  if (row.resumed) out += "\ntaken from the journal of an earlier run";
  return out;
}

std::string ticks(const std::vector<BlockRow>& rows) {
  const size_t step = rows.size() <= 34 ? 1 : 5;
  std::string out = "<div class=ticks>";
  for (size_t i = 0; i < rows.size(); ++i)
    out += fmt::format("<span>{}</span>", i % step == 0 ? std::to_string(rows[i].block) : "");
  return out + "</div>";
}

std::string time_columns(const std::vector<BlockRow>& rows) {
  double most = 0;
  for (const BlockRow& row : rows) most = std::max(most, row.seconds());
  std::string legend = "<div class=inline>";
  for (const auto& [phase, seconds] : phases_of({}))
    legend += fmt::format("<span>{}{}</span>", swatch(phase), phase);
  std::string out = legend + fmt::format("<span>full height: {}</span></div>", duration(most));
  out += "<div class=scroll><div class=\"chart tall\">";
  for (const BlockRow& row : rows) {
    out += fmt::format("<div class=col title=\"{}\">", escape_html(block_tip(row)));
    const auto phases = phases_of(row);
    for (size_t i = phases.size(); i-- > 0;) {
      const auto& [phase, seconds] = phases[i];
      out += fmt::format("<span style=\"height:{};background:{}\"></span>", css_percent(seconds, most),
                         colour(phase));
    }
    out += "</div>";
  }
  return out + "</div>" + ticks(rows) + "</div>\n";
}

std::string drift_columns(const std::vector<BlockRow>& rows) {
  double most = 0;
  for (const BlockRow& row : rows)
    if (row.output_drift && std::isfinite(*row.output_drift)) most = std::max(most, *row.output_drift);
  if (!(most > 0)) return {};
  std::string out =
      "<h3>Drift of the hidden states behind each block</h3><p class=lede>Relative difference between the "
      "dense and the compressed model on the windows of the evaluation, the errors of all earlier blocks "
      "included.</p>";
  out += fmt::format("<div class=inline><span>full height: {}</span></div>", percent(most));
  out += "<div class=scroll><div class=\"chart low\">";
  for (const BlockRow& row : rows)
    out += fmt::format(
        "<div class=col title=\"block {}&#10;drift {}\"><span style=\"height:{};"
        "background:var(--h5)\"></span></div>",
        row.block, percent(row.output_drift, 4), css_percent(row.output_drift.value_or(0), most));
  return out + "</div>" + ticks(rows) + "</div>\n";
}

}  // namespace

std::string phase_chart(const RunReport& report) {
  const auto& timings = report.timings;
  if (timings.phases.empty()) return {};
  double sum = 0;
  for (const auto& phase : timings.phases) sum += phase.wall_seconds;
  const double whole = std::max(sum, timings.wall_seconds);
  std::string bar = "<div class=bar>";
  Table table({"phase", "#wall", "#share of wall", "#processor", "#cores busy"});
  for (const auto& phase : timings.phases) {
    const std::string name = escape_html(phase.phase);
    const std::string share = percent(whole > 0 ? phase.wall_seconds / whole : 0);
    bar += fmt::format("<span style=\"width:{};background:{}\" title=\"{}&#10;{} wall, {}\"></span>",
                       css_percent(phase.wall_seconds, whole), colour(phase.phase), name,
                       duration(phase.wall_seconds), share);
    const double cores = phase.wall_seconds > 0 ? phase.cpu_seconds / phase.wall_seconds : 0;
    table.row({{phase.phase, "", {}, false, colour(phase.phase)},
               {duration(phase.wall_seconds), number(phase.wall_seconds, 6) + " s"},
               {share},
               {duration(phase.cpu_seconds), number(phase.cpu_seconds, 6) + " s"},
               {number(cores, 3)}});
  }
  if (whole - sum > 0.001 * whole)
    table.row({{"elsewhere", "", {}, false, "var(--soft)"},
               {duration(whole - sum), number(whole - sum, 6) + " s"},
               {percent((whole - sum) / whole)},
               {std::string(kAbsent)},
               {std::string(kAbsent)}});
  return bar + "</div>" + table.text();
}

std::string block_charts(const RunReport& report) {
  if (report.blocks.empty()) return {};
  // Columns as in the heat map: a page for people does not grow without bound.
  std::vector<BlockRow> rows = report.blocks;
  if (rows.size() > static_cast<size_t>(kMaxColumns)) rows.resize(kMaxColumns);
  return "<h3>Wall time per block</h3>" + time_columns(rows) + drift_columns(rows);
}

std::string roofline_chart(const RunReport& report) {
  std::string out;
  for (const auto& row : report.roofline) {
    const auto achieved = row.achieved_gflops();
    std::string verdict = number(achieved, 3) + " GFLOP/s per core";
    if (row.share())
      verdict = fmt::format("{} of {} GFLOP/s per core, <strong>{}</strong>", number(achieved, 3),
                            number(row.peak_gflops, 3), percent(row.share()));
    out += fmt::format(
        "<div class=meterline><span>{} <span class=muted>· {} · {} in {} of processor "
        "time</span></span><span>{}</span>"
        "</div>",
        escape_html(row.phase), escape_html(row.precision), flops(row.flops), duration(row.seconds), verdict);
    out += fmt::format(
        "<div class=meter title=\"{} {}&#10;{} of the measured GEMM peak\"><span style=\"width:{}\">"
        "</span></div>\n",
        escape_html(row.phase), escape_html(row.precision), percent(row.share()),
        css_percent(row.share().value_or(0), 1));
  }
  return out;
}

std::string window_histogram(const pipeline::CalibrationFacts& calibration) {
  const auto& lengths = calibration.lengths;
  if (lengths.size() < 2 || lengths.size() > 24) return {};
  int64_t most = 1;
  for (const auto& entry : lengths) most = std::max(most, entry.count);
  std::string bars = "<h3>Windows by length in tokens</h3><div class=histogram>";
  std::string labels = "<div class=histlabels>";
  for (const auto& entry : lengths) {
    bars += fmt::format("<span style=\"height:{}\" title=\"{} tokens&#10;{} windows\"></span>",
                        css_percent(static_cast<double>(entry.count), static_cast<double>(most)),
                        exact(entry.length), exact(entry.count));
    labels += fmt::format("<span>{}</span>", entry.length);
  }
  return bars + "</div>" + labels + "</div>";
}

}  // namespace lcomp::report::html
