#pragma once

#include <vector>

#include "cli/command.h"

namespace lcomp::cli {

/// Reads the command line, runs the command it names, writes its answer to standard output, and returns the
/// exit code. Nothing escapes as an exception.
int run_command_line(int argc, const char* const* argv, const std::vector<Command>& commands);

}  // namespace lcomp::cli
