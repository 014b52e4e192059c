#include "lcomp/calib/sample_runner.h"

#include <chrono>
#include <cstring>

namespace lcomp::calib {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double& sum) : sum_(sum) {}
  ~Stopwatch() { sum_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& sum_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

int64_t input_width(const model::Block& block, size_t group) {
  return block.ops()[block.groups()[group].operators[0]].info.in_features;
}

}  // namespace

WorkCount& WorkCount::operator+=(const WorkCount& other) {
  forward_flops += other.forward_flops;
  forward_seconds += other.forward_seconds;
  statistics_flops += other.statistics_flops;
  statistics_seconds += other.statistics_seconds;
  return *this;
}

SampleRunner::SampleRunner(ThreadPool& pool, const model::Architecture& architecture, ActivationCache& hidden,
                           ActivationCache* work, int64_t batch_tokens)
    : pool_(pool), architecture_(architecture), hidden_(hidden), work_(work) {
  for (int64_t i = 0; i < hidden.samples(); ++i) {
    const int64_t length = hidden.length(i);
    if (batches_.empty() || batches_.back().tokens + length > batch_tokens) batches_.push_back({i, i, 0});
    batches_.back().end = i + 1;
    batches_.back().tokens += length;
  }
  for (int t = 0; t < pool.size(); ++t) scratch_.emplace_back();
  spare_work_.resize(static_cast<size_t>(pool.size()));
}

/// A sample at the input of group `group - 1`, with room for what `advance` to `group` leaves in `work`.
model::SampleState SampleRunner::load_state(const model::Block& block, size_t group, int64_t sample) const {
  model::SampleState state{hidden_.load(sample, architecture_.hidden_size), {}};
  const bool reads_work = group > 0 && block.groups()[group - 1].input_in_work;
  const bool writes_work = group < block.groups().size() && block.groups()[group].input_in_work;
  if (reads_work) {
    state.work = work_->load(sample, input_width(block, group - 1));
  } else if (writes_work && work_->storage() == ActivationCache::Storage::kMemory) {
    state.work = work_->load(sample, input_width(block, group));
  }
  return state;
}

/// Operations of going from the input of group `group - 1` to that of `group`, for all samples.
void SampleRunner::count_forward(const model::Block& block, size_t group) {
  if (group == 0) return;
  double per_token = 0;
  for (const size_t op : block.groups()[group - 1].operators) {
    const auto& info = block.ops()[op].info;
    per_token += 2.0 * static_cast<double>(info.out_features) * static_cast<double>(info.in_features);
  }
  for (int64_t i = 0; i < hidden_.samples(); ++i) {
    count_.forward_flops += per_token * static_cast<double>(hidden_.length(i));
    if (group == 1) {
      count_.forward_flops +=
          architecture_.attention_flops(hidden_.length(i)) / static_cast<double>(architecture_.layers);
    }
  }
}

InputStats SampleRunner::advance(const model::Block& block, size_t group, const Needs& needs) {
  count_forward(block, group);
  const int64_t width = input_width(block, group);
  const bool keeps_work = block.groups()[group].input_in_work;
  StatsAccumulator statistics(width, needs);
  for (const Batch& batch : batches_) {
    if (needs.any() && (!gathered_.defined() || gathered_.numel() < batch.tokens * width)) {
      gathered_ = at::empty({batch.tokens * width}, at::kFloat);
    }
    std::vector<int64_t> rows_before{0};
    for (int64_t i = batch.begin; i < batch.end; ++i)
      rows_before.push_back(rows_before.back() + hidden_.length(i));
    {
      const Stopwatch watch(count_.forward_seconds);
      pool_.parallel_for(batch.end - batch.begin, [&](int64_t k, int worker) {
        const int64_t sample = batch.begin + k;
        model::SampleState state = load_state(block, group, sample);
        const at::Tensor input = block.advance(group, state, scratch_[static_cast<size_t>(worker)]);
        if (needs.any()) {
          std::memcpy(gathered_.data_ptr<float>() + rows_before[static_cast<size_t>(k)] * width,
                      input.data_ptr(), static_cast<size_t>(input.numel()) * sizeof(float));
        }
        if (group > 0) hidden_.store(sample, state.hidden);
        if (keeps_work) work_->store(sample, state.work);
      });
    }
    const Stopwatch watch(count_.statistics_seconds);
    if (needs.any()) statistics.add(&pool_, gathered_.data_ptr<float>(), batch.tokens);
    if (needs.second_moment) {
      count_.statistics_flops +=
          static_cast<double>(batch.tokens) * static_cast<double>(width) * static_cast<double>(width);
    }
  }
  const Stopwatch watch(count_.statistics_seconds);
  return statistics.finish();
}

void SampleRunner::finish(const model::Block& block) {
  const size_t groups = block.groups().size();
  count_forward(block, groups);
  const Stopwatch watch(count_.forward_seconds);
  pool_.parallel_for(hidden_.samples(), [&](int64_t sample, int worker) {
    model::SampleState state = load_state(block, groups, sample);
    block.finish(state, scratch_[static_cast<size_t>(worker)]);
    hidden_.store(sample, state.hidden);
  });
}

std::vector<InputStats> SampleRunner::observe(const model::Block& block, const Needs& needs) {
  const size_t groups = block.groups().size();
  std::vector<StatsAccumulator> statistics;
  for (size_t g = 0; g < groups; ++g) {
    statistics.emplace_back(input_width(block, g), needs);
    if (g > 0) count_forward(block, g);
  }
  std::vector<at::Tensor> inputs(groups);
  for (const Batch& batch : batches_) {
    std::vector<int64_t> rows_before{0};
    for (int64_t i = batch.begin; i < batch.end; ++i)
      rows_before.push_back(rows_before.back() + hidden_.length(i));
    for (size_t g = 0; g < groups; ++g) {
      const int64_t count = batch.tokens * input_width(block, g);
      if (!inputs[g].defined() || inputs[g].numel() < count) inputs[g] = at::empty({count}, at::kFloat);
    }
    {
      const Stopwatch watch(count_.forward_seconds);
      pool_.parallel_for(batch.end - batch.begin, [&](int64_t k, int worker) {
        const auto thread = static_cast<size_t>(worker);
        // A copy: the cached samples stay where they are.
        model::SampleState state{hidden_.load(batch.begin + k, architecture_.hidden_size).clone(),
                                 spare_work_[thread]};
        for (size_t g = 0; g < groups; ++g) {
          const at::Tensor input = block.advance(g, state, scratch_[thread]);
          std::memcpy(inputs[g].data_ptr<float>() + rows_before[static_cast<size_t>(k)] * input.size(1),
                      input.data_ptr(), static_cast<size_t>(input.numel()) * sizeof(float));
        }
        spare_work_[thread] = state.work;
      });
    }
    const Stopwatch watch(count_.statistics_seconds);
    for (size_t g = 0; g < groups; ++g) {
      const auto width = static_cast<double>(input_width(block, g));
      statistics[g].add(&pool_, inputs[g].data_ptr<float>(), batch.tokens);
      if (needs.second_moment) count_.statistics_flops += static_cast<double>(batch.tokens) * width * width;
    }
  }
  const Stopwatch watch(count_.statistics_seconds);
  std::vector<InputStats> out;
  for (StatsAccumulator& accumulator : statistics) out.push_back(accumulator.finish());
  return out;
}

void SampleRunner::forward(const model::Block& block) {
  for (size_t g = 1; g <= block.groups().size(); ++g) count_forward(block, g);
  const Stopwatch watch(count_.forward_seconds);
  pool_.parallel_for(hidden_.samples(), [&](int64_t sample, int worker) {
    const auto thread = static_cast<size_t>(worker);
    model::SampleState state{hidden_.load(sample, architecture_.hidden_size), spare_work_[thread]};
    block.forward(state, scratch_[thread]);
    spare_work_[thread] = state.work;
    hidden_.store(sample, state.hidden);
  });
}

}  // namespace lcomp::calib
