#include "report/html_parts.h"

#include "report/format.h"

namespace lcomp::report::html {
namespace {

bool is_number(const std::string& column) {
  return !column.empty() && column.front() == '#';
}

std::string attributes(const Cell& cell, bool numeric) {
  std::string out;
  if (numeric) out += " class=num";
  if (cell.wrap && !numeric) out += " class=wrap";
  if (!cell.tip.empty()) out += " title=\"" + escape_html(cell.tip) + "\"";
  if (cell.value && std::isfinite(*cell.value)) out += fmt::format(" data-v=\"{}\"", *cell.value);
  return out;
}

std::string content(const Cell& cell) {
  std::string out;
  if (!cell.swatch.empty())
    out += "<span class=swatch style=\"background:" + escape_html(cell.swatch) + "\"></span>";
  out += escape_html(cell.text);
  if (cell.meter)
    out += fmt::format("<div class=meter><span style=\"width:{:.1f}%\"></span></div>",
                       100 * std::clamp(*cell.meter, 0.0, 1.0));
  return out;
}

}  // namespace

Table::Table(std::vector<std::string> columns, bool sortable)
    : columns_(std::move(columns)), sortable_(sortable) {}

void Table::row(const std::vector<Cell>& cells) {
  body_ += "<tr>";
  for (size_t i = 0; i < columns_.size(); ++i) {
    const Cell cell = i < cells.size() ? cells[i] : Cell{std::string(kAbsent)};
    const char* tag = i == 0 ? "th" : "td";
    body_ += fmt::format("<{0}{1}{2}>{3}</{0}>", tag, i == 0 ? " scope=row" : "",
                         attributes(cell, is_number(columns_[i])), content(cell));
  }
  body_ += "</tr>\n";
}

std::string Table::text() const {
  // Few columns over the whole width would be hard to read across.
  const char* style = sortable_ ? " class=sortable" : columns_.size() <= 3 ? " class=small" : "";
  std::string out = fmt::format("<div class=scroll><table{}><thead><tr>", style);
  for (const std::string& column : columns_)
    out += fmt::format("<th scope=col{}>{}</th>", is_number(column) ? " class=num" : "",
                       escape_html(is_number(column) ? column.substr(1) : column));
  return out + "</tr></thead><tbody>\n" + body_ + "</tbody></table></div>\n";
}

std::string facts(const Facts& pairs) {
  std::string out;
  for (const auto& [name, value] : pairs)
    if (!value.empty()) out += "<dt>" + escape_html(name) + "</dt><dd>" + escape_html(value) + "</dd>\n";
  return out.empty() ? out : "<dl class=facts>" + out + "</dl>";
}

std::string section(std::string_view id, std::string_view title, const std::string& body) {
  return fmt::format("<section id={0} aria-labelledby=h-{0}><h2 id=h-{0}>{1}</h2>\n{2}</section>\n", id,
                     title, body);
}

std::string lede(std::string_view text) {
  return fmt::format("<p class=lede>{}</p>\n", escape_html(text));
}

}  // namespace lcomp::report::html
