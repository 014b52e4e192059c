#include "lcomp/calib/sample_runner.h"

#include <cstring>

#include "core/stopwatch.h"
#include "lcomp/core/error.h"

namespace lcomp::calib {
namespace {

/// Rows in front of each sample of a batch, and their number at the end.
std::vector<int64_t> row_offsets(const ActivationCache& samples, int64_t begin, int64_t end) {
  std::vector<int64_t> offsets{0};
  for (int64_t i = begin; i < end; ++i) offsets.push_back(offsets.back() + samples.length(i));
  return offsets;
}

/// Samples of at least this many tokens are not joined with others: a rank-k update over them is fast by
/// itself.
constexpr int64_t kLongSample = 512;

float* room_for(at::Tensor& buffer, int64_t count) {
  if (!buffer.defined() || buffer.numel() < count) {
    buffer = at::Tensor();  // the old memory goes before the new comes
    buffer = at::empty({count}, at::kFloat);
  }
  return buffer.data_ptr<float>();
}

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
  make_units();
  make_batches(batch_tokens);
  for (int t = 0; t < pool.size(); ++t) scratch_.emplace_back();
  spare_work_.resize(static_cast<size_t>(pool.size()));
}

/// A sample at the input of group `group - 1`, with room for what `advance` to `group` leaves in `work`.
model::SampleState SampleRunner::load_state(const SampleStream& stream, const model::Block& block,
                                            size_t group, int64_t sample) const {
  model::SampleState state{stream.hidden->load(sample, architecture_.hidden_size), {}};
  const bool reads_work = group > 0 && block.groups()[group - 1].input_in_work;
  const bool writes_work = group < block.groups().size() && block.groups()[group].input_in_work;
  if (reads_work) {
    state.work = stream.work->load(sample, input_width(block, group - 1));
  } else if (writes_work && stream.work->storage() == ActivationCache::Storage::kMemory) {
    state.work = stream.work->load(sample, input_width(block, group));
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

void SampleRunner::make_units() {
  constexpr int64_t kUnitTokens = 2048;
  for (int64_t i = 0; i < hidden_.samples(); ++i) {
    const int64_t length = hidden_.length(i);
    const bool joins = !units_.empty() && length < kLongSample && hidden_.length(i - 1) < kLongSample &&
                       units_.back().tokens + length <= kUnitTokens;
    if (!joins) units_.push_back({i, i, 0});
    units_.back().end = i + 1;
    units_.back().tokens += length;
  }
}

void SampleRunner::make_batches(int64_t batch_tokens) {
  for (size_t u = 0; u < units_.size(); ++u) {
    if (batches_.empty() || batches_.back().tokens + units_[u].tokens > batch_tokens)
      batches_.push_back({u, u, 0});
    batches_.back().end = u + 1;
    batches_.back().tokens += units_[u].tokens;
  }
}

/// Long samples whose group input stays in the work cache enter a statistic where they are; the others are
/// gathered first, because a rank-k update over few rows is slow.
bool SampleRunner::reads_in_place(const model::Block& block, size_t group, const Unit& unit) const {
  return block.groups()[group].input_in_work && work_->storage() == ActivationCache::Storage::kMemory &&
         unit.end - unit.begin == 1 && unit.tokens >= kLongSample;
}

bool SampleRunner::must_gather(const model::Block& block, size_t group, const Batch& batch) const {
  for (size_t u = batch.begin; u < batch.end; ++u) {
    if (!reads_in_place(block, group, units_[u])) return true;
  }
  return false;
}

/// Takes the samples of a batch to the input of `group`; with `gathered` the inputs end up side by side in
/// it.
void SampleRunner::forward_batch(const SampleStream& stream, const model::Block& block, size_t group,
                                 const Batch& batch, at::Tensor* gathered) {
  const CpuTimer watch(count_.forward_seconds);
  const int64_t width = input_width(block, group);
  const bool in_work = block.groups()[group].input_in_work;
  const int64_t first = first_sample(batch);
  const std::vector<int64_t> offsets = row_offsets(hidden_, first, last_sample(batch));
  const bool keep = gathered != nullptr;
  if (!keep && !in_work) gathered = &gathered_;  // the input needs a place all the same
  float* places = gathered == nullptr ? nullptr : room_for(*gathered, batch.tokens * width);
  pool_.parallel_for(last_sample(batch) - first, [&](int64_t k, int worker) {
    const int64_t sample = first + k;
    float* place = places == nullptr ? nullptr : places + offsets[static_cast<size_t>(k)] * width;
    model::SampleState state = load_state(stream, block, group, sample);
    const at::Tensor input =
        block.advance(group, state, scratch_[static_cast<size_t>(worker)], in_work ? nullptr : place);
    if (in_work && keep) {
      std::memcpy(place, input.data_ptr(), static_cast<size_t>(input.numel()) * sizeof(float));
    }
    if (group > 0) stream.hidden->store(sample, state.hidden);
    if (in_work) stream.work->store(sample, state.work);
  });
}

void SampleRunner::add_batch(const model::Block& block, size_t group, const Batch& batch, bool with_reference,
                             StatsAccumulator& statistics) {
  const CpuTimer watch(count_.statistics_seconds);
  const int64_t width = input_width(block, group);
  int64_t row = 0;
  for (size_t u = batch.begin; u < batch.end; ++u) {
    const Unit& unit = units_[u];
    const float* input = reads_in_place(block, group, unit) ? work_->load(unit.begin, width).data_ptr<float>()
                                                            : gathered_.data_ptr<float>() + row * width;
    float* reference = with_reference ? gathered_reference_.data_ptr<float>() + row * width : nullptr;
    statistics.add(&pool_, input, unit.tokens, reference, u % 2);
    row += unit.tokens;
  }
}

int64_t SampleRunner::total_tokens() const {
  int64_t sum = 0;
  for (const Unit& unit : units_) sum += unit.tokens;
  return sum;
}

InputStats SampleRunner::advance(const model::Block& block, size_t group, const Needs& needs) {
  return advance_streams(block, nullptr, {}, group, needs);
}

InputStats SampleRunner::advance(const model::Block& block, const model::Block& dense,
                                 const SampleStream& reference, size_t group, const Needs& needs) {
  return advance_streams(block, &dense, reference, group, needs);
}

InputStats SampleRunner::advance_streams(const model::Block& block, const model::Block* dense,
                                         const SampleStream& reference, size_t group, const Needs& needs) {
  const bool compares = needs.mismatch || needs.halves;
  if (compares && dense == nullptr) {
    throw InvalidArgument("SampleRunner::advance",
                          "the mismatch must have a second stream of samples to compare with; there is none");
  }
  count_forward(block, group);
  if (dense != nullptr) count_forward(*dense, group);
  const auto width = static_cast<double>(input_width(block, group));
  StatsAccumulator statistics(input_width(block, group), needs, total_tokens());
  for (const Batch& batch : batches_) {
    const bool gather = needs.any() && must_gather(block, group, batch);
    forward_batch({&hidden_, work_}, block, group, batch, gather ? &gathered_ : nullptr);
    if (dense != nullptr) forward_batch(reference, *dense, group, batch, &gathered_reference_);
    if (!needs.any()) continue;
    add_batch(block, group, batch, compares, statistics);
    const double products = (needs.second_moment || needs.halves ? 1.0 : 0.0) + (compares ? 2.0 : 0.0);
    count_.statistics_flops += products * static_cast<double>(batch.tokens) * width * width;
  }
  const CpuTimer watch(count_.statistics_seconds);
  return statistics.finish();
}

void SampleRunner::finish_stream(const SampleStream& stream, const model::Block& block) {
  const size_t groups = block.groups().size();
  count_forward(block, groups);
  const CpuTimer watch(count_.forward_seconds);
  pool_.parallel_for(hidden_.samples(), [&](int64_t sample, int worker) {
    model::SampleState state = load_state(stream, block, groups, sample);
    block.finish(state, scratch_[static_cast<size_t>(worker)]);
    stream.hidden->store(sample, state.hidden);
  });
}

void SampleRunner::finish(const model::Block& block) {
  finish_stream({&hidden_, work_}, block);
}

void SampleRunner::finish(const model::Block& block, const model::Block& dense,
                          const SampleStream& reference) {
  finish_stream({&hidden_, work_}, block);
  finish_stream(reference, dense);
}

std::vector<InputStats> SampleRunner::observe(const model::Block& block, const Needs& needs) {
  if (needs.mismatch || needs.halves) {
    throw InvalidArgument("SampleRunner::observe",
                          "the mismatch must be taken group by group; use advance with a second stream");
  }
  const size_t groups = block.groups().size();
  std::vector<StatsAccumulator> statistics;
  for (size_t g = 0; g < groups; ++g) {
    statistics.emplace_back(input_width(block, g), needs, total_tokens());
    if (g > 0) count_forward(block, g);
  }
  std::vector<at::Tensor> inputs(groups);
  for (const Batch& batch : batches_) {
    const int64_t first = first_sample(batch);
    const std::vector<int64_t> offsets = row_offsets(hidden_, first, last_sample(batch));
    for (size_t g = 0; g < groups; ++g) room_for(inputs[g], batch.tokens * input_width(block, g));
    {
      const CpuTimer watch(count_.forward_seconds);
      pool_.parallel_for(last_sample(batch) - first, [&](int64_t k, int worker) {
        const auto thread = static_cast<size_t>(worker);
        // A copy: the cached samples stay where they are.
        model::SampleState state{hidden_.load(first + k, architecture_.hidden_size).clone(),
                                 spare_work_[thread]};
        for (size_t g = 0; g < groups; ++g) {
          float* place =
              inputs[g].data_ptr<float>() + offsets[static_cast<size_t>(k)] * input_width(block, g);
          const at::Tensor input = block.advance(g, state, scratch_[thread], place);
          if (input.data_ptr<float>() != place) {
            std::memcpy(place, input.data_ptr(), static_cast<size_t>(input.numel()) * sizeof(float));
          }
        }
        spare_work_[thread] = state.work;
      });
    }
    const CpuTimer watch(count_.statistics_seconds);
    for (size_t g = 0; g < groups; ++g) {
      const auto width = static_cast<double>(input_width(block, g));
      int64_t row = 0;
      for (size_t u = batch.begin; u < batch.end; row += units_[u++].tokens) {
        statistics[g].add(&pool_, inputs[g].data_ptr<float>() + row * input_width(block, g),
                          units_[u].tokens);
      }
      if (needs.second_moment) count_.statistics_flops += static_cast<double>(batch.tokens) * width * width;
    }
  }
  const CpuTimer watch(count_.statistics_seconds);
  std::vector<InputStats> out;
  out.reserve(statistics.size());
  for (StatsAccumulator& accumulator : statistics) out.push_back(accumulator.finish());
  return out;
}

void SampleRunner::forward(const model::Block& block) {
  for (size_t g = 1; g <= block.groups().size(); ++g) count_forward(block, g);
  const CpuTimer watch(count_.forward_seconds);
  pool_.parallel_for(hidden_.samples(), [&](int64_t sample, int worker) {
    const auto thread = static_cast<size_t>(worker);
    model::SampleState state{hidden_.load(sample, architecture_.hidden_size), spare_work_[thread]};
    block.forward(state, scratch_[thread]);
    spare_work_[thread] = state.work;
    hidden_.store(sample, state.hidden);
  });
}

void SampleRunner::keep_columns(const at::Tensor& columns, int64_t width) {
  pool_.parallel_for(hidden_.samples(), [&](int64_t sample, int) {
    work_->store(sample, work_->load(sample, width).index_select(1, columns));
  });
}

void SampleRunner::release_buffers() {
  gathered_ = at::Tensor();
  gathered_reference_ = at::Tensor();
  for (linalg::Scratch& scratch : scratch_) scratch.release();
  for (at::Tensor& work : spare_work_) work = at::Tensor();
}

}  // namespace lcomp::calib
