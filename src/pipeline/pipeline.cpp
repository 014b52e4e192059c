#include "lcomp/pipeline/pipeline.h"

#include "lcomp/core/error.h"
#include "pipeline/run.h"

namespace lcomp::pipeline {
namespace {

void run_steps(Run& run) {
  if (!run.take_work_dir()) return;
  run.read_calibration();
  run.write_outer_tensors();
  run.compress_blocks();
  run.assemble();
  run.verify();
  run.evaluate();
  run.publish();
}

}  // namespace

RunReport run(const Job& job, const MethodTable& methods, Observer& observer,
              const ReportWriter& write_reports) {
  Run run(job, methods, observer, write_reports);
  try {
    run_steps(run);
  } catch (const Interrupted& stop) {
    run.write_report(RunStatus::kInterrupted, stop.what());
    throw;
  } catch (const std::exception& failure) {
    run.write_report(RunStatus::kFailed, failure.what());
    throw;
  }
  return run.report();
}

}  // namespace lcomp::pipeline
