#include <malloc.h>

#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/sparse/sparse_weight.h"
#include "linalg/value_range.h"
#include "model/weight_formats.h"
#include "pipeline/run.h"

/// The block loop of a run: load, compress, forward, write, commit.
namespace lcomp::pipeline {
namespace {

using calib::ActivationCache;

std::string block_step(int64_t block) {
  return fmt::format("block {}", block);
}

void prepare_all(model::Block& block, linalg::Precision precision) {
  for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, precision);
}

}  // namespace

std::string Run::part_name(int64_t block) {
  return fmt::format("{:04}", block);
}

void Run::compress_blocks() {
  if (plan_.needs_gradients && gradient_key_.empty()) last_key_ = gradient_key_ = gradient_key();
  const int64_t first = adopt_finished_blocks();
  if (plan_.needs_gradients) make_gradients(lowest_gradient_block(first));
  if (plan_.needs_samples && first == 0) start_samples();
  for (int64_t i = first; i < model_.size(); ++i) {
    check_cancelled();
    step("compress", i, model_.size(), fmt::format("block {} of {}", i + 1, model_.size()));
    const BlockKey key = block_key(last_key_, i);
    commit_block(i, key, compress_block(i));
    // A block's memory is free now, but small records that stay lie between: without this the pages between
    // them would remain resident, more of them with every block.
    malloc_trim(0);
    watch_budget();
    write_report(RunStatus::kRunning);
  }
  step("compress", model_.size(), model_.size());
  fill_roofline();
  samples_ = {};  // what comes now needs none
}

/// Depends on all that the block's result depends on: what came before it, and its own stored tensors.
BlockKey Run::block_key(const std::string& previous_key, int64_t block) const {
  BlockKey key;
  io::Hasher hasher;
  hasher.add(previous_key);
  for (const std::string& name : model_.block_tensors(block)) {
    const std::string hash = model_.checkpoint().hash_of_tensor(name);
    hasher.add(name + hash);
    key.tensors[name] = hash;
  }
  key.text = hasher.hex();
  return key;
}

/// Takes over the blocks that an earlier run finished, and returns the first that is left to do.
int64_t Run::adopt_finished_blocks() {
  std::vector<BlockRecord> records;
  std::vector<BlockKey> keys;
  for (int64_t i = 0; i < model_.size(); ++i) {
    BlockKey key = block_key(keys.empty() ? last_key_ : keys.back().text, i);
    std::string reason;
    const auto found = work_->journal().committed(block_step(i), key.text, &reason);
    if (!found) {
      if (work_->journal().has(block_step(i)))
        observer_.note(fmt::format("block {} and what is behind it is done again: {}", i + 1, reason));
      break;
    }
    records.push_back(BlockRecord::from_json(found->note));
    keys.push_back(std::move(key));
  }
  auto count = static_cast<int64_t>(records.size());
  const bool done = count == model_.size();
  if (count > 0 && !done && samples_go_beyond(count - 1) && !restore_samples(count - 1, records.back())) {
    observer_.note(fmt::format(
        "no activations are saved behind block {}: the samples pass the finished blocks again", count));
    bool same = false;
    try {
      same = replay_samples(records);
    } catch (const CorruptFile&) {  // what the finished blocks need stands in one that is to be done again
    }
    if (!same) {
      observer_.note("they do not come out as before: starting from the first block");
      count = 0;
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    records[at].row.resumed = true;
    writer_->adopt_part(part_name(i));
    take_record(keys[at], std::move(records[at]));
  }
  if (count > 0)
    observer_.note(fmt::format("continuing after {} finished blocks of {}", count, model_.size()));
  return count;
}

void Run::start_samples() {
  const PhaseClock::Scope scope(clock_, "load");
  const std::vector<int64_t> lengths = samples_.tokens.lengths();
  const model::Architecture& a = model_.architecture();
  const model::BlockWidths widths = a.widest();
  const int64_t widest = std::max({a.hidden_size, widths.heads * a.head_dim, widths.intermediate});
  const auto storage =
      plan_.activations_on_disk ? ActivationCache::Storage::kDisk : ActivationCache::Storage::kMemory;
  // First, or the end of an old one would take the name of its successor's file.
  samples_.runner.reset();
  for (auto* cache : {&samples_.hidden, &samples_.work, &samples_.reference_hidden, &samples_.reference_work})
    cache->reset();
  const auto make_cache = [&](int64_t width, const char* name) {
    const std::filesystem::path file = work_->path() / name;
    std::filesystem::remove(file);
    return std::make_unique<ActivationCache>(lengths, width, storage, file);
  };
  samples_.hidden = make_cache(a.hidden_size, "hidden.cache");
  samples_.work = make_cache(widest, "work.cache");
  if (plan_.compares_streams) {
    samples_.reference_hidden = make_cache(a.hidden_size, "reference-hidden.cache");
    samples_.reference_work = make_cache(widest, "reference-work.cache");
  }
  samples_.runner = std::make_unique<calib::SampleRunner>(pool_, a, *samples_.hidden, samples_.work.get(),
                                                          plan_.batch_tokens);
  // The second stream is the model as it came; the first starts from the embedding that will be written.
  const Weight* table = embedding_table();
  for (size_t i = 0; i < lengths.size(); ++i) {
    const auto& ids = samples_.tokens.sequences[i];
    samples_.hidden->store(static_cast<int64_t>(i), model_.embed(ids, {}, table));
    if (plan_.compares_streams) samples_.reference_hidden->store(static_cast<int64_t>(i), model_.embed(ids));
  }
}

std::filesystem::path Run::samples_file(int64_t block) const {
  return work_->path() / fmt::format("samples-{:04}.bin", block);
}

std::filesystem::path Run::reference_file(int64_t block) const {
  return work_->path() / fmt::format("reference-{:04}.bin", block);
}

/// Hashes of both streams of samples behind the block; empty for a stream that there is not.
std::pair<std::string, std::string> Run::save_samples(int64_t block) const {
  const int64_t width = model_.architecture().hidden_size;
  std::pair<std::string, std::string> hashes;
  hashes.first = samples_.hidden->write_to(samples_file(block), width);
  if (plan_.compares_streams)
    hashes.second = samples_.reference_hidden->write_to(reference_file(block), width);
  return hashes;
}

bool Run::restore_samples(int64_t block, const BlockRecord& record) {
  start_samples();
  const int64_t width = model_.architecture().hidden_size;
  try {
    if (samples_.hidden->read_from(samples_file(block), width) != record.samples_hash) return false;
    return !plan_.compares_streams ||
           samples_.reference_hidden->read_from(reference_file(block), width) == record.reference_hash;
  } catch (const Error&) {
    return false;
  }
}

BlockRecord Run::compress_block(int64_t index) {
  BlockRecord record;
  record.row.block = index;
  std::optional<model::Block> block;
  {
    const PhaseClock::Scope scope(clock_, "load", &record.row.load_seconds);
    block.emplace(model_.load_block(index));
  }
  const bool is_last = !samples_go_beyond(index);
  bool forwarded = false;
  Observed observed;
  for (size_t p = 0; p < passes_.size(); ++p) {
    const auto& [entry, pass] = passes_[p];
    // The second stream moves on in a staged pass only.
    const bool moves_streams = is_staged(p) && plan_.compares_streams && !is_last;
    if (!works_on(entry, *block) && !moves_streams) continue;
    const size_t rows_before = record.operators.size();
    PassContext context{pool_, job_.strict, model_.dtype(), settings_of(entry, index), record.operators};
    if (is_staged(p)) {
      run_sequential_pass(*pass, *block, is_last, record.row, context);
      forwarded = true;
    } else {
      run_pass(p, *block, observed, record.row, context);
    }
    if (!pass->keeps_function()) observed = {};
    for (size_t r = rows_before; r < record.operators.size(); ++r)
      record.operators[r].pass = static_cast<int64_t>(entry);
    round_dense(*block, p);
  }
  if (plan_.needs_samples && !forwarded && !is_last) {
    const PhaseClock::Scope scope(clock_, "forward", &record.row.forward_seconds);
    prepare_all(*block, plan_.compute);
    samples_.runner->forward(*block);
  }
  if (plan_.needs_samples && !is_last) check_samples(index);
  block->release();
  record.widths = block->widths();
  store_block(*block, record);
  return record;
}

std::function<const PassOptions*(const std::string&)> Run::settings_of(size_t entry, int64_t block) const {
  const auto per_block = static_cast<int64_t>(plan_.operators.size()) / model_.size();
  return [this, entry, first = block * per_block, per_block](const std::string& name) -> const PassOptions* {
    for (int64_t i = first; i < first + per_block; ++i) {
      if (plan_.operators[static_cast<size_t>(i)].name == name)
        return plan_.settings[entry][static_cast<size_t>(i)].get();
    }
    return nullptr;
  };
}

/// The statistics of one group come after the groups before it are compressed; the samples move on in the
/// same pass. A pass that compares with the model as it finds it has a second stream of samples, which goes
/// through a copy of the block.
void Run::run_sequential_pass(const Pass& pass, model::Block& block, bool is_last, BlockRow& row,
                              PassContext& context) {
  std::optional<model::Block> as_found;
  if (plan_.compares_streams)
    as_found.emplace(model_.architecture(), block.index(), block.ops(), block.norms());
  const auto prepare = [&](size_t group) {
    block.prepare(group, plan_.compute);
    if (as_found) as_found->prepare(group, plan_.compute);
  };
  for (size_t g = 0; g < block.groups().size(); ++g) {
    check_cancelled();
    const std::vector<size_t>& members = block.groups()[g].operators;
    const bool is_wanted = std::any_of(members.begin(), members.end(), [&](size_t op) {
      return context.settings(block.ops()[op].info.name) != nullptr;
    });
    const calib::Needs needs = is_wanted ? pass.needs() : calib::Needs{};
    calib::InputStats stats;
    {
      const PhaseClock::Scope scope(clock_, "calibrate", &row.calibrate_seconds);
      if (g > 0) prepare(g - 1);
      stats = as_found ? samples_.runner->advance(block, *as_found, samples_.reference(), g, needs)
                       : samples_.runner->advance(block, g, needs);
      if (g > 0) block.release(g - 1);
      if (g > 0 && as_found) as_found->release(g - 1);
    }
    // The factorisation of the widest input is the peak of the run's memory.
    if (g + 1 == block.groups().size()) samples_.runner->release_buffers();
    read_gradients(pass.needs(), block, g, context, stats);
    const at::Tensor before = block.kept_inputs(g);
    const int64_t width = block.ops()[members[0]].info.in_features;
    const PhaseClock::Scope scope(clock_, "solve", &row.solve_seconds);
    pass.compress(block, g, stats, context);
    const at::Tensor& kept = block.kept_inputs(g);
    if (!kept.is_same(before))
      samples_.runner->keep_columns(before.defined() ? at::searchsorted(before, kept) : kept, width);
  }
  if (is_last) return;
  const PhaseClock::Scope scope(clock_, "forward", &row.forward_seconds);
  prepare(block.groups().size() - 1);
  if (as_found) {
    samples_.runner->finish(block, *as_found, samples_.reference());
  } else {
    samples_.runner->finish(block);
  }
}

/// Whether the job's entry changes an operator of the block.
bool Run::works_on(size_t entry, const model::Block& block) const {
  const auto settings = settings_of(entry, block.index());
  return std::any_of(block.ops().begin(), block.ops().end(),
                     [&](const model::LinearOp& op) { return settings(op.info.name) != nullptr; });
}

/// Whether a block behind `block` has an operator whose pass reads samples.
bool Run::samples_go_beyond(int64_t block) const {
  for (const auto& [entry, pass] : passes_) {
    if (!pass->needs().any()) continue;
    for (size_t i = 0; i < plan_.operators.size(); ++i) {
      if (plan_.settings[entry][i] && plan_.operators[i].block > block) return true;
    }
  }
  return false;
}

/// A method that overflows shall not pass NaN on as the input of all that follows.
void Run::check_samples(int64_t block) {
  const int64_t width = model_.architecture().hidden_size;
  pool_.parallel_for(samples_.hidden->samples(), [&](int64_t i, int) {
    const at::Tensor states = samples_.hidden->load(i, width);
    float lowest = 0, highest = 0;
    if (linalg::value_range(states.data_ptr<float>(), states.numel(), &lowest, &highest)) return;
    std::string where = model_.architecture().block_prefix(block);
    where.pop_back();  // the dot
    throw NumericalError(
        where, fmt::format("the block's outputs must be finite; those for calibration sample {} are not: its "
                           "weights or inputs are too large for float32",
                           i));
  });
}

/// A sequential pass moves the samples on as it goes, so only the last to read them can be staged.
bool Run::is_staged(size_t p) const {
  return passes_[p].pass->sequential() && passes_[p].pass->needs().any() && p + 1 == passes_.size();
}

/// Statistics for pass `p` of all groups, with what the passes behind it will ask for as long as they can use
/// the same ones.
void Run::observe(size_t p, const model::Block& block, Observed& observed) {
  observed.needs = passes_[p].pass->needs();
  for (size_t next = p;
       passes_[next].pass->keeps_function() && next + 1 < passes_.size() &&
       !passes_[next + 1].pass->sequential() && passes_[next + 1].pass->needs().follow_scales();
       ++next) {
    observed.needs = observed.needs | passes_[next + 1].pass->needs();
  }
  observed.stats = samples_.runner->observe(block, observed.needs);
  observed.scales.clear();
  for (size_t g = 0; g < block.groups().size(); ++g) observed.scales.push_back(block.input_scale(g));
}

/// The statistics of a group's input as it is now: what was folded since they were taken divides them.
calib::InputStats Run::current_stats(const model::Block& block, const Observed& observed, size_t group) {
  const at::Tensor& now = block.input_scale(group);
  const at::Tensor& then = observed.scales[group];
  if (now.is_same(then)) return observed.stats[group];
  return calib::divided(observed.stats[group], then.defined() ? now / then : now);
}

/// Whether statistics that were taken before do for a pass that needs `needs`.
bool Run::serves(const Observed& observed, const model::Block& block, const calib::Needs& needs) {
  if (observed.stats.empty() || !observed.needs.covers(needs)) return false;
  if (needs.follow_scales()) return true;
  for (size_t g = 0; g < block.groups().size(); ++g) {
    if (!block.input_scale(g).is_same(observed.scales[g])) return false;
  }
  return true;
}

void Run::run_pass(size_t p, model::Block& block, Observed& observed, BlockRow& row, PassContext& context) {
  const Pass& pass = *passes_[p].pass;
  for (size_t g = 0; g < block.groups().size(); ++g) {
    const bool stale = g == 0 ? !serves(observed, block, pass.needs()) : pass.sequential();
    if (pass.needs().any() && stale) {
      const PhaseClock::Scope scope(clock_, "calibrate", &row.calibrate_seconds);
      prepare_all(block, plan_.compute);
      observe(p, block, observed);
    }
    check_cancelled();
    calib::InputStats stats = pass.needs().any() ? current_stats(block, observed, g) : calib::InputStats{};
    read_gradients(pass.needs(), block, g, context, stats);
    const PhaseClock::Scope scope(clock_, "solve", &row.solve_seconds);
    pass.compress(block, g, stats, context);
  }
}

/// Transforms leave float32 matrices behind. Those that no pass after `p` works on are stored dense, so they
/// are rounded to the model's type now: what follows sees the values that the output will have.
void Run::round_dense(model::Block& block, size_t p) {
  for (size_t op = 0; op < block.ops().size(); ++op) {
    const WeightPtr& weight = block.ops()[op].weight;
    const std::optional<at::ScalarType> type = sparse::matrix_type(*weight);
    if (!type || !block.replaced(op) || *type == model_.dtype()) continue;
    const auto works_on = [&](const ChainedPass& later) {
      return settings_of(later.entry, block.index())(block.ops()[op].info.name) != nullptr;
    };
    if (std::any_of(passes_.begin() + static_cast<int64_t>(p) + 1, passes_.end(), works_on)) continue;
    block.replace(op, sparse::replaced_matrix(*weight, weight->dense().to(model_.dtype())));
  }
}

/// Hands the block's tensors to the writer: those of changed operators as the weights say, changed norms and
/// biases in the type they came in, all others as they came.
void Run::store_block(const model::Block& block, BlockRecord& record) {
  const PhaseClock::Scope scope(clock_, "write", &record.row.write_seconds);
  std::vector<std::string> replaced;
  for (size_t i = 0; i < block.ops().size(); ++i) {
    const model::LinearOp& op = block.ops()[i];
    if (!block.replaced(i)) {
      if (const auto* stored = model_.group_of(op.info)) {
        auto& group = record.groups[op.info.name] = *stored;
        group.targets.clear();
      }
      continue;
    }
    replaced.push_back(op.info.name + ".weight");
    replaced.push_back(op.info.name + ".input_");
    if (job_.write.format == WriteFormat::kDense) {
      const at::Tensor dense = op.weight->dense().to(model_.dtype());
      writer_->add(op.info.name + ".weight", dense);
      record.decoded[op.info.name] = decoded_hash(dense);
      const auto last = std::find_if(record.operators.rbegin(), record.operators.rend(),
                                     [&](const OperatorRow& row) { return row.name == op.info.name; });
      if (last != record.operators.rend()) describe_as_dense(*last, static_cast<int64_t>(dense.nbytes()));
    } else {
      op.weight->save(*writer_, op.info.name);
      if (auto group = model::storage_group(*op.weight)) record.groups[op.info.name] = *group;
      record.decoded[op.info.name] = decoded_hash(*op.weight);
    }
  }
  for (const std::string& name : block.changed_vectors()) {
    const at::Tensor stored = block.vector(name).to(block.stored_type(name));
    replaced.push_back(name);
    writer_->add(name, stored);
    record.changed[name] = io::MemoryCheckpoint({{name, stored}}).hash_of_tensor(name);
  }
  for (const std::string& name : model_.block_tensors(block.index())) {
    const bool is_replaced = std::any_of(replaced.begin(), replaced.end(),
                                         [&](const std::string& prefix) { return name.starts_with(prefix); });
    if (!is_replaced) writer_->add_from(model_.checkpoint(), name);
  }
}

/// The samples behind the block, the block's tensors, then the journal's line: a kill anywhere between leaves
/// a state from which the block is done again or found done.
void Run::commit_block(int64_t index, const BlockKey& key, BlockRecord record) {
  const PhaseClock::Scope scope(clock_, "write");
  if (samples_go_beyond(index)) std::tie(record.samples_hash, record.reference_hash) = save_samples(index);
  const io::FileRecord part = writer_->commit_part(part_name(index));
  work_->journal().commit({block_step(index), key.text, {part}, record.to_json()});
  if (index > 0) {
    std::filesystem::remove(samples_file(index - 1));
    std::filesystem::remove(reference_file(index - 1));
  }
  std::filesystem::remove(gradient_file(index));
  take_record(key, std::move(record));
}

/// Adds a finished block to what the report, the config and the verification are made of.
void Run::take_record(const BlockKey& key, BlockRecord record) {
  last_key_ = key.text;
  for (const auto& tensor : key.tensors) {
    const std::string& name = tensor.first;
    const bool changed =
        record.changed.contains(name) ||
        std::any_of(record.decoded.begin(), record.decoded.end(), [&](const auto& op) {
          return name.starts_with(op.first + ".weight") || name.starts_with(op.first + ".input_");
        });
    if (!changed) record_.copied[name] = tensor.second;
  }
  record_.decoded.insert(record.decoded.begin(), record.decoded.end());
  record_.changed.insert(record.changed.begin(), record.changed.end());
  for (const OperatorRow& row : record.operators) {
    record_.described[row.name] = row.scheme;
    if (row.fell_back) report_.warnings.push_back(fmt::format("{}: fell back to {}", row.name, row.fallback));
  }
  groups_.insert(record.groups.begin(), record.groups.end());
  widths_.push_back(record.widths);
  report_.operators.insert(report_.operators.end(), record.operators.begin(), record.operators.end());
  report_.outliers = outlier_features(report_.operators, model_.size());
  report_.blocks.push_back(record.row);
}

/// What the matrix products of the calibration reached, against the best product that this processor does.
void Run::fill_roofline() {
  if (gradient_work_.forward_seconds > 0) {
    report_.roofline.push_back({"gradients", "f32", gradient_work_.forward_flops,
                                gradient_work_.forward_seconds,
                                linalg::measure_gemm_peak(linalg::Precision::kF32)});
  }
  if (!samples_.runner) return;
  const calib::WorkCount& count = samples_.runner->work_count();
  if (count.forward_seconds <= 0) return;
  const bool bf16 = plan_.compute == linalg::Precision::kBf16;
  report_.roofline.push_back({"forward", bf16 ? "bf16" : "f32", count.forward_flops, count.forward_seconds,
                              linalg::measure_gemm_peak(plan_.compute)});
  report_.roofline.push_back({"statistics", "f32", count.statistics_flops, count.statistics_seconds,
                              linalg::measure_gemm_peak(linalg::Precision::kF32)});
}

}  // namespace lcomp::pipeline
