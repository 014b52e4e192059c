#pragma once

#include <cstdint>
#include <vector>

#include "lcomp/calib/activation_cache.h"
#include "lcomp/calib/input_stats.h"
#include "lcomp/core/threads.h"
#include "lcomp/linalg/gemm.h"
#include "lcomp/model/block.h"

namespace lcomp::calib {

/// Floating-point operations counted from the shapes, and the processor seconds (over all threads) they took.
struct WorkCount {
  double forward_flops = 0;
  double forward_seconds = 0;
  double statistics_flops = 0;
  double statistics_seconds = 0;

  WorkCount& operator+=(const WorkCount& other);
};

/// The samples of one stream between two stages: the residual stream, and what a group reads that cannot be
/// had from it alone.
struct SampleStream {
  ActivationCache* hidden = nullptr;
  ActivationCache* work = nullptr;
};

/// Takes all cached samples through blocks. Samples run in parallel, each on one thread; statistics are
/// summed in the order of the samples. Everything is independent of the number of threads.
class SampleRunner {
 public:
  /// `hidden` holds the samples' residual stream. `work` has room for the widest group input that a block
  /// keeps in `SampleState::work`; it is needed by the staged calls only and may be null otherwise.
  /// `batch_tokens`: tokens whose group inputs are gathered before they enter a statistic; bounds the memory
  /// for them.
  SampleRunner(ThreadPool& pool, const model::Architecture& architecture, ActivationCache& hidden,
               ActivationCache* work, int64_t batch_tokens);

  /// Staged: takes all samples from the input of group `group - 1` (the block's input for 0) to that of
  /// `group`, with the weights that the block has now, and returns the statistics of what `group` reads. Call
  /// for each group in turn, then `finish`: one pass over the samples gives every statistic and the block's
  /// output.
  InputStats advance(const model::Block& block, size_t group, const Needs& needs);
  void finish(const model::Block& block);

  /// The same for two streams: the samples of `reference` go through `dense`, a block of the same shape, and
  /// the statistics have what `Needs::mismatch` and `halves` ask for. The halves are every other unit of
  /// about 2048 tokens.
  InputStats advance(const model::Block& block, const model::Block& dense, const SampleStream& reference,
                     size_t group, const Needs& needs);
  void finish(const model::Block& block, const model::Block& dense, const SampleStream& reference);

  /// The statistics of all groups with the weights that the block has now; the cached samples stay at its
  /// input.
  std::vector<InputStats> observe(const model::Block& block, const Needs& needs);

  /// Replaces each sample by the block's output.
  void forward(const model::Block& block);

  /// After units of a block were deleted while the samples stand at the input of `group`, `width` wide: keeps
  /// the columns of it that are left.
  void keep_columns(const at::Tensor& columns, int64_t width);

  /// Frees the buffers that calls keep for each other: worth it before something that needs the memory more.
  void release_buffers();

  const WorkCount& work_count() const { return count_; }

 private:
  /// Samples [begin, end) that enter a statistic in one step. Chosen by their lengths alone, so that sums do
  /// not depend on threads or on where the samples are kept: a long sample by itself, short ones together.
  struct Unit {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t tokens = 0;
  };
  /// Units [begin, end) whose samples run side by side.
  struct Batch {
    size_t begin = 0;
    size_t end = 0;
    int64_t tokens = 0;
  };

  void make_units();
  void make_batches(int64_t batch_tokens);
  int64_t first_sample(const Batch& batch) const { return units_[batch.begin].begin; }
  int64_t last_sample(const Batch& batch) const { return units_[batch.end - 1].end; }
  model::SampleState load_state(const SampleStream& stream, const model::Block& block, size_t group,
                                int64_t sample) const;
  bool reads_in_place(const model::Block& block, size_t group, const Unit& unit) const;
  bool must_gather(const model::Block& block, size_t group, const Batch& batch) const;
  void forward_batch(const SampleStream& stream, const model::Block& block, size_t group, const Batch& batch,
                     at::Tensor* gathered);
  void add_batch(const model::Block& block, size_t group, const Batch& batch, bool with_reference,
                 StatsAccumulator& statistics);
  InputStats advance_streams(const model::Block& block, const model::Block* dense,
                             const SampleStream& reference, size_t group, const Needs& needs);
  void finish_stream(const SampleStream& stream, const model::Block& block);
  int64_t total_tokens() const;
  void count_forward(const model::Block& block, size_t group);

  ThreadPool& pool_;
  const model::Architecture& architecture_;
  ActivationCache& hidden_;
  ActivationCache* work_;
  std::vector<Unit> units_;
  std::vector<Batch> batches_;
  std::vector<linalg::Scratch> scratch_;  // per thread
  std::vector<at::Tensor> spare_work_;    // per thread, for `observe` and `forward`
  at::Tensor gathered_;
  at::Tensor gathered_reference_;
  WorkCount count_;
};

}  // namespace lcomp::calib
