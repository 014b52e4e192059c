#pragma once

#include <filesystem>
#include <functional>

#include "lcomp/core/observer.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/method.h"
#include "lcomp/pipeline/report_data.h"

namespace lcomp::pipeline {

/// Writes the report's files into a directory; `report::write_reports` is the one that comes with lcomp.
using ReportWriter = std::function<void(const std::filesystem::path& directory, const RunReport& report)>;

/// Runs a job: streams the model block by block through the passes, writes, verifies, evaluates and
/// publishes.
///
/// Everything is kept in `<output>.lcomp-work` until the output is complete; then one rename makes it
/// visible. A run that was killed or interrupted continues when the same job is run again, and ends in the
/// same bytes. While it works, the report so far stands in the working directory.
///
/// Errors: those of the steps, with the report's status set and its files written before they are passed on;
/// `Interrupted` when the observer asks to stop.
RunReport run(const Job& job, const MethodTable& methods, Observer& observer,
              const ReportWriter& write_reports = {});

}  // namespace lcomp::pipeline
