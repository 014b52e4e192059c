#include "cli/app.h"

#include <fmt/format.h>

#include <iostream>
#include <set>

#include "cli/console.h"
#include "cli/failure.h"
#include "cli/interrupt.h"
#include "cli/printable.h"
#include "lcomp/core/error.h"
#include "lcomp/core/nearest.h"
#include "lcomp/version.h"

namespace lcomp::cli {
namespace {

constexpr const char* kFooter =
    "Exit codes: 0 done, 1 internal error (a bug), 2 bad usage or job, 3 bad input file, 4 numerical "
    "failure, 5 out "
    "of\n"
    "memory budget or disk, 130 interrupted (the same command continues).";

void declare_common(CLI::App& app, CommonOptions& common) {
  app.add_flag("--json", common.json, "One JSON document on standard output, nothing else there");
  app.add_flag("--quiet,-q", common.quiet, "No progress and no notes");
  app.add_option("--threads", common.threads, "Threads; 0: one per processor. Results do not depend on it")
      ->check(CLI::Range(0, 4096).description(""))
      ->type_name("N");
}

/// The long options of a command: "--json" ...
std::vector<std::string> long_options(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

/// What to say about a command line that does not parse.
std::string usage_error(const CLI::App& app, const CLI::ParseError& error) {
  const std::vector<std::string> extras = app.remaining(true);
  if (extras.empty()) return error.what();
  const std::string& extra = extras.front();
  const auto chosen = app.get_subcommands();
  if (chosen.empty()) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(command->get_name());
    }
    return fmt::format("the command must be one of {}; got {}{}", fmt::join(names, ", "), extra,
                       did_you_mean(extra, names));
  }
  return fmt::format("{} takes no {}{}", chosen.front()->get_name(), extra,
                     did_you_mean(extra, long_options(*chosen.front())));
}

void print(const Json& document) {
  std::cout << document.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

int report(const Failure& failure, const CommonOptions& common, Console& console) {
  for (const std::string& message : failure.messages) console.error(message);
  if (common.json) {
    print({{"error",
            {{"kind", failure.kind},
             {"exit_code", static_cast<int>(failure.code)},
             {"messages", failure.messages}}}});
  }
  return failure.code;
}

int run(const Command& command, const CommonOptions& common) {
  Console console(common.quiet);
  try {
    const Answer answer = command.run(common, console);
    if (common.json) {
      print(answer.json);
    } else {
      std::cout << printable(answer.text, true);
    }
    std::cout.flush();
    if (!std::cout) throw ResourceError("standard output", "the answer must be written; a write failed");
    return answer.exit_code;
  } catch (const std::exception& error) {
    return report(failure_of(error), common, console);
  }
}

/// Whether `--json` was given on a command line that did not parse.
bool wants_json(int argc, const char* const* argv) {
  return std::any_of(argv, argv + argc,
                     [](const char* argument) { return std::string_view(argument) == "--json"; });
}

}  // namespace

int run_command_line(int argc, const char* const* argv, const std::vector<Command>& commands) {
  CLI::App app("Makes trained transformer checkpoints smaller.", "lcomp");
  app.set_version_flag("--version", std::string("lcomp ") + kVersion);
  app.require_subcommand(1);
  app.footer(kFooter);
  CommonOptions common;
  for (const Command& command : commands) {
    CLI::App* subcommand = app.add_subcommand(command.name, command.summary);
    command.declare(*subcommand);
    declare_common(*subcommand, common);
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    common.json = wants_json(argc, argv);
    Console console(false);
    const std::vector<std::string> messages = {usage_error(app, error) + "; lcomp --help shows the usage"};
    return report({kBadUsage, "usage", messages}, common, console);
  }

  catch_interrupts();
  const std::string name = app.get_subcommands().front()->get_name();
  for (const Command& command : commands) {
    if (command.name == name) return run(command, common);
  }
  return kBug;
}

}  // namespace lcomp::cli
