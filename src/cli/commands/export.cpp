#include "lcomp/pipeline/export.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "lcomp/core/bytes.h"

namespace lcomp::cli {
namespace {

struct ExportArguments {
  std::string model;
  std::string output;
  pipeline::ExportOptions options;
};

}  // namespace

Command export_command() {
  const auto arguments = std::make_shared<ExportArguments>();
  Command command;
  command.name = "export";
  command.summary = "Write a compressed model as an ordinary dense checkpoint that other software loads";
  command.declare = [arguments](CLI::App& app) {
    app.add_option("DIR", arguments->model, "Model directory, dense or compressed")->required();
    app.add_option("OUT", arguments->output, "Directory to be made")->required();
    app.add_flag("--pad-widths", arguments->options.pad_widths,
                 "Give blocks of different widths the largest of each, with zeros");
  };
  command.run = [arguments](const CommonOptions&, Observer& observer) {
    const pipeline::ExportResult result =
        pipeline::export_model(arguments->model, arguments->output, arguments->options, observer);
    Answer answer;
    answer.text = fmt::format("{}: {} operators, {} of them decoded and {} padded; {} parameters, {}\n",
                              arguments->output, result.operators, result.decoded, result.padded,
                              result.parameters, format_bytes(static_cast<int64_t>(result.bytes)));
    answer.json = {{"output", arguments->output},     {"operators", result.operators},
                   {"decoded", result.decoded},       {"padded", result.padded},
                   {"parameters", result.parameters}, {"bytes", result.bytes}};
    return answer;
  };
  return command;
}

}  // namespace lcomp::cli
