#include "lcomp/report/report.h"
#include "report/format.h"
#include "report/html_parts.h"
#include "report/html_style.h"
#include "report/view.h"

namespace lcomp::report {
namespace {

using html::Facts;
using html::lede;
using html::section;
using pipeline::RunReport;
using pipeline::RunStatus;

/// Warnings shown at once; more are folded.
constexpr size_t kWarnings = 12;

/// What tells a run from others: its output's folder, or else its model's.
std::string name_of_run(const RunReport& r) {
  return std::string(base_name(r.output.empty() ? r.model.path : r.output));
}

std::string head(const RunReport& r) {
  const std::string name = escape_html(name_of_run(r));
  const std::string_view status = name_of(r.status);
  std::string times = utc_time(r.started_at);
  if (!r.finished_at.empty()) times += " to " + utc_time(r.finished_at);
  std::string out = fmt::format("<header><h1>{0}</h1><span class=\"pill {1}\">{1}</span></header>\n",
                                name.empty() ? "lcomp run" : name, status);
  out += "<div class=sub>" + escape_html(describe_passes(r));
  out += "<br>from <code>" + escape_html(r.model.path) + "</code>";
  if (!r.output.empty()) out += " to <code>" + escape_html(r.output) + "</code>";
  return out + "<br>" + escape_html(times) + "</div>\n";
}

std::string notice(const RunReport& r) {
  const std::string text = status_notice(r);
  if (text.empty()) return {};
  return fmt::format("<div class=\"box {}\" role=status><p>{}</p></div>\n", name_of(r.status),
                     escape_html(text));
}

std::string warnings(const RunReport& r) {
  if (r.warnings.empty()) return {};
  std::string shown;
  std::string folded;
  for (size_t i = 0; i < r.warnings.size(); ++i)
    (i < kWarnings ? shown : folded) += "<li>" + escape_html(r.warnings[i]) + "</li>\n";
  std::string out = fmt::format("<div class=\"box warn\"><h2>{} {}</h2><ul>{}</ul>", r.warnings.size(),
                                r.warnings.size() == 1 ? "warning" : "warnings", shown);
  if (!folded.empty())
    out += fmt::format("<details><summary>{} more</summary><ul>{}</ul></details>",
                       r.warnings.size() - kWarnings, folded);
  return out + "</div>\n";
}

/// A headline number; `from` is the value before, in smaller type.
std::string tile(std::string_view name, const std::string& from, const std::string& value,
                 const std::string& note, const std::string& tip = "") {
  std::string out = "<div class=tile";
  if (!tip.empty()) out += " title=\"" + escape_html(tip) + "\"";
  out += fmt::format("><dt>{}</dt><dd><div class=big>", name);
  if (!from.empty()) out += fmt::format("<span class=from>{} → </span>", escape_html(from));
  return out +
         fmt::format("{}</div><div class=note>{}</div></dd></div>\n", escape_html(value), escape_html(note));
}

std::string size_tile(const RunReport& r) {
  const auto& t = r.totals;
  const std::string tip = fmt::format("Tensors as stored\nbefore {} bytes\nafter {} bytes\n{} parameters",
                                      exact(t.bytes_before), exact(t.bytes_after), exact(t.parameters));
  if (t.bytes_before <= 0 || t.bytes_after <= 0)
    return tile("Size", t.bytes_before > 0 ? bytes(t.bytes_before) : "", std::string(kAbsent),
                "compressed size not known yet", tip);
  const double before = static_cast<double>(t.bytes_before);
  const double after = static_cast<double>(t.bytes_after);
  const std::string note = after < before ? number(before / after, 3) + " times smaller" : "not smaller";
  return tile("Size", bytes(t.bytes_before), bytes(t.bytes_after), note, tip);
}

std::string bits_tile(const RunReport& r) {
  const auto before = bits_before(r);
  const auto& inside = r.totals.operator_bits_per_weight;
  return tile("Bits per weight", before ? number(*before, 3) : "", number(r.totals.bits_per_weight, 3),
              inside ? number(*inside, 3) + " in compressed operators" : "all tensors counted",
              fmt::format("{} of {} weights are in compressed operators",
                          exact(r.totals.compressed_parameters), exact(r.totals.parameters)));
}

/// Of outputs with factors: what they are made of and what they cost to run.
std::string factor_tiles(const RunReport& r) {
  const auto& t = r.totals;
  if (!t.numbers_after || !t.macs_before || !t.macs_after) return "";
  const auto value = [](int64_t count) { return static_cast<double>(count); };
  return tile("Numbers", count(t.parameters), count(*t.numbers_after),
              describe_change(value(t.parameters), value(*t.numbers_after)),
              "That all weights are made of; factors and what is kept of sparse parts count") +
         tile("Multiply-adds", count(*t.macs_before), count(*t.macs_after),
              describe_change(value(*t.macs_before), value(*t.macs_after)),
              "Per token, of the operators of all blocks");
}

std::string quality_tiles(const RunReport& r) {
  const auto before = evaluation_of(r, "dense").perplexity;
  const auto ours = evaluation_of(r, "compressed");
  const std::string absent = "not measured";
  const std::string change_note = before ? describe_change(before, ours.perplexity) : "dense not measured";
  const std::string tip =
      ours.text.empty() ? "" : ours.text + "\n" + describe_windows(ours) + "\n" + ours.protocol;
  if (ours.embedding_cosine) {
    return tile("Embedding cosine", "", number(ours.embedding_cosine, 5),
                "with the dense model, smallest " + number(ours.embedding_cosine_min, 5), tip) +
           tile("Rank correlation", "", number(ours.rank_correlation, 5),
                "of the similarities of all pairs of sentences", tip);
  }
  std::string out = tile("Perplexity", before ? number(before) : "", number(ours.perplexity),
                         ours.perplexity ? change_note : absent, tip);
  out += tile("KL from dense", "", number(ours.kl_mean, 3), ours.kl_mean ? "nats per token" : absent, tip);
  out += tile("Top-1 agreement", "", percent(ours.top1_agreement),
              ours.top1_agreement ? "with the dense model" : absent, tip);
  return out;
}

std::string cost_tiles(const RunReport& r) {
  const auto& t = r.timings;
  const double cpu = t.cpu_user_seconds + t.cpu_system_seconds;
  std::string out = tile("Time", "", duration(t.wall_seconds), duration(cpu) + " of processor",
                         fmt::format("wall {} s\nuser {} s\nkernel {} s", number(t.wall_seconds, 6),
                                     number(t.cpu_user_seconds, 6), number(t.cpu_system_seconds, 6)));
  out += tile("Peak memory", "", t.peak_rss_bytes > 0 ? bytes(t.peak_rss_bytes) : std::string(kAbsent),
              bytes(t.planned_peak_bytes) + " planned",
              fmt::format("resident set of the process: {} bytes\nplanned: {} bytes", exact(t.peak_rss_bytes),
                          exact(t.planned_peak_bytes)));
  return out;
}

std::string verification_tile(const RunReport& r) {
  if (!r.verification) return tile("Output", "", std::string(kAbsent), "not verified");
  const auto& v = *r.verification;
  return tile("Output", "", v.passed ? "verified" : "DIFFERS",
              exact(v.tensors_compared) + " tensors compared", describe_verification(r));
}

std::string tiles(const RunReport& r) {
  return "<dl class=tiles>" + size_tile(r) + bits_tile(r) + factor_tiles(r) + quality_tiles(r) +
         cost_tiles(r) + verification_tile(r) + "</dl>\n";
}

std::string quality(const RunReport& r) {
  const bool measured = !r.evaluation.empty();
  return section(
      "quality", "Quality and size",
      lede(measured
               ? "Both models measured in this run, by the protocol below. Sizes count tensors as stored."
               : "Not evaluated. Sizes count tensors as stored.") +
          html::evaluation_table(r));
}

std::string operators(const RunReport& r) {
  std::string body = lede(
      "Activation-weighted error: the relative error of the operator's output on the calibration data. "
      "Weight error: "
      "the relative Frobenius norm of what was lost. Hover a cell for all its numbers.");
  body += html::heat_map(r);
  const std::string kinds = html::kind_table(r);
  if (!kinds.empty()) body += "<h3>By kind</h3>" + kinds;
  const std::string worst = html::worst_table(r);
  if (!worst.empty()) body += "<h3>Largest errors</h3>" + worst;
  return section("operators", "Operators by block", body + html::operator_table(r));
}

std::string ladder(const RunReport& r) {
  return section(
      "numerics", "Numerical ladder",
      lede("Which step of the ladder (regular factorization, more damping, a raised diagonal, rounding to "
           "nearest) gave each operator's result.") +
          html::ladder_tables(r));
}

std::string rounded_inputs(const RunReport& r) {
  const std::string products = describe_products(r), outliers = describe_outliers(r);
  if (products.empty() && outliers.empty()) return {};
  std::string body;
  for (const std::string& sentence : {products, outliers})
    if (!sentence.empty()) body += lede(sentence);
  return section("inputs", "Rounded inputs", body + html::outlier_table(r));
}

std::string times(const RunReport& r) {
  std::string body = html::phase_chart(r) + html::block_charts(r);
  if (body.empty()) body = "<p class=muted>Nothing has been timed.</p>";
  const std::string roofline = html::roofline_chart(r);
  if (!roofline.empty())
    body +=
        "<h3>Matrix products against the machine's best</h3>" +
        lede(
            "Operations counted from the shapes, over the processor time of the phase; the bar is full at "
            "the best matrix product of one thread measured in this run.") +
        roofline;
  return section("time", "Where the time went", body);
}

std::string calibration(const RunReport& r) {
  if (!r.calibration) return "<h3>Calibration</h3><p class=muted>No pass needed data.</p>";
  const auto& c = *r.calibration;
  return "<h3>Calibration</h3>" +
         html::facts({{"text", c.file},
                      {"text hash", c.text_hash},
                      {"tokenizer hash", c.tokenizer_hash},
                      {"windows", describe_windows(c)},
                      {"tokens", exact(c.tokens)},
                      {"sequence starts", exact(c.sequence_starts)},
                      {"short samples", fmt::format("policy {}: {} packed, {} dropped", c.short_policy,
                                                    exact(c.short_packed), exact(c.short_dropped))}}) +
         html::window_histogram(c);
}

std::string provenance(const RunReport& r) {
  const auto& m = r.model;
  const auto& h = r.host;
  const Facts model = {{"path", m.path},
                       {"family", m.family},
                       {"parameters", m.parameters > 0 ? exact(m.parameters) : ""},
                       {"blocks", m.blocks > 0 ? exact(m.blocks) : ""},
                       {"stored as", m.bytes > 0 ? m.dtype + ", " + bytes(m.bytes) : m.dtype}};
  const Facts host = {{"processor", h.processor},
                      {"instructions", fmt::format("{}", fmt::join(h.instructions, ", "))},
                      {"cores", h.logical_cores > 0 ? exact(h.logical_cores) : ""},
                      {"threads", h.threads > 0 ? exact(h.threads) : ""},
                      {"memory", h.memory_bytes > 0 ? bytes(h.memory_bytes) : ""},
                      {"arithmetic", h.compute},
                      {"lcomp", r.version}};
  std::string body = "<div class=columns><div>" + calibration(r) + "</div><div><h3>Model</h3>" +
                     html::facts(model) + "<h3>Machine</h3>" + html::facts(host) + "</div></div>";
  if (!r.job_json.empty())
    body += "<details><summary>The resolved job (run again, it gives the same bytes)</summary><pre><code>" +
            escape_html(r.job_json) + "</code></pre></details>";
  return section("provenance", "What it was made from", body);
}

std::string output(const RunReport& r) {
  const bool passed = r.verification && r.verification->passed;
  const bool failed = r.verification && !r.verification->passed;
  return section("output", "Output",
                 fmt::format("<p class={}>{}</p>\n",
                             passed   ? "ok"
                             : failed ? "bad"
                                      : "muted",
                             escape_html(describe_verification(r))) +
                     html::file_table(r));
}

constexpr std::string_view kNavigation =
    "<nav aria-label=Sections><a href=#quality>Quality</a><a href=#operators>Operators</a><a "
    "href=#numerics>Numerics</a>"
    "<a href=#time>Time</a><a href=#provenance>Provenance</a><a href=#output>Output</a></nav>\n";

}  // namespace

std::string to_html(const RunReport& report) {
  std::string out =
      "<!DOCTYPE html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
      "<meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>";
  out += escape_html(name_of_run(report)) + " · lcomp report</title>\n<style>";
  out.append(page_style());
  out += html::heat_style() + "</style>\n</head>\n<body>\n<main>\n";
  out += head(report) + notice(report) + warnings(report) + tiles(report);
  out.append(kNavigation);
  out += quality(report) + operators(report) + ladder(report) + rounded_inputs(report) + times(report) +
         provenance(report) + output(report);
  out += "<footer>lcomp " + escape_html(report.version) +
         ". All numbers were measured in this run; docs/report.md of lcomp says how. Exact values are in "
         "report.json.</footer>\n"
         "</main>\n<script>";
  out.append(page_script());
  return out + "</script>\n</body>\n</html>\n";
}

}  // namespace lcomp::report
