#include "pipeline/run.h"

#include <limits>
#include <set>

#include "io/json_util.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/hf_dir.h"
#include "lcomp/pipeline/verify.h"
#include "lcomp/version.h"
#include "pipeline/embedding.h"

namespace lcomp::pipeline {
namespace {

const char* precision_name(linalg::Precision precision) {
  return precision == linalg::Precision::kBf16 ? "bf16" : "f32";
}

std::vector<LengthCount> histogram(const std::vector<int64_t>& lengths) {
  std::map<int64_t, int64_t> counts;
  for (const int64_t length : lengths) ++counts[length];
  std::vector<LengthCount> out;
  out.reserve(counts.size());
  for (const auto& [length, count] : counts) out.push_back({length, count});
  return out;
}

EvaluationRow evaluation_row(const std::string& model, const eval::EvaluationText& text,
                             const eval::Evaluation& scores, linalg::Precision precision) {
  EvaluationRow row;
  row.model = model;
  row.text = text.file;
  row.text_hash = text.text_hash;
  row.tokenizer_hash = text.tokenizer_hash;
  row.tokens = scores.tokens;
  row.windows = scores.windows;
  row.window = text.window;
  row.stride = text.stride;
  row.seconds = scores.seconds;
  row.protocol = eval::protocol(text, precision);
  return row;
}

/// What stands around each sample: encoders are trained on nothing else.
io::SpecialTokens special_tokens_of(const model::Model& model, const io::Tokenizer& tokenizer) {
  return model.architecture().is_language_model() ? io::SpecialTokens{} : tokenizer.special_tokens();
}

void check_vocabulary(const std::vector<std::vector<int64_t>>& sequences, int64_t vocabulary,
                      const std::string& file) {
  for (const auto& ids : sequences) {
    const auto wrong = std::find_if(ids.begin(), ids.end(), [&](int64_t id) { return id >= vocabulary; });
    if (wrong != ids.end()) {
      throw CorruptFile(file, fmt::format("token ids must be below the model's vocab_size = {}; one is {}",
                                          vocabulary, *wrong));
    }
  }
}

/// A text has thousands.
constexpr size_t kFewDifferentTokens = 32;

FileState state_of(const std::string& file) {
  return {std::filesystem::file_size(file), std::filesystem::last_write_time(file)};
}

}  // namespace

Run::Run(const Job& job, const MethodTable& methods, Observer& observer, const ReportWriter& write_reports)
    : job_(job),
      observer_(observer),
      write_reports_(write_reports),
      model_(model::Model::open(job.model)),
      plan_(make_plan(job, methods, model_)),
      pool_(static_cast<int>(job.threads)) {
  peak_before_ = peak_rss_bytes();
  for (const std::string& name : model_.checkpoint().names())
    sources_.emplace(model_.checkpoint().file_of(name), FileState{});
  for (const std::string& name : io::companion_files(job.model))
    sources_.emplace((std::filesystem::path(job.model) / name).string(), FileState{});
  for (auto& [file, state] : sources_) state = state_of(file);
  report_.version = kVersion;
  report_.started_at = utc_now();
  report_.output = job.output;
  report_.job_json = to_json(job);
  report_.host = host_facts(pool_.size(), precision_name(plan_.compute));
  report_.model = {job.model,
                   model_.architecture().family,
                   dtype_name(model_.dtype()),
                   model_.parameters(),
                   model_.size(),
                   static_cast<int64_t>(model_.stored_bytes())};
  report_.warnings = plan_.warnings;
  report_.totals.parameters = plan_.parameters;
  report_.totals.bytes_before = static_cast<int64_t>(plan_.bytes_before);
  report_.totals.bytes_after = static_cast<int64_t>(plan_.bytes_after);
  for (size_t p = 0; p < job.passes.size(); ++p) {
    const MethodInfo& method = methods.find(job.passes[p].method);
    if (method.files) {
      for (std::string& file : method.files(*job.passes[p].options)) files_.push_back(std::move(file));
    }
    for (auto& pass : method.make_passes(*job.passes[p].options)) passes_.push_back({p, std::move(pass)});
    if (method.make_survey) {
      if (auto survey = method.make_survey(*job.passes[p].options, model_)) surveys_[p] = std::move(survey);
    }
    const OperatorSettings& settings = plan_.settings[p];
    const auto operators =
        static_cast<int64_t>(settings.size()) - std::count(settings.begin(), settings.end(), nullptr);
    report_.passes.push_back({job.passes[p].method, plan_.summaries[p], operators});
  }
  if (job.embedding)
    report_.passes.push_back({std::string(kEmbeddingPass), embedding_summary(*job.embedding), 1});
}

void Run::check_cancelled() const {
  if (observer_.cancelled())
    throw Interrupted("run", "the run was asked to stop; the same command continues it");
}

void Run::warn(const std::string& text) {
  report_.warnings.push_back(text);
  observer_.warning(text);
}

/// What a run takes may be more than was planned: says so once, while there is still time to stop it. What
/// the process had taken before is not the run's.
void Run::watch_budget() {
  const int64_t peak = peak_rss_bytes();
  if (job_.max_memory <= 0 || over_budget_ || peak <= job_.max_memory || peak_before_ > job_.max_memory)
    return;
  over_budget_ = true;
  warn(fmt::format(
      "max_memory: the peak must stay within {} MB; it is {} MB ({} MB were planned). A run that is "
      "stopped goes on with fewer threads, or with its samples on disk",
      job_.max_memory / 1'000'000, peak / 1'000'000, plan_.memory.peak() / 1'000'000));
}

/// What was made of a block that was changed later would be published beside what was made of the others.
void Run::require_same_sources() const {
  for (const auto& [file, state] : sources_) {
    if (std::filesystem::exists(file) && state_of(file) == state) continue;
    throw CorruptFile(
        file,
        "the model must stay as it is while a run reads it; the file has changed since the run began. "
        "The same command does again what depends on it");
  }
}

void Run::step(const std::string& phase, int64_t done, int64_t total, const std::string& detail) {
  observer_.progress({phase, done, total, detail});
}

/// Everything but the model's weights that the bytes of the output depend on, each part by its name and hash.
/// Neither threads nor the memory budget nor the evaluation are part of it, so a run may be continued with
/// others.
std::string Run::job_key() const {
  Job same = job_;
  same.output.clear();
  same.threads = 0;
  same.max_memory = 0;
  same.evaluate.reset();
  same.calibration.cache = CachePlace::kAuto;
  io::Hasher files;
  for (const std::string& file : files_) files.add(io::hash_of_file(file));
  if (job_.embedding && !job_.embedding->segments.empty())
    files.add(io::hash_of_file(job_.embedding->segments));
  const bool calibrated = report_.calibration.has_value();
  std::string tokenizer = calibrated ? report_.calibration->tokenizer_hash : "";
  if (job_.embedding && job_.embedding->method == lowrank::EmbeddingMethod::kMorphTe)
    tokenizer += io::hash_of_file(std::filesystem::path(job_.model) / "tokenizer.json");
  return io::job_key({{"settings", io::hash_of(to_json(same))},
                      {"model config", io::hash_of(model_.config_json())},
                      {"calibration text", calibrated ? report_.calibration->text_hash : ""},
                      {"tokenizer", tokenizer},
                      {"files that settings name", files.hex()},
                      {"precision", precision_name(plan_.compute)},
                      {"version of lcomp", kVersion}});
}

bool Run::take_work_dir() {
  const std::filesystem::path parent = std::filesystem::absolute(job_.output).parent_path();
  io::make_directories(parent);
  job_key_ = job_key();
  work_.emplace(job_.output, job_key_);
  if (work_->published()) {
    work_->remove();
    report_ = from_json(io::read_file(std::filesystem::path(job_.output) / "report.json"));
    return false;
  }
  for (const std::string& reason : {work_->discarded(), work_->journal().discarded()}) {
    if (!reason.empty()) observer_.note("earlier work is not continued: " + reason);
  }
  // What an earlier run left is part of what the whole run needs.
  const uint64_t present = io::bytes_of_files(work_->path());
  io::require_free_space(parent, plan_.disk_bytes - std::min(plan_.disk_bytes, present));
  writer_.emplace(work_->path());
  return true;
}

void Run::read_texts() {
  if (!plan_.needs_calibration && !job_.evaluate) return;
  const PhaseClock::Scope scope(clock_, "tokenize");
  const auto tokenizer = io::Tokenizer::from_file(std::filesystem::path(job_.model) / "tokenizer.json");
  if (plan_.needs_calibration) read_calibration(tokenizer);
  if (job_.evaluate) read_evaluation(tokenizer);
}

void Run::read_calibration(const io::Tokenizer& tokenizer) {
  const CalibrationOptions& c = job_.calibration;
  samples_.tokens = calib::read_samples(
      c.text, tokenizer,
      {c.jsonl_field, c.samples, c.length, c.starts, c.short_samples, special_tokens_of(model_, tokenizer)});
  const calib::TokenSamples& tokens = samples_.tokens;
  check_vocabulary(tokens.sequences, model_.architecture().vocab_size, c.text);
  CalibrationFacts facts;
  facts.file = c.text;
  facts.text_hash = tokens.text_hash;
  facts.tokenizer_hash = tokenizer.hash();
  facts.samples = static_cast<int64_t>(tokens.sequences.size());
  facts.tokens = tokens.tokens();
  facts.sequence_starts = facts.samples;
  facts.lengths = histogram(tokens.lengths());
  facts.short_policy = name_of(c.short_samples);
  facts.short_dropped = tokens.short_dropped;
  facts.short_packed = tokens.short_packed;
  report_.calibration = facts;
  std::set<int64_t> different;
  for (const auto& ids : tokens.sequences) different.insert(ids.begin(), ids.end());
  if (different.size() < kFewDifferentTokens) {
    warn(fmt::format(
        "calibration: the samples have only {} different tokens, which tell little of the inputs that the "
        "model will see",
        different.size()));
  }
  if (const std::string few = few_tokens(plan_, facts.tokens); !few.empty()) warn(few);
  for (const std::string& warning : tokens.warnings) warn(warning);
}

void Run::read_evaluation(const io::Tokenizer& tokenizer) {
  const EvaluateOptions& e = *job_.evaluate;
  evaluation_text_ =
      eval::read_evaluation_text(model_, e.text, tokenizer, {e.window, e.stride, e.max_windows});
  check_vocabulary(evaluation_text_->windows, model_.architecture().vocab_size, e.text);
  int64_t tokens = 0;
  for (const auto& window : evaluation_text_->windows) tokens += static_cast<int64_t>(window.size());
  check_evaluation_budget(job_, model_, plan_, tokens);
}

void Run::write_outer_tensors() {
  io::Hasher hasher;
  hasher.add(job_key_);
  for (const std::string& name : model_.outer_tensors()) {
    const std::string hash = model_.checkpoint().hash_of_tensor(name);
    record_.copied[name] = hash;
    hasher.add(name + hash);
  }
  last_key_ = hasher.hex();
  if (model_.compressed_embedding()) {  // copied
    auto& group = groups_[model_.embedding().name] = *model_.group_of(model_.embedding());
    group.targets.clear();
  }
  const std::string of_embedding = model_.embedding().name + ".";
  if (const auto found = work_->journal().committed("outer", last_key_)) {
    writer_->adopt_part("outer");
    if (job_.embedding) take_embedding(BlockRecord::from_json(found->note));
    return;
  }
  BlockRecord record;
  record.widths = model_.architecture().widest();
  if (job_.embedding) store_embedding(record);
  const PhaseClock::Scope scope(clock_, "write");
  for (const std::string& name : model_.outer_tensors()) {
    if (job_.embedding && name.starts_with(of_embedding)) continue;
    if (io::scalar_type_of(model_.checkpoint().info(name).dtype)) {
      writer_->add(name, model_.read_finite(name));
    } else {
      writer_->add_from(model_.checkpoint(), name);
    }
  }
  work_->journal().commit({"outer", last_key_, {writer_->commit_part("outer")}, record.to_json()});
  if (job_.embedding) take_embedding(record);
}

void Run::assemble() {
  const PhaseClock::Scope scope(clock_, "write");
  step("assemble", 0, 1);
  const std::filesystem::path staging = work_->staging();
  std::filesystem::remove_all(staging);
  io::make_directories(staging);
  constexpr auto kOneFile = std::numeric_limits<int64_t>::max();
  const int64_t shard_size = job_.write.shard_size > 0 ? job_.write.shard_size : kOneFile;
  record_.files = writer_->finish(staging, static_cast<uint64_t>(shard_size));
  record_.files.push_back(
      io::write_file_atomic(staging / "config.json", output_config(model_, groups_, widths_)));
  for (const io::FileRecord& file : io::copy_companion_files(job_.model, staging))
    record_.files.push_back(file);
  step("assemble", 1, 1);
}

void Run::verify() {
  const PhaseClock::Scope scope(clock_, "verify");
  const auto steps = static_cast<int64_t>(record_.files.size()) + 1;  // every file, then the tensors
  step("verify", 0, steps);
  Verification result;
  for (const io::FileRecord& file : record_.files)
    report_.totals.files.push_back({file.name, static_cast<int64_t>(file.bytes), file.hash});
  result.message = compare_files(work_->staging(), record_, observer_, result);
  const bool files_stand = result.message.empty();
  if (files_stand) {
    const model::Model written = model::Model::open(work_->staging());
    result.message = compare_tensors(written, record_, result);
    report_.totals.bytes_after = static_cast<int64_t>(written.stored_bytes());
    report_.totals.parameters_after = written.parameters();
    report_.totals.bits_per_weight =
        8.0 * static_cast<double>(written.stored_bytes()) / static_cast<double>(written.parameters());
    count_compressed(written);
  }
  result.passed = result.message.empty();
  result.seconds = scope.wall_seconds();
  report_.verification = result;
  if (!files_stand) {
    // Not ours: what was written was hashed on its way to the disk.
    throw CorruptFile(work_->staging().string(),
                      "the files must stay as they were written; " + result.message);
  }
  if (!result.passed) {
    throw InternalError("verify", "the written checkpoint must equal what was computed; " + result.message);
  }
  step("verify", steps, steps);
}

/// Totals over the operators that a pass changed.
void Run::count_compressed(const model::Model& written) {
  double stored = 0;
  double weights = 0;
  std::map<std::string, int64_t> sizes;
  for (int64_t block = 0; block < written.size(); ++block) {
    for (const model::OperatorInfo& op : written.architecture().operators(block))
      sizes[op.name] = op.out_features * op.in_features;
  }
  // Of operators with several rows the last one describes what is stored.
  std::map<std::string, const OperatorRow*> last;
  for (const OperatorRow& row : report_.operators) last[row.name] = &row;
  for (const OperatorPlan& op : plan_.operators) {
    if (op.methods.empty()) continue;
    const auto found = last.find(op.name);
    stored += static_cast<double>(found != last.end() ? found->second->bytes_after : op.bytes_before);
    weights += static_cast<double>(sizes.at(op.name));
  }
  Totals& totals = report_.totals;
  totals.compressed_parameters = static_cast<int64_t>(weights);
  if (weights > 0) totals.operator_bits_per_weight = 8.0 * stored / weights;
  int64_t numbers = written.parameters(), macs = 0;
  bool factored = false;
  if (const auto table = last.find(model_.embedding().name);
      table != last.end() && table->second->parameters) {
    factored = true;
    numbers += *table->second->parameters - table->second->out_features * table->second->in_features;
  }
  for (const auto& [name, size] : sizes) {
    const auto found = last.find(name);
    const bool counts_itself = found != last.end() && found->second->parameters;
    factored = factored || counts_itself;
    numbers += counts_itself ? *found->second->parameters - size : 0;
    macs += counts_itself ? *found->second->macs : size;
  }
  if (!factored) return;
  totals.numbers_after = numbers;
  totals.macs_after = macs;
  totals.macs_before = 0;
  for (const OperatorPlan& op : plan_.operators) *totals.macs_before += op.out_features * op.in_features;
}

void Run::evaluate() {
  if (!job_.evaluate) return;
  const PhaseClock::Scope scope(clock_, "evaluate");
  const eval::EvaluationText& text = *evaluation_text_;
  const model::Model compressed = model::Model::open(work_->staging());
  const model::Model* reference = job_.evaluate->reference ? &model_ : nullptr;
  const linalg::Precision precision = plan_.evaluation_compute;
  const eval::Evaluation scores = eval::evaluate(compressed, reference, text, precision, pool_, observer_);
  if (reference != nullptr) {
    EvaluationRow dense = evaluation_row("dense", text, scores, precision);
    dense.perplexity = scores.reference_perplexity;
    report_.evaluation.push_back(dense);
    for (size_t i = 0; i < scores.output_drift.size(); ++i)
      report_.blocks[i].output_drift = scores.output_drift[i];
  }
  EvaluationRow row = evaluation_row("compressed", text, scores, precision);
  row.perplexity = scores.perplexity;
  row.kl_mean = scores.kl_mean;
  row.top1_agreement = scores.top1_agreement;
  if (scores.embedding) {
    row.embedding_cosine = scores.embedding->cosine_mean;
    row.embedding_cosine_min = scores.embedding->cosine_min;
    row.rank_correlation = scores.embedding->rank_correlation;
  }
  report_.evaluation.push_back(row);
}

void Run::publish() {
  watch_budget();
  require_same_sources();
  report_.finished_at = utc_now();
  write_report(RunStatus::kDone);
  const std::filesystem::path staging = work_->staging();
  for (const char* name : {"report.json", "report.md", "report.html"}) {
    const std::filesystem::path file = work_->path() / name;
    if (!std::filesystem::exists(file)) continue;
    record_.files.push_back(io::copy_file_atomic(file, staging / name));
  }
  record_.version = kVersion;
  record_.source = job_.model;
  record_.job_json = report_.job_json;
  io::write_file_atomic(staging / OutputRecord::kFileName, record_.to_json());
  work_->publish();
}

void Run::write_report(RunStatus status, const std::string& message) {
  report_.status = status;
  report_.message = message;
  report_.timings = clock_.timings();
  report_.timings.planned_peak_bytes = static_cast<int64_t>(plan_.memory.peak());
  if (!work_) return;
  if (write_reports_) {
    write_reports_(work_->path(), report_);
  } else {
    io::write_file_atomic(work_->path() / "report.json", to_json(report_));
  }
}

}  // namespace lcomp::pipeline
