#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "cli/job_arguments.h"
#include "lcomp/core/bytes.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/options_json.h"

namespace lcomp::cli {
namespace {

std::string_view precision_name(linalg::Precision precision) {
  return precision == linalg::Precision::kBf16 ? "bf16" : "f32";
}

int64_t as_signed(uint64_t bytes) {
  return static_cast<int64_t>(bytes);
}

std::string operator_table(const pipeline::Plan& plan) {
  std::vector<const pipeline::OperatorPlan*> rows;
  if (plan.embedding) rows.push_back(&*plan.embedding);
  for (const pipeline::OperatorPlan& op : plan.operators) rows.push_back(&op);
  size_t width = 8;
  for (const pipeline::OperatorPlan* op : rows) width = std::max(width, op->name.size());
  std::string text =
      fmt::format("{:<{}}  {:>13}  {:>8}  {:>8}  {}\n", "operator", width, "shape", "before", "after", "");
  for (const pipeline::OperatorPlan* op : rows) {
    const std::string shape = fmt::format("{} x {}", op->out_features, op->in_features);
    const std::string what =
        op->methods.empty() ? "untouched" : fmt::format("{}: {}", fmt::join(op->methods, ", "), op->scheme);
    text += fmt::format("{:<{}}  {:>13}  {:>8}  {:>8}  {}\n", op->name, width, shape,
                        format_bytes(op->bytes_before), format_bytes(op->bytes_after), what);
  }
  return text;
}

/// "about 40 s", "about 3.5 h".
std::string about(double seconds) {
  if (seconds < 120) return fmt::format("about {:.2g} s", seconds);
  if (seconds < 7200) return fmt::format("about {:.0f} min", seconds / 60);
  if (seconds < 48 * 3600) return fmt::format("about {:.0f} h", seconds / 3600);
  return fmt::format("about {:.0f} days", seconds / 86400);
}

std::string text_of(const pipeline::Plan& plan, double seconds) {
  std::string text = operator_table(plan) + "\n";
  const auto row = [&text](std::string_view key, const std::string& value) {
    text += fmt::format("{:<14}{}\n", key, value);
  };
  row("model", fmt::format("{} parameters", plan.parameters));
  row("size",
      fmt::format("{} -> {}, {:.2f} bits per weight", format_bytes(as_signed(plan.bytes_before)),
                  format_bytes(as_signed(plan.bytes_after)),
                  8.0 * static_cast<double>(plan.bytes_after) / static_cast<double>(plan.parameters_after)));
  row("memory", fmt::format("{} at the peak (estimate)", format_bytes(as_signed(plan.memory.peak()))));
  row("disk", format_bytes(as_signed(plan.disk_bytes)));
  row("time", about(seconds) + " on this machine (estimate)");
  row("threads", std::to_string(plan.threads));
  if (plan.needs_gradients) {
    row("gradients", fmt::format("{:.3g} TFLOP in f32, a sweep forth and back over the calibration samples",
                                 plan.work.gradients / 1e12));
  }
  if (plan.needs_samples) {
    row("calibration",
        fmt::format("{:.3g} TFLOP in {}, hidden states {}", plan.work.forward / 1e12,
                    precision_name(plan.compute), plan.activations_on_disk ? "on disk" : "in memory"));
  }
  return text;
}

/// The settings that each pass has for an operator.
Json settings_of(const pipeline::Plan& plan, size_t index) {
  Json settings = Json::array();
  for (const pipeline::OperatorSettings& pass : plan.settings) {
    settings.push_back(pass[index] != nullptr ? pipeline::settings_to_json(*pass[index]) : Json());
  }
  return settings;
}

Json json_of(const pipeline::OperatorPlan& op) {
  return {{"name", op.name},
          {"block", op.block},
          {"out_features", op.out_features},
          {"in_features", op.in_features},
          {"methods", op.methods},
          {"scheme", op.scheme},
          {"bytes_before", op.bytes_before},
          {"bytes_after", op.bytes_after},
          {"is_estimate", op.is_estimate}};
}

Json json_of(const pipeline::Plan& plan, double seconds) {
  Json operators = Json::array();
  for (size_t i = 0; i < plan.operators.size(); ++i) {
    Json row = json_of(plan.operators[i]);
    row["settings"] = settings_of(plan, i);
    operators.push_back(std::move(row));
  }
  Json memory = {{"peak", plan.memory.peak()}};
  for (const auto& [part, bytes] : plan.memory.parts()) memory[part] = bytes;
  const pipeline::WorkPlan& work = plan.work;
  return {{"parameters", plan.parameters},
          {"parameters_after", plan.parameters_after},
          {"embedding", plan.embedding ? json_of(*plan.embedding) : Json(nullptr)},
          {"bytes_before", plan.bytes_before},
          {"bytes_after", plan.bytes_after},
          {"disk_bytes", plan.disk_bytes},
          {"memory", std::move(memory)},
          {"threads", plan.threads},
          {"compute", precision_name(plan.compute)},
          {"needs_calibration", plan.needs_calibration},
          {"activations_on_disk", plan.activations_on_disk},
          {"seconds", seconds},
          {"work",
           {{"forward", work.forward},
            {"statistics", work.statistics},
            {"gradients", work.gradients},
            {"solver", work.solver},
            {"evaluation", work.evaluation}}},
          {"operators", std::move(operators)},
          {"warnings", plan.warnings}};
}

}  // namespace

Command plan_command() {
  const auto arguments = std::make_shared<JobArguments>();
  Command command;
  command.name = "plan";
  command.summary = "Show what a job would do, its sizes and its needs, from the headers alone";
  command.declare = [arguments](CLI::App& app) { arguments->declare(app); };
  command.run = [arguments](const CommonOptions& common, Observer& observer) {
    const pipeline::MethodTable methods = pipeline::builtin_methods();
    const pipeline::Plan plan = pipeline::plan(arguments->load(methods, common), methods);
    for (const std::string& warning : plan.warnings) observer.warning(warning);
    const double seconds = pipeline::estimate_seconds(plan);
    return Answer{text_of(plan, seconds), json_of(plan, seconds)};
  };
  return command;
}

}  // namespace lcomp::cli
