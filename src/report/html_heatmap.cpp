#include <array>
#include <iterator>

#include "report/format.h"
#include "report/html_parts.h"
#include "report/view.h"

namespace lcomp::report::html {
namespace {

using pipeline::OperatorRow;
using pipeline::RunReport;

constexpr int kLevels = 10;

/// Numbers are printed in the cells up to this many blocks; columns narrower than a number show colour only.
constexpr int64_t kSnugColumns = 34;
constexpr int64_t kRoomyColumns = 10;

enum class Shape { kRange, kAroundOne };

/// One way to colour the map.
struct Metric {
  char id;    ///< prefix of the level classes
  char ramp;  ///< colour ramp of the style sheet
  Shape shape;
  std::string_view label;
  std::string_view unit;
  std::optional<double> (*value)(const OperatorRow&);
};

std::optional<double> as_percent(const std::optional<double>& share) {
  return share ? std::optional<double>(*share * 100) : std::nullopt;
}

const std::array<Metric, 4>& metrics() {
  static const std::array<Metric, 4> kMetrics = {{
      {'a', 'h', Shape::kRange, "Activation-weighted error", "%",
       [](const OperatorRow& row) { return as_percent(row.activation_error); }},
      {'w', 'h', Shape::kRange, "Weight error", "%",
       [](const OperatorRow& row) { return as_percent(row.weight_error); }},
      {'b', 'b', Shape::kRange, "Bits per weight", "bits",
       [](const OperatorRow& row) { return std::optional<double>(row.bits_per_weight); }},
      {'r', 'd', Shape::kAroundOne, "Loss against rounding", "",
       [](const OperatorRow& row) { return loss_ratio(row); }},
  }};
  return kMetrics;
}

/// Maps values to levels. A few extremes do not stretch the scale: it runs over the middle 96 % of the
/// values, and what lies outside gets the colour of the end. Ranges of more than a decade are split
/// logarithmically.
class Scale {
 public:
  Scale(const RunReport& report, const Metric& metric) : shape_(metric.shape) {
    for (const OperatorRow* row : final_rows(report)) {
      const auto value = row->block >= 0 ? metric.value(*row) : std::nullopt;
      if (value && std::isfinite(*value)) values_.push_back(*value);
    }
    if (values_.empty()) return;
    std::sort(values_.begin(), values_.end());
    const size_t cut = shape_ == Shape::kRange ? values_.size() / 50 : 0;
    low_ = values_[cut];
    high_ = values_[values_.size() - 1 - cut];
    logarithmic_ = shape_ == Shape::kRange && low_ > 0 && high_ > 12 * low_;
  }

  bool empty() const { return values_.empty(); }
  double low() const { return low_; }
  double high() const { return high_; }
  bool cut_below() const { return values_.front() < low_; }
  bool cut_above() const { return values_.back() > high_; }
  bool logarithmic() const { return logarithmic_; }

  int level(double value) const {
    if (!std::isfinite(value)) return kLevels - 1;
    const double position = shape_ == Shape::kAroundOne ? around_one(value) : between(value);
    return static_cast<int>(std::clamp(position, 0.0, 0.999) * kLevels);
  }

 private:
  double between(double value) const {
    if (!(high_ > low_)) return value < low_ ? 0 : value > high_ ? 1 : 0.35;  // All the same: a quiet colour.
    if (logarithmic_) return std::log(std::max(value, low_) / low_) / std::log(high_ / low_);
    return (value - low_) / (high_ - low_);
  }

  /// 1/2 at 1; both halves of the ramp span the same factor.
  double around_one(double value) const {
    const double low = std::max(low_, 1e-3);
    const double span =
        std::max({std::log(std::max(high_, 1.0)), -std::log(std::min(low, 1.0)), std::log(1.25)});
    return 0.5 + 0.499 * std::log(std::max(value, 1e-3)) / span;
  }

  Shape shape_;
  std::vector<double> values_;
  double low_ = 0;
  double high_ = 0;
  bool logarithmic_ = false;
};

struct Layer {
  const Metric* metric;
  Scale scale;
};

std::vector<Layer> layers(const RunReport& report) {
  std::vector<Layer> out;
  for (const Metric& metric : metrics()) {
    Scale scale(report, metric);
    if (!scale.empty()) out.push_back({&metric, scale});
  }
  return out;
}

std::string tip(const OperatorRow& row) {
  std::string out = row.name + "\n";
  const auto line = [&](std::string_view name, const std::string& value) {
    fmt::format_to(std::back_inserter(out), "{} {}\n", name, value);
  };
  line(row.method, "· " + row.scheme);
  line("shape", fmt::format("[{}, {}]", row.out_features, row.in_features));
  line("activation-weighted error", percent(row.activation_error, 4));
  line("weight error", percent(row.weight_error, 4) + ", largest " + number(row.max_abs_error, 3));
  line("bits per weight", number(row.bits_per_weight, 4));
  line("size", bytes(row.bytes_before) + " → " + bytes(row.bytes_after));
  if (const auto ratio = loss_ratio(row)) line("loss", number(*ratio, 3) + " times that of rounding");
  if (row.rung_index > 0) line("numerical rung:", row.rung);
  if (row.dead_columns > 0) line("dead columns", exact(row.dead_columns));
  if (row.fell_back) line("fell back:", row.fallback);
  out.pop_back();
  return out;
}

std::string cell(const OperatorRow* row, const std::vector<Layer>& shown, bool numbers) {
  if (row == nullptr) return "<td></td>";
  std::string classes;
  std::string text;
  for (const auto& [metric, scale] : shown) {
    const auto value = metric->value(*row);
    if (!value) continue;
    classes += fmt::format("{}{} ", metric->id, scale.level(*value));
    if (numbers) text += fmt::format("<i class={}>{}</i>", metric->id, number(*value, 2));
  }
  if (row->rung_index > 0) classes += "rung ";
  if (row->fell_back) classes += "fell ";
  if (!classes.empty()) classes.pop_back();
  return fmt::format("<td class=\"{}\" title=\"{}\">{}</td>", classes, escape_html(tip(*row)), text);
}

std::string header(int64_t columns) {
  const int64_t step = columns <= kSnugColumns ? 1 : 5;
  std::string out = "<thead><tr><th class=corner scope=col>block</th>";
  for (int64_t block = 0; block < columns; ++block)
    out += fmt::format("<th scope=col>{}</th>", block % step == 0 ? std::to_string(block) : "");
  return out + "</tr></thead>";
}

std::string grid_table(const OperatorGrid& grid, const std::vector<Layer>& shown) {
  const bool numbers = grid.columns <= kSnugColumns;
  const char* size = grid.columns <= kRoomyColumns ? "roomy" : numbers ? "snug" : "tight";
  std::string out = fmt::format(
      "<div class=scroll><table class=\"heat {0}\" style=\"--n:{1}\"><colgroup><col class=name><col "
      "span={1}>",
      size, grid.columns);
  out += "</colgroup>" + header(grid.columns) + "<tbody>";
  for (size_t kind = 0; kind < grid.kinds.size(); ++kind) {
    const std::string name = escape_html(grid.kinds[kind]);
    out += fmt::format("<tr><th scope=row title=\"{0}\">{0}</th>", name);
    for (int64_t block = 0; block < grid.columns; ++block)
      out += cell(grid.at(static_cast<int64_t>(kind), block), shown, numbers);
    out += "</tr>\n";
  }
  return out + "</tbody></table></div>";
}

std::string switches(const std::vector<Layer>& shown) {
  std::string inputs;
  std::string labels;
  for (const auto& [metric, scale] : shown) {
    inputs += fmt::format("<input class=sr type=radio name=map id=map-{}{}>", metric->id,
                          metric == shown.front().metric ? " checked" : "");
    labels += fmt::format("<label for=map-{}>{}</label>", metric->id, metric->label);
  }
  return inputs + "<div class=seg>" + labels + "</div>";
}

std::string legend(const Layer& layer) {
  const auto& [metric, scale] = layer;
  std::string ramp;
  for (int level = 0; level < kLevels; ++level)
    ramp += fmt::format("<b style=\"background:var(--{}{})\"></b>", metric->ramp, level);
  const std::string unit = metric->unit.empty() ? "" : " " + std::string(metric->unit);
  std::string low = number(scale.low(), 3) + unit + (scale.cut_below() ? " and less" : "");
  std::string high = number(scale.high(), 3) + unit + (scale.cut_above() ? " and more" : "");
  std::string note = scale.logarithmic() ? "logarithmic scale" : "";
  if (metric->shape == Shape::kAroundOne) {
    note = fmt::format("measured: {} to {}", low, high);
    low = "better than rounding";
    high = "worse";
  } else if (!(scale.high() > scale.low())) {
    note = "the same everywhere";
  }
  return fmt::format(
      "<div class=\"legend {}\"><span>{}</span><span class=ramp>{}</span><span>{}</span>"
      "<span>{}</span></div>",
      metric->id, low, ramp, high, note);
}

std::string key(const OperatorGrid& grid) {
  bool fell = false;
  bool rung = false;
  for (const auto& [place, row] : grid.cells) {
    fell = fell || row->fell_back;
    rung = rung || row->rung_index > 0;
  }
  const bool gaps =
      static_cast<int64_t>(grid.cells.size()) < static_cast<int64_t>(grid.kinds.size()) * grid.columns;
  std::string out;
  if (fell) out += "<span><b class=fell></b>fell back: the method's result was replaced</span>";
  if (rung) out += "<span><b class=rung></b>further down the numerical ladder</span>";
  if (gaps) out += "<span><b class=none></b>not compressed, or not yet</span>";
  return out.empty() ? out : "<div class=key>" + out + "</div>";
}

}  // namespace

std::string heat_style() {
  std::string out;
  auto to = std::back_inserter(out);
  for (const Metric& m : metrics()) {
    fmt::format_to(to, "#map-{0}:checked ~ .scroll .heat i.{0} {{ display: inline; }}\n", m.id);
    fmt::format_to(to, "#map-{0}:checked ~ .legend.{0} {{ display: flex; }}\n", m.id);
    fmt::format_to(
        to,
        "#map-{0}:checked ~ .seg label[for=map-{0}] {{ background: var(--card); color: var(--ink); "
        "box-shadow: 0 1px 3px #0003; }}\n",
        m.id);
    fmt::format_to(
        to, "#map-{0}:focus-visible ~ .seg label[for=map-{0}] {{ outline: 2px solid var(--accent); }}\n",
        m.id);
    for (int level = 0; level < kLevels; ++level) {
      // Text turns over where the ramp leaves the background; the ratio ramp does so at both ends.
      const bool far = m.shape == Shape::kAroundOne ? level < 2 || level > 7 : level > 5;
      fmt::format_to(
          to, "#map-{0}:checked ~ .scroll .{0}{1} {{ background: var(--{2}{1}); color: var(--{3}); }}\n",
          m.id, level, m.ramp, far ? "strong" : "weak");
    }
  }
  return out;
}

std::string heat_map(const RunReport& report) {
  const OperatorGrid grid = arrange(report);
  const std::vector<Layer> shown = layers(report);
  if (grid.kinds.empty() || shown.empty()) return "<p class=muted>No operator has been compressed.</p>";
  std::string out = "<div class=maps>" + switches(shown) + grid_table(grid, shown);
  for (const Layer& layer : shown) out += legend(layer);
  return out + key(grid) + "</div>";
}

}  // namespace lcomp::report::html
