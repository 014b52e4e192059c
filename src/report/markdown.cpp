#include <iterator>

#include "lcomp/report/report.h"
#include "report/format.h"
#include "report/view.h"

namespace lcomp::report {
namespace {

using pipeline::RunReport;

/// Rows that a table of single operators shows; the rest is in report.json.
constexpr size_t kShownRows = 25;

/// A Markdown table: a header and rows of as many cells, each escaped unless it is ours.
class Table {
 public:
  explicit Table(const std::vector<std::string>& header) : columns_(header.size()) {
    row(header);
    out_ += "|";
    for (size_t i = 0; i < columns_; ++i) out_ += i == 0 ? " --- |" : " ---: |";
    out_ += "\n";
  }

  void row(const std::vector<std::string>& cells) {
    out_ += "|";
    for (size_t i = 0; i < columns_; ++i)
      out_ += fmt::format(" {} |", i < cells.size() ? escape_markdown(cells[i]) : "");
    out_ += "\n";
  }

  std::string text() const { return out_ + "\n"; }

 private:
  size_t columns_;
  std::string out_;
};

std::string comparison(const RunReport& r) {
  const auto& totals = r.totals;
  const auto size = [](int64_t value) { return value > 0 ? bytes(value) : std::string(kAbsent); };
  const auto known = [](int64_t value) {
    return value > 0 ? std::optional<double>(static_cast<double>(value)) : std::nullopt;
  };
  const auto before = evaluation_of(r, "dense").perplexity;
  const auto ours = evaluation_of(r, "compressed");
  Table table({"", "before", "after", "change"});
  table.row({"size of the tensors", size(totals.bytes_before), size(totals.bytes_after),
             describe_change(known(totals.bytes_before), known(totals.bytes_after))});
  table.row({"bits per weight", number(bits_before(r)), number(totals.bits_per_weight),
             totals.operator_bits_per_weight
                 ? number(*totals.operator_bits_per_weight) + " in compressed operators"
                 : ""});
  if (totals.numbers_after) {
    table.row({"numbers that weights are made of", exact(totals.parameters), exact(*totals.numbers_after),
               describe_change(known(totals.parameters), known(*totals.numbers_after))});
    table.row({"multiply-adds per token, blocks", exact(*totals.macs_before), exact(*totals.macs_after),
               describe_change(known(*totals.macs_before), known(*totals.macs_after))});
  }
  if (ours.embedding_cosine) {
    table.row({"embedding cosine with dense", "", number(ours.embedding_cosine, 5),
               "smallest " + number(ours.embedding_cosine_min, 5)});
    table.row({"rank correlation with dense", "", number(ours.rank_correlation, 5), ""});
    return table.text();
  }
  table.row(
      {"perplexity", number(before), number(ours.perplexity), describe_change(before, ours.perplexity)});
  table.row({"KL from dense, nats per token", "", number(ours.kl_mean, 3), ""});
  table.row({"top-1 agreement with dense", "", percent(ours.top1_agreement), ""});
  return table.text();
}

std::string evaluation(const RunReport& r) {
  if (r.evaluation.empty()) return "Not evaluated.\n\n";
  const bool embeddings = evaluation_of(r, "compressed").embedding_cosine.has_value();
  Table table(embeddings ? std::vector<std::string>{"model", "text", "embedding cosine", "smallest",
                                                    "rank correlation", "tokens", "sentences", "time"}
                         : std::vector<std::string>{"model", "text", "perplexity", "KL", "top-1", "tokens",
                                                    "windows", "time"});
  for (const auto& e : r.evaluation) {
    if (embeddings) {
      table.row({e.model, base_name(e.text), number(e.embedding_cosine, 5), number(e.embedding_cosine_min, 5),
                 number(e.rank_correlation, 5), exact(e.tokens), exact(e.windows), duration(e.seconds)});
    } else {
      table.row({e.model, base_name(e.text), number(e.perplexity, 5), number(e.kl_mean, 3),
                 percent(e.top1_agreement), exact(e.tokens), describe_windows(e), duration(e.seconds)});
    }
  }
  std::string out = table.text();
  const auto& e = r.evaluation.front();
  out += escape_markdown(e.protocol) + "\n\n";
  out += fmt::format("Text {}, hash {}; tokenizer hash {}.\n\n", escape_markdown(e.text),
                     escape_markdown(e.text_hash), escape_markdown(e.tokenizer_hash));
  return out;
}

std::string operators(const RunReport& r) {
  if (r.operators.empty()) return "No operator has been compressed.\n\n";
  Table kinds({"kind", "operators", "bits per weight", "activation error, mean", "largest (block)",
               "weight error, mean", "loss / rounding's", "stored"});
  for (const auto& k : summarize_kinds(r))
    kinds.row({k.kind, exact(k.operators), number(k.bits_per_weight), percent(k.activation_error),
               k.worst_activation_error
                   ? fmt::format("{} ({})", percent(k.worst_activation_error), k.worst_block)
                   : std::string(kAbsent),
               percent(k.weight_error), number(k.loss_ratio, 3), k.stored});
  return kinds.text();
}

std::string numerics(const RunReport& r) {
  std::string out;
  const auto rungs = count_rungs(r);
  if (rungs.empty()) return "No second moment had to be factored.\n\n";
  Table ladder({"rung", "operators", "largest damping"});
  for (const auto& rung : rungs) ladder.row({rung.rung, exact(rung.operators), number(rung.max_damping, 2)});
  out += ladder.text();
  const auto rows = irregular_rows(r);
  if (rows.empty()) return out + "Every operator went the regular way.\n\n";
  Table table({"operator", "rung", "damping", "dead columns", "fallback"});
  for (size_t i = 0; i < std::min(rows.size(), kShownRows); ++i)
    table.row({rows[i]->name, rows[i]->rung, number(rows[i]->damping, 2), exact(rows[i]->dead_columns),
               rows[i]->fell_back ? rows[i]->fallback : ""});
  out += table.text();
  if (rows.size() > kShownRows)
    out += fmt::format("{} more in report.json.\n\n", exact(static_cast<int64_t>(rows.size() - kShownRows)));
  return out;
}

std::string rounded_inputs(const RunReport& r) {
  const std::string products = describe_products(r), outliers = describe_outliers(r);
  if (products.empty() && outliers.empty()) return {};
  std::string out = "## Rounded inputs\n\n";
  for (const std::string& sentence : {products, outliers})
    if (!sentence.empty()) out += escape_markdown(sentence) + "\n\n";
  if (r.outliers.empty()) return out;
  Table table({"input of", "feature", "layers", "tokens", "systematic"});
  for (const auto* row : shown_outliers(r, kShownRows))
    table.row({row->kind, exact(row->feature), percent(row->layers), percent(row->tokens),
               row->systematic ? "yes" : "no"});
  return out + table.text();
}

std::string times(const RunReport& r) {
  const auto& t = r.timings;
  std::string out = fmt::format(
      "{} wall, {} of processor time ({} of it in the kernel), peak memory {} "
      "({} planned).\n\n",
      duration(t.wall_seconds), duration(t.cpu_user_seconds + t.cpu_system_seconds),
      duration(t.cpu_system_seconds), bytes(t.peak_rss_bytes), bytes(t.planned_peak_bytes));
  if (!t.phases.empty()) {
    Table table({"phase", "wall", "processor", "share of wall"});
    for (const auto& phase : t.phases)
      table.row({phase.phase, duration(phase.wall_seconds), duration(phase.cpu_seconds),
                 t.wall_seconds > 0 ? percent(phase.wall_seconds / t.wall_seconds) : std::string(kAbsent)});
    out += table.text();
  }
  if (!r.roofline.empty()) {
    Table table({"matrix products", "precision", "counted", "processor time", "GFLOP/s per core", "GEMM peak",
                 "share"});
    for (const auto& row : r.roofline)
      table.row({row.phase, row.precision, flops(row.flops), duration(row.seconds),
                 number(row.achieved_gflops(), 3),
                 row.peak_gflops > 0 ? number(row.peak_gflops, 3) : std::string(kAbsent),
                 percent(row.share())});
    out += table.text();
  }
  return out;
}

std::string provenance(const RunReport& r) {
  std::string out;
  const auto item = [&](std::string_view name, const std::string& value) {
    if (!value.empty()) fmt::format_to(std::back_inserter(out), "- {}: {}\n", name, escape_markdown(value));
  };
  item("model",
       fmt::format("{} ({}, {}, {} parameters, {} blocks, {})", r.model.path, r.model.family, r.model.dtype,
                   count(r.model.parameters), exact(r.model.blocks), bytes(r.model.bytes)));
  item("output", r.output);
  item("machine", describe_host(r.host));
  if (r.calibration) {
    const auto& c = *r.calibration;
    item("calibration", fmt::format("{}, {}, {} tokens, {} sequence starts", c.file, describe_windows(c),
                                    exact(c.tokens), exact(c.sequence_starts)));
    item("short samples", fmt::format("{}; {} packed, {} dropped", c.short_policy, exact(c.short_packed),
                                      exact(c.short_dropped)));
    item("calibration text hash", c.text_hash);
    item("tokenizer hash", c.tokenizer_hash);
  }
  item("started", r.started_at);
  item("finished", r.finished_at);
  item("lcomp", r.version);
  return out + "\n";
}

std::string files(const RunReport& r) {
  if (r.totals.files.empty()) return {};
  Table table({"file", "bytes", "hash"});
  for (const auto& file : r.totals.files) table.row({file.path, exact(file.bytes), file.hash});
  return table.text();
}

/// A fence longer than any run of backticks in the text, so that the text cannot end it.
std::string code_block(const std::string& text) {
  size_t longest = 2;
  size_t run = 0;
  for (const char c : text) {
    run = c == '`' ? run + 1 : 0;
    longest = std::max(longest, run);
  }
  const std::string fence(longest + 1, '`');
  return fence + "json\n" + text + "\n" + fence + "\n";
}

}  // namespace

std::string to_markdown(const RunReport& report) {
  std::string out = "# " + escape_markdown(base_name(report.model.path)) + ", compressed by lcomp\n\n";
  out += escape_markdown(describe_passes(report)) + "\n\n";
  const std::string notice = status_notice(report);
  if (!notice.empty())
    out += "> **" + std::string(name_of(report.status)) + "**: " + escape_markdown(notice) + "\n\n";
  out += comparison(report);
  if (!report.warnings.empty()) {
    out += "## Warnings\n\n";
    for (const auto& warning : report.warnings) out += "- " + escape_markdown(warning) + "\n";
    out += "\n";
  }
  out += "## Evaluation\n\n" + evaluation(report);
  out += "## Operators\n\n" + operators(report);
  out += "## Numerical ladder\n\n" + numerics(report);
  out += rounded_inputs(report);
  out += "## Time and memory\n\n" + times(report);
  out += "## Provenance\n\n" + provenance(report);
  out += "## Output\n\n" + escape_markdown(describe_verification(report)) + "\n\n" + files(report);
  if (!report.job_json.empty()) out += "## Job\n\n" + code_block(report.job_json);
  return out;
}

}  // namespace lcomp::report
