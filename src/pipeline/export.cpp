#include "lcomp/pipeline/export.h"

#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/io/checkpoint_writer.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/hf_dir.h"
#include "lcomp/io/work_dir.h"
#include "lcomp/version.h"
#include "pipeline/output_record.h"

namespace lcomp::pipeline {
namespace {

/// `tensor` with zeros behind what it has in dimension `dim`.
at::Tensor widened(const at::Tensor& tensor, int64_t dim, int64_t size) {
  if (tensor.size(dim) == size) return tensor;
  std::vector<int64_t> shape = tensor.sizes().vec();
  shape[static_cast<size_t>(dim)] = size;
  at::Tensor out = at::zeros(shape, tensor.options());
  out.narrow(dim, 0, tensor.size(dim)).copy_(tensor);
  return out;
}

/// One export: the state that its steps share.
class Export {
 public:
  Export(const std::filesystem::path& from, const std::filesystem::path& output, const ExportOptions& options,
         Observer& observer)
      : model_(model::Model::open(from)),
        from_(from),
        options_(options),
        observer_(observer),
        after_(architecture_after()),
        work_(output, key()),
        writer_(work_.path()) {}

  ExportResult run() {
    if (work_.published()) {  // by an export that was killed right after
      work_.remove();
      const model::Model written = model::Model::open(work_.output());
      return {.parameters = written.parameters(), .bytes = written.stored_bytes()};
    }
    if (!work_.discarded().empty()) observer_.note("earlier work is not continued: " + work_.discarded());
    // The parts and the shards made of them exist at the same time for a while.
    const auto bytes = static_cast<uint64_t>(model_.parameters()) * c10::elementSize(model_.dtype());
    io::require_free_space(std::filesystem::absolute(work_.output()).parent_path(), 2 * bytes);
    write_outer();
    for (int64_t block = 0; block < model_.size(); ++block) {
      if (observer_.cancelled()) throw Interrupted("export", "the export was asked to stop");
      observer_.progress({"export", block, model_.size(), ""});
      write_block(block);
    }
    observer_.progress({"export", model_.size(), model_.size(), ""});
    assemble();
    verify();
    work_.publish();
    return result_;
  }

 private:
  std::string key() const {
    return io::hash_of(fmt::format("{}\nexport {} {}\n{}\n{}", kVersion, options_.pad_widths,
                                   options_.shard_size, std::filesystem::absolute(from_).string(),
                                   model_.config_json()));
  }

  /// One width for all blocks, or an error, before anything is made.
  model::Architecture architecture_after() const {
    model::Architecture after = model_.architecture();
    for (int64_t block = 0; block < model_.size(); ++block) {
      for (const model::OperatorInfo& op : after.operators(block)) {
        const auto* stored = model_.group_of(op);
        if (stored != nullptr && (stored->input_activations || stored->format == "lcomp-llm-int8"))
          throw Unsupported(op.name, "the operator must not round its inputs to be written dense; it does");
      }
    }
    const model::BlockWidths widest = after.widest();
    const bool uneven = std::any_of(after.widths.begin(), after.widths.end(),
                                    [&](const model::BlockWidths& w) { return w != widest; });
    if (uneven && !options_.pad_widths) {
      throw Unsupported(
          from_.string(),
          "the blocks must have one width, or be padded to one (--pad-widths); they have different "
          "ones, which an ordinary checkpoint cannot say");
    }
    std::fill(after.widths.begin(), after.widths.end(), options_.pad_widths ? after.common_widths() : widest);
    return after;
  }

  void write_outer() {
    const std::string embedding = model_.embedding().name + ".";
    if (const WeightPtr& compressed = model_.compressed_embedding()) {
      const std::string name = embedding + "weight";
      const at::Tensor table = compressed->dense().to(model_.dtype());
      writer_.add(name, table);
      record_.changed[name] = io::MemoryCheckpoint({{name, table}}).hash_of_tensor(name);
    }
    for (const std::string& name : model_.outer_tensors()) {
      if (model_.compressed_embedding() && name.starts_with(embedding)) continue;
      record_.copied[name] = model_.checkpoint().hash_of_tensor(name);
      writer_.add_from(model_.checkpoint(), name);
    }
    writer_.commit_part("outer");
  }

  void write_block(int64_t index) {
    std::vector<std::string> written;
    const auto before = model_.architecture().operators(index), after = after_.operators(index);
    for (size_t i = 0; i < before.size(); ++i) {
      const model::OperatorInfo& op = after[i];
      const WeightPtr weight = model_.load_weight(before[i]);
      const at::Tensor dense =
          widened(widened(weight->dense().to(model_.dtype()), 0, op.out_features), 1, op.in_features);
      writer_.add(op.name + ".weight", dense);
      record_.decoded[op.name] = decoded_hash(dense);
      record_.described[op.name] = "dense";
      written.push_back(op.name + ".weight");
      ++result_.operators;
      if (model_.group_of(before[i]) != nullptr) ++result_.decoded;
      const bool grows = op.out_features != before[i].out_features || op.in_features != before[i].in_features;
      if (grows) ++result_.padded;
      if (op.out_features == before[i].out_features || !op.has_bias) continue;
      const std::string bias = op.name + ".bias";
      const at::Tensor longer = widened(model_.read_finite(bias), 0, op.out_features);
      writer_.add(bias, longer);
      record_.changed[bias] = io::MemoryCheckpoint({{bias, longer}}).hash_of_tensor(bias);
      written.push_back(bias);
    }
    for (const std::string& name : model_.block_tensors(index)) {
      const bool is_written = std::any_of(written.begin(), written.end(), [&](const std::string& prefix) {
        return name.starts_with(prefix);
      });
      if (is_written) continue;
      record_.copied[name] = model_.checkpoint().hash_of_tensor(name);
      writer_.add_from(model_.checkpoint(), name);
    }
    writer_.commit_part(fmt::format("{:04}", index));
  }

  void assemble() {
    const std::filesystem::path staging = work_.staging();
    std::filesystem::remove_all(staging);
    io::make_directories(staging);
    record_.files = writer_.finish(staging, static_cast<uint64_t>(options_.shard_size));
    record_.files.push_back(
        io::write_file_atomic(staging / "config.json", output_config(model_, {}, after_.widths)));
    for (const io::FileRecord& file : io::copy_companion_files(from_, staging)) record_.files.push_back(file);
    record_.version = kVersion;
    record_.source = std::filesystem::absolute(from_).string();
    record_.job_json = R"({"export": true})";
    io::write_file_atomic(staging / OutputRecord::kFileName, record_.to_json());
  }

  void verify() {
    Verification found;
    const std::string changed = compare_files(work_.staging(), record_, observer_, found);
    if (!changed.empty()) {
      // Not ours: what was written was hashed on its way to the disk.
      throw CorruptFile(work_.staging().string(), "the files must stay as they were written; " + changed);
    }
    const model::Model written = model::Model::open(work_.staging());
    const std::string difference = compare_tensors(written, record_, found);
    if (!difference.empty())
      throw InternalError("export", "the written checkpoint must equal what was read; " + difference);
    result_.parameters = written.parameters();
    result_.bytes = written.stored_bytes();
  }

  model::Model model_;
  std::filesystem::path from_;
  ExportOptions options_;
  Observer& observer_;
  model::Architecture after_;
  io::WorkDir work_;
  io::CheckpointWriter writer_;
  OutputRecord record_;
  ExportResult result_;
};

}  // namespace

ExportResult export_model(const std::filesystem::path& model, const std::filesystem::path& output,
                          const ExportOptions& options, Observer& observer) {
  return Export(model, output, options, observer).run();
}

}  // namespace lcomp::pipeline
