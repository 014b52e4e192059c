#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "cli/job_arguments.h"
#include "lcomp/core/bytes.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/pipeline.h"
#include "lcomp/report/report.h"

namespace lcomp::cli {
namespace {

std::string evaluation_text(const pipeline::EvaluationRow& row) {
  if (!row.perplexity && !row.embedding_cosine) return "";  // what an encoder is compared with
  std::string text = fmt::format("  {:<12}", row.model);
  if (row.perplexity) text += fmt::format("perplexity {:.4f}", *row.perplexity);
  if (row.kl_mean) text += fmt::format(", KL {:.4f}", *row.kl_mean);
  if (row.top1_agreement) text += fmt::format(", same top token {:.1f} %", 100 * *row.top1_agreement);
  if (row.embedding_cosine)
    text += fmt::format("embedding cosine {:.5f}, smallest {:.5f}", *row.embedding_cosine,
                        *row.embedding_cosine_min);
  if (row.rank_correlation) text += fmt::format(", rank correlation {:.5f}", *row.rank_correlation);
  return text + "\n";
}

std::string text_of(const pipeline::RunReport& report) {
  const pipeline::Totals& totals = report.totals;
  std::string text = fmt::format("{}\n  {:<12}{} -> {}", report.output, "size",
                                 format_bytes(totals.bytes_before), format_bytes(totals.bytes_after));
  if (totals.bits_per_weight) text += fmt::format(", {:.2f} bits per weight", *totals.bits_per_weight);
  text += "\n";
  for (const pipeline::EvaluationRow& row : report.evaluation) text += evaluation_text(row);
  if (!report.evaluation.empty()) text += fmt::format("  {:<12}{}\n", "", report.evaluation.back().protocol);
  text += fmt::format(
      "  {:<12}{:.1f} s, {:.1f} s of processors, peak memory {} ({} planned)\n", "time",
      report.timings.wall_seconds, report.timings.cpu_user_seconds + report.timings.cpu_system_seconds,
      format_bytes(report.timings.peak_rss_bytes), format_bytes(report.timings.planned_peak_bytes));
  return text + fmt::format("  {:<12}{}/report.html\n", "report", report.output);
}

}  // namespace

Command run_command() {
  const auto arguments = std::make_shared<JobArguments>();
  Command command;
  command.name = "run";
  command.summary =
      "Run a job: compress, write, verify, evaluate, report; continues where it was interrupted";
  command.declare = [arguments](CLI::App& app) { arguments->declare(app); };
  command.run = [arguments](const CommonOptions& common, Observer& observer) {
    const pipeline::MethodTable methods = pipeline::builtin_methods();
    const pipeline::Job job = arguments->load(methods, common);
    const pipeline::RunReport report = pipeline::run(job, methods, observer, report::write_reports);
    return Answer{text_of(report), Json::parse(to_json(report))};
  };
  return command;
}

}  // namespace lcomp::cli
