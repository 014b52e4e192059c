#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "cli/command.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "pipeline/options_json.h"

namespace lcomp::cli {
namespace {

Json described(const pipeline::MethodInfo& method) {
  Json options = Json::object();
  pipeline::SchemaWriter writer(options);
  method.default_options()->visit(writer);
  return {{"name", method.name},
          {"summary", method.summary},
          {"needs_calibration", method.needs_calibration},
          {"options", options}};
}

Answer list_all(const pipeline::MethodTable& table) {
  size_t width = 0;
  for (const std::string& name : table.names()) width = std::max(width, name.size());
  Answer answer;
  answer.json["methods"] = Json::array();
  for (const pipeline::MethodInfo& method : table.methods()) {
    answer.text += fmt::format("{:<{}}  {}\n", method.name, width, method.summary);
    answer.json["methods"].push_back(described(method));
  }
  return answer;
}

Answer list_one(const pipeline::MethodInfo& method) {
  return {fmt::format("{}: {}\n\n{}", method.name, method.summary, pipeline::method_table(method)),
          described(method)};
}

}  // namespace

Command list_command() {
  const auto name = std::make_shared<std::string>();
  Command command;
  command.name = "list";
  command.summary = "Show the methods that jobs can name, or the settings of one";
  command.declare = [name](CLI::App& app) {
    app.add_option("METHOD", *name, "Show the settings of this method");
  };
  command.run = [name](const CommonOptions&, Observer&) {
    const pipeline::MethodTable table = pipeline::builtin_methods();
    return name->empty() ? list_all(table) : list_one(table.find(*name));
  };
  return command;
}

}  // namespace lcomp::cli
