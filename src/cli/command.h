#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/core/observer.h"

namespace lcomp::cli {

using Json = nlohmann::ordered_json;

/// What every command takes.
struct CommonOptions {
  bool json = false;           ///< one JSON document on standard output, nothing else there
  bool quiet = false;          ///< no progress and no notes; warnings and errors stay
  std::optional<int> threads;  ///< 0: one per processor; absent: as the job says, else as for 0
};

/// What a command has to say: the same facts for people and for programs.
struct Answer {
  std::string text;
  Json json;
  int exit_code = 0;
};

/// One subcommand: `declare` adds its arguments to the parser, `run` does the work after they were read.
struct Command {
  std::string name;
  std::string summary;
  std::function<void(CLI::App&)> declare;
  std::function<Answer(const CommonOptions&, Observer&)> run;
};

Command run_command();
Command plan_command();
Command inspect_command();
Command eval_command();
Command verify_command();
Command export_command();
Command bench_command();
Command list_command();
Command schema_command();

}  // namespace lcomp::cli
