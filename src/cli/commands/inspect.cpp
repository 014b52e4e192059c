#include "lcomp/pipeline/inspect.h"

#include <fmt/format.h>

#include <memory>

#include "cli/command.h"
#include "lcomp/core/bytes.h"

namespace lcomp::cli {
namespace {

struct InspectArguments {
  std::string path;
  bool deep = false;
};

/// Lines for blocks of unequal widths, one for each run of equal ones.
std::vector<std::string> width_lines(const std::vector<model::BlockWidths>& widths) {
  std::vector<std::string> lines;
  for (size_t first = 0, next = 0; first < widths.size(); first = next) {
    while (next < widths.size() && widths[next] == widths[first]) ++next;
    if (next - first == widths.size()) return {};
    lines.push_back(fmt::format(
        "{}: {} heads, {} key-value heads, {} channels",
        next - first == 1 ? fmt::format("block {}", first) : fmt::format("blocks {} to {}", first, next - 1),
        widths[first].heads, widths[first].kv_heads, widths[first].intermediate));
  }
  return lines;
}

std::string text_of(const pipeline::Inspection& found) {
  std::string text = found.path + "\n";
  const auto row = [&text](std::string_view key, const std::string& value) {
    text += fmt::format("  {:<14}{}\n", key, value);
  };
  if (const auto& model = found.model) {
    row("family", fmt::format("{}, {} blocks, width {}, vocabulary {}, up to {} positions", model->family,
                              model->blocks, model->hidden_size, model->vocab_size, model->max_positions));
    row("parameters",
        fmt::format("{}, {:.2f} bits each", model->parameters,
                    8.0 * static_cast<double>(found.bytes) / static_cast<double>(model->parameters)));
    row("operators", fmt::format("{}", model->operators));
    for (const std::string& line : width_lines(model->widths)) row("widths", line);
    for (const auto& kind : model->storage)
      row("stored", fmt::format("{} ({} operators)", kind.description, kind.operators));
    if (!model->embedding.empty()) row("embedding", model->embedding);
    row("tokenizer", model->tokenizer_hash.empty() ? "none" : model->tokenizer_hash);
  }
  row("tensors", fmt::format("{}, {}", found.tensors, format_bytes(found.bytes)));
  for (const auto& share : found.dtypes) {
    row("  " + share.dtype, fmt::format("{}, {}", share.tensors, format_bytes(share.bytes)));
  }
  if (found.values_read) row("read", fmt::format("{} values, all finite", *found.values_read));
  return text;
}

Json json_of(const pipeline::Inspection& found) {
  Json json = {{"path", found.path}, {"tensors", found.tensors}, {"bytes", found.bytes}};
  json["dtypes"] = Json::array();
  for (const auto& share : found.dtypes) {
    json["dtypes"].push_back({{"dtype", share.dtype}, {"tensors", share.tensors}, {"bytes", share.bytes}});
  }
  if (const auto& model = found.model) {
    Json storage = Json::array(), widths = Json::array();
    for (const auto& kind : model->storage) {
      storage.push_back(
          {{"format", kind.format}, {"description", kind.description}, {"operators", kind.operators}});
    }
    for (const auto& block : model->widths) {
      widths.push_back(
          {{"heads", block.heads}, {"kv_heads", block.kv_heads}, {"intermediate", block.intermediate}});
    }
    json["model"] = {{"family", model->family},           {"blocks", model->blocks},
                     {"operators", model->operators},     {"hidden_size", model->hidden_size},
                     {"vocab_size", model->vocab_size},   {"max_positions", model->max_positions},
                     {"parameters", model->parameters},   {"storage", std::move(storage)},
                     {"block_widths", std::move(widths)}, {"tokenizer_hash", model->tokenizer_hash}};
    if (!model->embedding.empty()) json["model"]["embedding"] = model->embedding;
  }
  if (found.values_read) json["values_read"] = *found.values_read;
  json["warnings"] = found.warnings;
  return json;
}

}  // namespace

Command inspect_command() {
  const auto arguments = std::make_shared<InspectArguments>();
  Command command;
  command.name = "inspect";
  command.summary = "Check a model directory or safetensors file and describe it";
  command.declare = [arguments](CLI::App& app) {
    app.add_option("PATH", arguments->path, "Model directory or safetensors file")->required();
    app.add_flag("--deep", arguments->deep, "Also read every value and decode every packed weight");
  };
  command.run = [arguments](const CommonOptions&, Observer& observer) {
    const pipeline::Inspection found = pipeline::inspect(arguments->path, arguments->deep, observer);
    for (const std::string& warning : found.warnings) observer.warning(warning);
    return Answer{text_of(found), json_of(found)};
  };
  return command;
}

}  // namespace lcomp::cli
