#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "lcomp/calib/gradients.h"
#include "lcomp/calib/sample_runner.h"
#include "lcomp/calib/token_samples.h"
#include "lcomp/core/observer.h"
#include "lcomp/core/threads.h"
#include "lcomp/eval/evaluate.h"
#include "lcomp/io/checkpoint_writer.h"
#include "lcomp/io/work_dir.h"
#include "lcomp/lowrank/embedding.h"
#include "lcomp/pipeline/pass.h"
#include "lcomp/pipeline/pipeline.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/pipeline/survey.h"
#include "pipeline/block_record.h"
#include "pipeline/output_record.h"
#include "pipeline/phase_clock.h"

namespace lcomp::pipeline {

/// The calibration samples between two blocks.
struct Samples {
  calib::TokenSamples tokens;
  std::unique_ptr<calib::ActivationCache> hidden;
  std::unique_ptr<calib::ActivationCache> work;
  /// The second stream: the same samples in the model as a pass that compares with it finds it. Null when
  /// there is no such pass.
  std::unique_ptr<calib::ActivationCache> reference_hidden;
  std::unique_ptr<calib::ActivationCache> reference_work;
  std::unique_ptr<calib::SampleRunner> runner;

  calib::SampleStream reference() const { return {reference_hidden.get(), reference_work.get()}; }
};

/// What the journal knows a block by, and the hashes of the block's stored tensors, which are part of it.
struct BlockKey {
  std::string text;
  std::map<std::string, std::string> tensors;
};

/// What tells that a file has not been written to.
struct FileState {
  uintmax_t bytes = 0;
  std::filesystem::file_time_type written;

  bool operator==(const FileState&) const = default;
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

/// What the journal keeps of a surveyed block.
struct SurveyRecord {
  std::map<size_t, SurveyNumbers> numbers;  ///< by the entry of the job's list
  std::string samples_hash;                 ///< of the samples behind the block
  std::string sums_hash;                    ///< of the file with the surveys' sums; empty without any

  std::string to_json() const;
  static SurveyRecord from_json(const std::string& text);
};

/// One run of a job: the state that its steps share. `run` in pipeline.cpp says in which order they go.
class Run {
 public:
  Run(const Job& job, const MethodTable& methods, Observer& observer, const ReportWriter& write_reports);

  /// Calibration and evaluation text become tokens.
  void read_texts();
  /// Takes the working directory; false when an earlier run was killed right after publishing, and nothing is
  /// left to do.
  bool take_work_dir();
  void write_outer_tensors();
  /// Lets methods that choose settings for the whole model look at it first.
  void survey();
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
  void read_calibration(const io::Tokenizer& tokenizer);
  void read_evaluation(const io::Tokenizer& tokenizer);
  std::string job_key() const;
  void check_cancelled() const;
  void warn(const std::string& text);
  void watch_budget();
  void require_same_sources() const;
  void count_compressed(const model::Model& written);
  void step(const std::string& phase, int64_t done, int64_t total, const std::string& detail = "");

  // embedding.cpp
  at::Tensor token_counts() const;
  lowrank::EmbeddingFit fit_embedding_table();
  const Weight* embedding_table();
  void store_embedding(BlockRecord& record);
  void take_embedding(const BlockRecord& record);

  // survey.cpp
  std::filesystem::path survey_file(int64_t block) const;
  std::filesystem::path sums_file(int64_t block) const;
  bool restore_survey(int64_t block, const SurveyRecord& record);
  std::string save_sums(int64_t block);
  bool restore_sums(int64_t block, const std::string& hash);
  void resume_survey(std::vector<SurveyRecord>& records);
  void drop_samples();
  calib::Needs survey_needs() const;
  SurveyRecord survey_block(int64_t index);
  void apply_decision(size_t entry, const Survey& survey, const SurveyNumbers& numbers);

  // compress_blocks.cpp
  BlockKey block_key(const std::string& previous_key, int64_t block) const;
  int64_t adopt_finished_blocks();
  void start_samples();
  std::pair<std::string, std::string> save_samples(int64_t block) const;
  bool restore_samples(int64_t block, const BlockRecord& record);
  BlockRecord compress_block(int64_t index);
  bool is_staged(size_t pass) const;
  void observe(size_t pass, const model::Block& block, Observed& observed);
  static bool serves(const Observed& observed, const model::Block& block, const calib::Needs& needs);
  static calib::InputStats current_stats(const model::Block& block, const Observed& observed, size_t group);
  void run_pass(size_t pass, model::Block& block, Observed& observed, BlockRow& row, PassContext& context);
  void round_dense(model::Block& block, size_t pass);
  bool works_on(size_t entry, const model::Block& block) const;
  bool samples_go_beyond(int64_t block) const;
  void check_samples(int64_t block);
  void run_sequential_pass(const Pass& pass, model::Block& block, bool is_last, BlockRow& row,
                           PassContext& context);
  std::function<const PassOptions*(const std::string&)> settings_of(size_t entry, int64_t block) const;
  void store_block(const model::Block& block, BlockRecord& record);
  void commit_block(int64_t index, const BlockKey& key, BlockRecord record);
  static std::string part_name(int64_t block);
  std::filesystem::path samples_file(int64_t block) const;
  void take_record(const BlockKey& key, BlockRecord record);
  std::filesystem::path reference_file(int64_t block) const;
  void fill_roofline();

  // replay.cpp
  model::Model written_so_far(const std::vector<BlockRecord>& records) const;
  bool replay_samples(const std::vector<BlockRecord>& records);

  // gradient_sweep.cpp
  std::string gradient_key() const;
  void make_gradients(int64_t lowest);
  int64_t finished_gradients(int64_t lowest);
  void sweep_back(calib::GradientSweep& sweep, int64_t from, int64_t lowest);
  int64_t lowest_gradient_block(int64_t first_block) const;
  void read_gradients(const calib::Needs& needs, const model::Block& block, size_t group,
                      const PassContext& context, calib::InputStats& stats) const;
  std::filesystem::path gradient_file(int64_t block) const;
  std::filesystem::path gradient_state_file(int64_t block) const;

  const Job& job_;
  Observer& observer_;
  const ReportWriter& write_reports_;
  model::Model model_;
  Plan plan_;
  std::vector<ChainedPass> passes_;
  std::vector<std::string> files_;                     ///< that the methods' settings name
  std::map<size_t, std::unique_ptr<Survey>> surveys_;  ///< by the entry of the job's list
  ThreadPool pool_;
  PhaseClock clock_;
  RunReport report_;
  std::optional<io::WorkDir> work_;
  std::optional<io::CheckpointWriter> writer_;
  Samples samples_;
  WeightPtr embedding_;  ///< the compressed one, once it was needed
  calib::WorkCount gradient_work_;
  std::optional<eval::EvaluationText> evaluation_text_;
  std::string job_key_;
  std::string last_key_;
  std::string gradient_key_;
  int64_t peak_before_ = 0;  ///< resident memory of the process when the run began
  bool over_budget_ = false;
  std::map<std::string, FileState> sources_;  ///< what the run reads of the model, as it was at the beginning
  OutputRecord record_;
  std::map<std::string, model::QuantizationConfig::Group> groups_;
  std::vector<model::BlockWidths> widths_;  ///< of the finished blocks
};

}  // namespace lcomp::pipeline
