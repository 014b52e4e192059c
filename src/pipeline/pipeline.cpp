#include "lcomp/pipeline/pipeline.h"

#include "lcomp/core/error.h"
#include "pipeline/run.h"

namespace lcomp::pipeline {
namespace {

void run_steps(Run& run) {
  // The texts first: what is wrong with them is said before anything is made.
  run.read_texts();
  if (!run.take_work_dir()) return;
  run.write_outer_tensors();
  run.survey();
  run.compress_blocks();
  run.assemble();
  run.verify();
  run.evaluate();
  run.publish();
}

/// A report that cannot be written (the disk is full, say) must not hide what ended the run.
void report_end(Run& run, RunStatus status, const std::exception& reason) {
  try {
    run.write_report(status, reason.what());
  } catch (const std::exception&) {
  }
}

}  // namespace

RunReport run(const Job& job, const MethodTable& methods, Observer& observer,
              const ReportWriter& write_reports) {
  Run run(job, methods, observer, write_reports);
  try {
    run_steps(run);
  } catch (const Interrupted& stop) {
    report_end(run, RunStatus::kInterrupted, stop);
    throw;
  } catch (const std::exception& failure) {
    report_end(run, RunStatus::kFailed, failure);
    throw;
  }
  return run.report();
}

}  // namespace lcomp::pipeline
