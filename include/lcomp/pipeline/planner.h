#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/linalg/gemm.h"
#include "lcomp/lowrank/morphemes.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/targets.h"

namespace lcomp::pipeline {

/// One operator and what the job makes of it.
struct OperatorPlan {
  std::string name;
  int64_t block = 0;
  int64_t group = 0;  ///< of operators that read one input, in the block
  int64_t out_features = 0;
  int64_t in_features = 0;
  std::vector<std::string> methods;  ///< of the passes that change it, in order; empty: untouched
  std::string scheme;                ///< what is stored
  int64_t bytes_before = 0;
  int64_t bytes_after = 0;
  bool is_estimate = false;  ///< of `bytes_after`: what becomes of the operator is decided in the run
};

/// Estimated peak of the resident memory, in bytes, by what it is for.
struct MemoryPlan {
  uint64_t program = 0;      ///< the process itself: libraries, tokenizer, freed memory that it keeps
  uint64_t block = 0;        ///< weights of one block, as stored and as they become
  uint64_t activations = 0;  ///< calibration samples kept in memory between blocks
  uint64_t statistics = 0;   ///< second moments held at once
  uint64_t solver = 0;       ///< factorisations and working copies while operators are solved
  uint64_t scratch = 0;      ///< per-thread buffers, weights laid out for products, the batch of a statistic
  uint64_t surveys = 0;      ///< what surveys add up over the whole model, before anything of it is solved
  uint64_t evaluation = 0;   ///< peak of the evaluation, which comes after the rest is freed
  uint64_t embedding = 0;    ///< peak of copying the tensors outside the blocks
  uint64_t gradients = 0;    ///< peak of the gradient sweep, which comes before the block loop

  /// Of the largest of the phases that follow each other; statistics are taken, then operators solved.
  uint64_t peak() const;
  /// All of the above by name, in this order.
  std::vector<std::pair<std::string, uint64_t>> parts() const;
};

/// Arithmetic of a job in floating-point operations, as if all of it were products of matrices: other work is
/// counted by what a processor would do of those meanwhile.
struct WorkPlan {
  double forward = 0;     ///< samples through the blocks, with `Plan::compute`
  double statistics = 0;  ///< second moments
  double gradients = 0;   ///< a sweep forth and back
  double solver = 0;      ///< of the methods, and reading, hashing and writing the weights
  double evaluation = 0;  ///< with `Plan::evaluation_compute`
};

/// A job resolved against its model, from the headers of its files.
struct Plan {
  std::vector<OperatorPlan> operators;
  std::optional<OperatorPlan> embedding;            ///< of a job that compresses it
  std::optional<lowrank::MorphemeIndex> morphemes;  ///< of its tokens, for morphte
  /// Settings per pass and operator (in the order of `operators`); null where a pass leaves an operator
  /// alone.
  std::vector<OperatorSettings> settings;
  /// What each pass by itself makes of its operators, in a line: most of them, and how many are made
  /// otherwise.
  std::vector<std::string> summaries;
  bool needs_calibration = false;  ///< a calibration text
  bool needs_samples = false;      ///< its samples pass the blocks in the block loop
  bool needs_gradients = false;    ///< they pass the blocks forth and back before it
  double gradient_matrices = 0;    ///< values that are kept of them for each weight
  double moment_matrices = 0;      ///< `[in, in]` matrices that the statistics of a group are, at most
  std::set<size_t> moments;        ///< of which operators second moments are taken, in `operators`
  uint64_t survey_bytes = 0;       ///< of what surveys add up over the blocks
  bool observes_blocks = false;    ///< a pass takes the statistics of all groups of a block at once
  /// A pass compares what it reads with the model as it found it, which takes a second stream of samples.
  bool compares_streams = false;
  linalg::Precision compute = linalg::Precision::kF32;             ///< of the calibration's forward passes
  linalg::Precision evaluation_compute = linalg::Precision::kF32;  ///< of the evaluation
  bool rounds_inputs = false;  ///< an operator's input is quantized as well
  bool activations_on_disk = false;
  int64_t batch_tokens = 0;
  int threads = 0;
  MemoryPlan memory;
  uint64_t disk_bytes = 0;  ///< needed at the output while the run is on
  int64_t parameters = 0;
  int64_t parameters_after = 0;  ///< of the matrices that are left: fewer where units are deleted
  uint64_t bytes_before = 0;     ///< of all tensors
  uint64_t bytes_after = 0;
  WorkPlan work;
  std::vector<std::string> warnings;
};

/// Resolves every operator's settings and estimates memory, disk and work. Throws ConfigError that lists
/// every setting that matches nothing or does not fit an operator, and ResourceError when `max_memory` cannot
/// be kept.
Plan make_plan(const Job& job, const MethodTable& methods, const model::Model& model);

/// A warning where the samples have fewer tokens than an operator whose second moments are taken has inputs;
/// empty else.
std::string few_tokens(const Plan& plan, int64_t tokens);

/// Estimated seconds of the run on this machine, whose speed of products it measures (half a second at most).
/// Its costs were fitted to runs of the methods with their default settings on models of up to 135 M
/// parameters, which it tells within a factor of 2; other programs on the machine, and disks that are slower
/// than the arithmetic, come on top.
double estimate_seconds(const Plan& plan);

/// Once the evaluation text is read: puts the memory for its real number of tokens into the plan. Throws
/// ResourceError when `max_memory` cannot be kept.
void check_evaluation_budget(const Job& job, const model::Model& model, Plan& plan, int64_t tokens);

/// `make_plan` from the job alone: opens the model (headers only). Warns of too few tokens, of which a run
/// warns when it has read its text.
Plan plan(const Job& job, const MethodTable& methods);

}  // namespace lcomp::pipeline
