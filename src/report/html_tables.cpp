#include "report/format.h"
#include "report/html_parts.h"
#include "report/view.h"

namespace lcomp::report::html {
namespace {

using pipeline::OperatorRow;
using pipeline::RunReport;

/// Operators shown in the tables of extremes; all of them are in the folded table and in report.json.
constexpr size_t kWorst = 8;
constexpr size_t kIrregular = 40;

Cell share_cell(const std::optional<double>& share) {
  return {percent(share), share ? fmt::format("{}", *share) : "", share};
}

Cell number_cell(const std::optional<double>& value, int digits = 4) {
  return {number(value, digits), value ? fmt::format("{}", *value) : "", value};
}

Cell bytes_cell(int64_t value) {
  if (value <= 0) return {std::string(kAbsent)};
  return {bytes(value), exact(value) + " bytes", static_cast<double>(value)};
}

Cell count_cell(int64_t value) {
  return {exact(value), "", static_cast<double>(value)};
}

Cell time_cell(double seconds) {
  return {duration(seconds), number(seconds, 6) + " s", seconds};
}

/// Sizes belong to a model, not to a text: the same in each of its rows.
std::pair<Cell, Cell> size_cells(const RunReport& report, std::string_view model) {
  if (model == "dense") return {bytes_cell(report.totals.bytes_before), number_cell(bits_before(report), 3)};
  if (model == "compressed")
    return {bytes_cell(report.totals.bytes_after), number_cell(report.totals.bits_per_weight, 3)};
  return {{std::string(kAbsent)}, {std::string(kAbsent)}};
}

/// The dense model's perplexity on the same text with the same windows.
std::optional<double> dense_perplexity(const RunReport& report, const pipeline::EvaluationRow& row) {
  for (const auto& other : report.evaluation)
    if (other.model == "dense" && other.text_hash == row.text_hash && other.window == row.window &&
        other.stride == row.stride && other.windows == row.windows)
      return other.perplexity;
  return std::nullopt;
}

std::string evaluation_protocols(const RunReport& report) {
  std::string out;
  std::vector<std::string> seen;
  for (const auto& row : report.evaluation) {
    const std::string text = facts({{"text", row.text},
                                    {"text hash", row.text_hash},
                                    {"tokenizer hash", row.tokenizer_hash},
                                    {"windows", describe_windows(row)},
                                    {"protocol", row.protocol}});
    if (std::find(seen.begin(), seen.end(), text) != seen.end()) continue;
    seen.push_back(text);
    out += text;
  }
  return out;
}

std::vector<Cell> worst_cells(const OperatorRow& row, double worst) {
  Cell error = share_cell(row.activation_error);
  if (row.activation_error && worst > 0) error.meter = *row.activation_error / worst;
  return {{row.name, row.scheme, {}, true}, error,
          share_cell(row.weight_error),     number_cell(row.max_abs_error, 3),
          number_cell(loss_ratio(row), 3),  number_cell(row.bits_per_weight, 3)};
}

}  // namespace

namespace {

/// Of an encoder: what its embeddings are beside the dense model's.
std::string embedding_table(const RunReport& report) {
  Table table({"model", "#size", "#bits per weight", "#embedding cosine", "#smallest", "#rank correlation",
               "#sentences", "#tokens", "#time"});
  for (const auto& row : report.evaluation) {
    const auto [size, bits] = size_cells(report, row.model);
    table.row({{row.model, row.text},
               size,
               bits,
               number_cell(row.embedding_cosine, 5),
               number_cell(row.embedding_cosine_min, 5),
               number_cell(row.rank_correlation, 5),
               count_cell(row.windows),
               count_cell(row.tokens),
               time_cell(row.seconds)});
  }
  return table.text() + evaluation_protocols(report);
}

}  // namespace

std::string evaluation_table(const RunReport& report) {
  if (evaluation_of(report, "compressed").embedding_cosine) return embedding_table(report);
  Table table({"model", "#size", "#bits per weight", "#perplexity", "#change", "#KL, nats", "#top-1",
               "#tokens", "#time"});
  for (const auto& row : report.evaluation) {
    const auto [size, bits] = size_cells(report, row.model);
    const std::string delta =
        row.model == "dense" ? "" : describe_change(dense_perplexity(report, row), row.perplexity);
    table.row({{row.model, row.text},
               size,
               bits,
               number_cell(row.perplexity, 5),
               {delta.empty() ? std::string(kAbsent) : delta},
               number_cell(row.kl_mean, 3),
               share_cell(row.top1_agreement),
               count_cell(row.tokens),
               time_cell(row.seconds)});
  }
  if (!table.empty()) return table.text() + evaluation_protocols(report);
  for (const std::string_view model : {"dense", "compressed"}) {
    const auto [size, bits] = size_cells(report, model);
    table.row({{std::string(model)}, size, bits, {"not measured"}});
  }
  return table.text();
}

std::string kind_table(const RunReport& report) {
  Table table({"kind", "#operators", "#bits per weight", "#activation error, mean", "#largest", "#in block",
               "#weight error, mean", "#loss against rounding", "stored"});
  for (const auto& k : summarize_kinds(report))
    table.row({{k.kind},
               count_cell(k.operators),
               number_cell(k.bits_per_weight, 3),
               share_cell(k.activation_error),
               share_cell(k.worst_activation_error),
               {k.worst_activation_error && k.worst_block >= 0 ? exact(k.worst_block) : std::string(kAbsent)},
               share_cell(k.weight_error),
               number_cell(k.loss_ratio, 3),
               {k.stored}});
  return table.empty() ? std::string() : table.text();
}

std::string worst_table(const RunReport& report) {
  const auto rows = worst_rows(report, kWorst);
  if (rows.empty()) return {};
  Table table({"operator", "#activation error", "#weight error", "#largest |W − Q|", "#loss against rounding",
               "#bits per weight"});
  for (const OperatorRow* row : rows)
    table.row(worst_cells(*row, rows.front()->activation_error.value_or(0)));
  return table.text();
}

std::string operator_table(const RunReport& report) {
  if (report.operators.empty()) return {};
  Table table(
      {"operator", "#out", "#in", "method", "scheme", "#bits", "#before", "#after", "#activation error",
       "#weight error", "#loss", "#of rounding", "#damping", "rung", "#dead", "#tokens", "#time"},
      /*sortable=*/true);
  for (const OperatorRow& row : report.operators)
    table.row({{row.name},
               count_cell(row.out_features),
               count_cell(row.in_features),
               {row.method},
               {row.scheme},
               number_cell(row.bits_per_weight, 4),
               bytes_cell(row.bytes_before),
               bytes_cell(row.bytes_after),
               share_cell(row.activation_error),
               share_cell(row.weight_error),
               number_cell(row.loss),
               number_cell(row.rtn_loss),
               number_cell(row.damping, 2),
               {row.fell_back ? row.rung + ", fell back" : row.rung, row.fallback},
               count_cell(row.dead_columns),
               count_cell(row.tokens),
               time_cell(row.seconds)});
  return fmt::format("<details class=long><summary>All {} operators</summary>{}</details>",
                     exact(static_cast<int64_t>(report.operators.size())), table.text());
}

std::string ladder_tables(const RunReport& report) {
  const auto rungs = count_rungs(report);
  if (rungs.empty()) return "<p class=muted>No second moment had to be factored.</p>";
  Table ladder({"rung that succeeded", "#operators", "#largest damping"});
  for (const auto& rung : rungs)
    ladder.row({{rung.rung}, count_cell(rung.operators), number_cell(rung.max_damping, 2)});
  const auto rows = irregular_rows(report);
  if (rows.empty()) return ladder.text() + "<p class=ok>Every operator went the regular way.</p>";
  Table table({"operator", "rung", "#damping", "#dead columns", "fallback"});
  for (size_t i = 0; i < std::min(rows.size(), kIrregular); ++i)
    table.row({{rows[i]->name, "", {}, true},
               {rows[i]->rung},
               number_cell(rows[i]->damping, 2),
               count_cell(rows[i]->dead_columns),
               {rows[i]->fell_back ? rows[i]->fallback : "", "", {}, true}});
  std::string out = ladder.text() + "<h3>Operators that needed more</h3>" + table.text();
  if (rows.size() > kIrregular)
    out += fmt::format("<p class=muted>{} more in report.json.</p>",
                       exact(static_cast<int64_t>(rows.size() - kIrregular)));
  return out;
}

std::string outlier_table(const RunReport& report) {
  if (report.outliers.empty()) return {};
  Table table({"input of", "#feature", "#layers", "#tokens", "systematic"}, /*sortable=*/true);
  for (const auto* row : shown_outliers(report, kIrregular))
    table.row({{row->kind},
               count_cell(row->feature),
               share_cell(row->layers),
               share_cell(row->tokens),
               {row->systematic ? "yes" : "no"}});
  return table.text();
}

std::string file_table(const RunReport& report) {
  if (report.totals.files.empty()) return {};
  Table table({"file", "#size", "hash (XXH3-128)"});
  for (const auto& file : report.totals.files)
    table.row({{file.path, "", {}, true}, bytes_cell(file.bytes), {file.hash}});
  return table.text();
}

}  // namespace lcomp::report::html
