#include <memory>

#include "cli/command.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"

namespace lcomp::cli {

Command schema_command() {
  const auto markdown = std::make_shared<bool>(false);
  Command command;
  command.name = "schema";
  command.summary = "Print the JSON Schema of job files";
  command.declare = [markdown](CLI::App& app) {
    app.add_flag("--markdown", *markdown, "Print the tables of docs/jobs.md instead");
  };
  command.run = [markdown](const CommonOptions&, Observer&) {
    const pipeline::MethodTable methods = pipeline::builtin_methods();
    const std::string schema = pipeline::job_schema(methods);
    return Answer{*markdown ? pipeline::job_tables(methods) : schema, Json::parse(schema)};
  };
  return command;
}

}  // namespace lcomp::cli
