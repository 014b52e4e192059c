#pragma once

#include <string>
#include <vector>

#include "cli/command.h"
#include "lcomp/pipeline/job.h"

namespace lcomp::cli {

/// What `run` and `plan` take: a job file and changes to it.
struct JobArguments {
  std::string path;
  std::vector<std::string> sets;

  void declare(CLI::App& app);
  pipeline::Job load(const pipeline::MethodTable& methods, const CommonOptions& common) const;
};

}  // namespace lcomp::cli
