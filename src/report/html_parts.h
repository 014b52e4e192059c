#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/pipeline/report_data.h"

/// The pieces that `to_html` puts together; each returns HTML whose text is escaped.
namespace lcomp::report::html {

/// A table cell: text for people, the exact value on hover and for sorting.
struct Cell {
  std::string text;
  std::string tip = {};
  std::optional<double> value = {};
  bool wrap = false;                 ///< long text that may break anywhere
  std::string swatch = {};           ///< CSS colour of a small square before the text
  std::optional<double> meter = {};  ///< a thin bar below the text that is filled by this share
};

/// A table whose first column is a row heading. `columns` are the headings; a leading '#' marks a column of
/// numbers, aligned right.
class Table {
 public:
  explicit Table(std::vector<std::string> columns, bool sortable = false);
  void row(const std::vector<Cell>& cells);
  bool empty() const { return body_.empty(); }
  std::string text() const;

 private:
  std::vector<std::string> columns_;
  bool sortable_;
  std::string body_;
};

/// `<dt>`/`<dd>` pairs; pairs without a value are left out.
using Facts = std::vector<std::pair<std::string, std::string>>;
std::string facts(const Facts& pairs);

/// A card with a heading that the navigation can point to.
std::string section(std::string_view id, std::string_view title, const std::string& body);

/// `<p class="lede">`: what the numbers below are.
std::string lede(std::string_view text);

// html_heatmap.cpp
std::string heat_map(const pipeline::RunReport& report);
std::string heat_style();  ///< the rules that colour the chosen metric

// html_charts.cpp
std::string phase_chart(const pipeline::RunReport& report);
std::string block_charts(const pipeline::RunReport& report);
std::string roofline_chart(const pipeline::RunReport& report);
std::string window_histogram(const pipeline::CalibrationFacts& calibration);

// html_tables.cpp
std::string evaluation_table(const pipeline::RunReport& report);
std::string kind_table(const pipeline::RunReport& report);
std::string worst_table(const pipeline::RunReport& report);
std::string operator_table(const pipeline::RunReport& report);
std::string ladder_tables(const pipeline::RunReport& report);
std::string outlier_table(const pipeline::RunReport& report);
std::string file_table(const pipeline::RunReport& report);

}  // namespace lcomp::report::html
