#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/calib/sample_runner.h"
#include "lcomp/calib/token_samples.h"
#include "lcomp/core/observer.h"
#include "lcomp/core/threads.h"
#include "lcomp/eval/evaluate.h"
#include "lcomp/io/checkpoint_writer.h"
#include "lcomp/io/work_dir.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/pipeline/pipeline.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/block_record.h"
#include "pipeline/output_record.h"
#include "pipeline/phase_clock.h"

namespace lcomp::pipeline {

/// The calibration samples between two blocks.
struct Samples {
  calib::TokenSamples tokens;
  std::unique_ptr<calib::ActivationCache> hidden;
  std::unique_ptr<calib::ActivationCache> work;
  std::unique_ptr<calib::SampleRunner> runner;
};

/// A pass, and the entry of the job's list that it comes from.
struct ChainedPass {
  size_t entry;
  std::unique_ptr<Pass> pass;
};

/// Statistics of all groups of a block, for the passes that see the same block function.
struct Observed {
  calib::Needs needs;
  std::vector<calib::InputStats> stats;  ///< empty: none were taken
  std::vector<at::Tensor> scales;        ///< `Block::input_scale` per group when they were
};

/// One run of a job: the state that its steps share. `run` in pipeline.cpp says in which order they go.
class Run {
 public:
  Run(const Job& job, const MethodTable& methods, Observer& observer, const ReportWriter& write_reports);

  void read_calibration();
  void read_evaluation();
  /// Takes the working directory; false when an earlier run was killed right after publishing, and nothing is
  /// left to do.
  bool take_work_dir();
  void write_outer_tensors();
  void compress_blocks();
  void assemble();
  void verify();
  void evaluate();
  void publish();

  /// Brings the report up to date and writes it into the working directory.
  void write_report(RunStatus status, const std::string& message = "");
  const RunReport& report() const { return report_; }

 private:
  // run.cpp
  std::string job_key() const;
  void check_cancelled() const;
  void count_compressed();
  void step(const std::string& phase, int64_t done, int64_t total, const std::string& detail = "");

  // compress_blocks.cpp
  std::string block_key(const std::string& previous_key, int64_t block) const;
  int64_t adopt_finished_blocks();
  void start_samples();
  bool restore_samples(int64_t block, const std::string& hash);
  BlockRecord compress_block(int64_t index);
  bool is_staged(size_t pass) const;
  void observe(size_t pass, const model::Block& block, Observed& observed);
  static calib::InputStats current_stats(const model::Block& block, const Observed& observed, size_t group);
  void run_pass(size_t pass, model::Block& block, Observed& observed, BlockRow& row, PassContext& context);
  void round_dense(model::Block& block, size_t pass);
  void run_sequential_pass(const Pass& pass, model::Block& block, bool is_last, BlockRow& row,
                           PassContext& context);
  std::function<const PassOptions*(const std::string&)> settings_of(size_t entry, int64_t block) const;
  void store_block(const model::Block& block, BlockRecord& record);
  void commit_block(int64_t index, const std::string& key, BlockRecord record);
  std::filesystem::path samples_file(int64_t block) const;
  void take_record(BlockRecord record);
  void fill_roofline();

  const Job& job_;
  Observer& observer_;
  const ReportWriter& write_reports_;
  model::Model model_;
  Plan plan_;
  std::vector<ChainedPass> passes_;
  ThreadPool pool_;
  PhaseClock clock_;
  RunReport report_;
  std::optional<io::WorkDir> work_;
  std::optional<io::CheckpointWriter> writer_;
  Samples samples_;
  std::optional<eval::EvaluationText> evaluation_text_;
  std::string job_key_;
  std::string last_key_;
  OutputRecord record_;
  std::map<std::string, model::QuantizationConfig::Group> groups_;
};

}  // namespace lcomp::pipeline
