#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint.h"
#include "pipeline/run.h"

/// The samples of a run again, from the blocks that an earlier run finished.
namespace lcomp::pipeline {
namespace {

/// A checkpoint whose tensors come from several: of those that have a name, the last that was added.
class LayeredCheckpoint final : public io::Checkpoint {
 public:
  void add(const io::CheckpointPtr& checkpoint, const std::vector<std::string>& names) {
    for (const std::string& name : names) sources_[name] = checkpoint;
    names_.clear();
    for (const auto& entry : sources_) names_.push_back(entry.first);
  }

  const std::vector<std::string>& names() const override { return names_; }
  bool contains(const std::string& name) const override { return sources_.contains(name); }
  const io::TensorInfo& info(const std::string& name) const override { return of(name).info(name); }
  at::Tensor read(const std::string& name) const override { return of(name).read(name); }
  at::Tensor read_as_float(const std::string& name) const override { return of(name).read_as_float(name); }
  void read_bytes(const std::string& name, uint64_t offset, std::span<std::byte> out) const override {
    of(name).read_bytes(name, offset, out);
  }
  std::string file_of(const std::string& name) const override { return of(name).file_of(name); }
  const std::vector<std::string>& warnings() const override { return warnings_; }

 private:
  const io::Checkpoint& of(const std::string& name) const { return *sources_.at(name); }

  std::map<std::string, io::CheckpointPtr> sources_;
  std::vector<std::string> names_;
  std::vector<std::string> warnings_;
};

}  // namespace

/// The model with its first blocks as an earlier run wrote them.
model::Model Run::written_so_far(const std::vector<BlockRecord>& records) const {
  const auto count = static_cast<int64_t>(records.size());
  const auto checkpoint = std::make_shared<LayeredCheckpoint>();
  const io::CheckpointPtr source(io::CheckpointPtr(), &model_.checkpoint());  // which outlives it
  auto groups = groups_;
  std::vector<model::BlockWidths> widths;
  const auto add_part = [&](const std::string& part) {
    const auto written = io::open_checkpoint(writer_->path_of(part));
    checkpoint->add(written, written->names());
  };
  add_part("outer");
  for (int64_t i = 0; i < model_.size(); ++i) {
    if (i >= count) {
      checkpoint->add(source, model_.block_tensors(i));
      widths.push_back(model_.architecture().block_widths(i));
      continue;
    }
    add_part(part_name(i));
    const BlockRecord& record = records[static_cast<size_t>(i)];
    groups.insert(record.groups.begin(), record.groups.end());
    widths.push_back(record.widths);
  }
  return {output_config(model_, groups, widths), checkpoint, work_->path().string()};
}

/// Takes the samples through the finished blocks once more. False when they do not come out as they did then.
bool Run::replay_samples(const std::vector<BlockRecord>& records) {
  start_samples();
  const model::Model written = written_so_far(records);
  const auto count = static_cast<int64_t>(records.size());
  for (int64_t i = 0; i < count; ++i) {
    check_cancelled();
    step("replay", i, count, fmt::format("block {} of {}", i + 1, count));
    const PhaseClock::Scope scope(clock_, "forward");
    model::Block block = written.load_block(i);
    std::optional<model::Block> as_found;
    if (plan_.compares_streams) as_found.emplace(model_.load_block(i));
    for (size_t g = 0; g <= block.groups().size(); ++g) {
      if (g > 0) block.prepare(g - 1, plan_.compute);
      if (g > 0 && as_found) as_found->prepare(g - 1, plan_.compute);
      if (g == block.groups().size()) break;
      as_found ? samples_.runner->advance(block, *as_found, samples_.reference(), g, {})
               : samples_.runner->advance(block, g, {});
    }
    as_found ? samples_.runner->finish(block, *as_found, samples_.reference())
             : samples_.runner->finish(block);
  }
  return save_samples(count - 1) == std::pair(records.back().samples_hash, records.back().reference_hash);
}

}  // namespace lcomp::pipeline
