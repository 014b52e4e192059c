#include "cli/job_arguments.h"

#include <fmt/format.h>

namespace lcomp::cli {

void JobArguments::declare(CLI::App& app) {
  app.add_option("JOB", path, "Job file (JSON with comments; `lcomp schema` describes it)")->required();
  app.add_option("--set", sets, "Change the job before it is checked; may be repeated")
      ->type_name("/POINTER=VALUE")
      ->expected(1)
      ->allow_extra_args(false)
      ->take_all();
}

pipeline::Job JobArguments::load(const pipeline::MethodTable& methods, const CommonOptions& common) const {
  std::vector<std::string> all = sets;
  if (common.threads) all.push_back(fmt::format("/threads={}", *common.threads));
  return pipeline::load_job(path, methods, all);
}

}  // namespace lcomp::cli
