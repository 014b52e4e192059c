#include "lcomp/pipeline/survey.h"

#include <malloc.h>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/safetensors.h"
#include "lcomp/io/safetensors_writer.h"
#include "pipeline/options_json.h"
#include "pipeline/run.h"

/// The survey sweep of a run: the dense model is streamed once before the block loop, and passes that decide
/// something for the whole model take their numbers.
namespace lcomp::pipeline {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSurveyRecord = "journal: survey";

std::string survey_step(int64_t block) {
  return fmt::format("survey {}", block);
}

}  // namespace

std::string SurveyRecord::to_json() const {
  io::Json json;
  json["samples_hash"] = samples_hash;
  json["sums_hash"] = sums_hash;
  json["numbers"] = io::Json::array();
  for (const auto& [entry, of_entry] : numbers)
    json["numbers"].push_back({{"entry", entry}, {"operators", of_entry}});
  return json.dump();
}

SurveyRecord SurveyRecord::from_json(const std::string& text) {
  const io::Json json = io::parse_json(text, kSurveyRecord);
  const io::JsonView root(json, kSurveyRecord);
  SurveyRecord record;
  record.samples_hash = root.at("samples_hash").text();
  record.sums_hash = root.at("sums_hash").text();
  for (const io::JsonView& entry : root.at("numbers").elements()) {
    SurveyNumbers& numbers = record.numbers[static_cast<size_t>(entry.at("entry").integer(0))];
    for (const auto& [op, values] : entry.at("operators").members()) numbers[op] = values.numbers();
  }
  return record;
}

std::filesystem::path Run::survey_file(int64_t block) const {
  return work_->path() / fmt::format("survey-samples-{:04}.bin", block);
}

std::filesystem::path Run::sums_file(int64_t block) const {
  return work_->path() / fmt::format("survey-sums-{:04}.safetensors", block);
}

void Run::drop_samples() {
  samples_.runner.reset();
  samples_.work.reset();
  samples_.hidden.reset();
}

/// Brings back the samples behind a surveyed block, unless it is the last, and what the surveys have added
/// up.
bool Run::restore_survey(int64_t block, const SurveyRecord& record) {
  // Only what stands behind the last block that was surveyed is kept.
  if (work_->journal().has(survey_step(block + 1)) && !fs::exists(survey_file(block)) &&
      !fs::exists(sums_file(block)) && (survey_needs().any() || !record.sums_hash.empty())) {
    observer_.note("nothing is saved behind the blocks before it: surveying from the first block");
    return false;
  }
  const bool goes_on = survey_needs().any() && block + 1 < model_.size();
  if (goes_on) start_samples();
  try {
    const bool same_samples =
        !goes_on || samples_.hidden->read_from(survey_file(block), model_.architecture().hidden_size) ==
                        record.samples_hash;
    if (same_samples && restore_sums(block, record.sums_hash)) return true;
  } catch (const Error&) {  // gone or cut short: as good as damaged
  }
  observer_.note("what the survey had saved is gone or damaged: surveying from the first block");
  drop_samples();
  return false;
}

namespace {

/// Of a survey's sums among those of the others.
std::string sums_prefix(size_t entry) {
  return std::to_string(entry) + "/";
}

}  // namespace

/// The hash of the file, or nothing where no survey adds anything up.
std::string Run::save_sums(int64_t block) {
  io::NamedTensors all;
  for (const auto& [entry, survey] : surveys_) {
    for (const auto& [name, tensor] : survey->sums()) all.emplace_back(sums_prefix(entry) + name, tensor);
  }
  return all.empty() ? "" : io::write_safetensors(sums_file(block), all).hash;
}

bool Run::restore_sums(int64_t block, const std::string& hash) {
  if (hash.empty()) return true;
  if (io::hash_of_file(sums_file(block)) != hash) return false;
  const io::SafetensorsFile file(sums_file(block));
  for (const auto& [entry, survey] : surveys_) {
    const std::string prefix = sums_prefix(entry);
    io::NamedTensors own;
    for (const io::TensorInfo& info : file.tensors()) {
      if (info.name.starts_with(prefix))
        own.emplace_back(info.name.substr(prefix.size()), file.read(info.name));
    }
    survey->set_sums(own);
  }
  return true;
}

calib::Needs Run::survey_needs() const {
  calib::Needs needs;
  for (const auto& [entry, survey] : surveys_) needs = needs | survey->needs();
  return needs;
}

/// Gradients and samples for the blocks behind those that `records` knows; where what they need is damaged,
/// nothing is known, and all starts at the first block.
void Run::resume_survey(std::vector<SurveyRecord>& records) {
  const auto done = static_cast<int64_t>(records.size());
  const calib::Needs needs = survey_needs();
  if (done < model_.size() && needs.gradients()) make_gradients(done);
  if (done > 0 && !restore_survey(done - 1, records.back())) {
    records.clear();
    if (needs.gradients()) make_gradients(0);
  }
  if (records.empty() && needs.any()) start_samples();
}

void Run::survey() {
  if (surveys_.empty()) return;
  if (plan_.needs_gradients) last_key_ = gradient_key_ = gradient_key();
  std::vector<SurveyRecord> records;
  std::vector<std::string> keys = {last_key_};
  for (int64_t i = 0; i < model_.size(); ++i) {
    keys.push_back(block_key(keys.back(), i).text);
    if (static_cast<int64_t>(records.size()) < i) continue;
    std::string reason;
    const auto found = work_->journal().committed(survey_step(i), keys.back(), &reason);
    if (found) {
      records.push_back(SurveyRecord::from_json(found->note));
    } else if (work_->journal().has(survey_step(i))) {
      observer_.note(fmt::format("block {} and what is behind it is surveyed again: {}", i + 1, reason));
    }
  }
  resume_survey(records);
  const auto done = static_cast<int64_t>(records.size());
  if (done < model_.size()) {
    for (int64_t i = done; i < model_.size(); ++i) {
      check_cancelled();
      step("survey", i, model_.size(), fmt::format("block {} of {}", i + 1, model_.size()));
      records.push_back(survey_block(i));
      work_->journal().commit(
          {survey_step(i), keys[static_cast<size_t>(i) + 1], {}, records.back().to_json()});
      if (i > 0) {
        std::filesystem::remove(survey_file(i - 1));
        std::filesystem::remove(sums_file(i - 1));
      }
      malloc_trim(0);
    }
    step("survey", model_.size(), model_.size());
    drop_samples();
  }
  // What becomes of any block depends now on all of them, by what is decided.
  io::Hasher decided;
  decided.add(last_key_ + records.back().sums_hash);
  for (const auto& [entry, survey] : surveys_) {
    SurveyNumbers numbers;
    for (SurveyRecord& record : records) numbers.merge(record.numbers[entry]);
    apply_decision(entry, *survey, numbers);
    survey->set_sums({});
    for (const auto& settings : plan_.settings[entry])
      decided.add(settings ? settings_to_json(*settings).dump() + settings->chosen() : "-");
  }
  last_key_ = decided.hex();
}

/// One pass over the samples, where a survey asks for statistics, gives the statistics of every group and
/// moves the samples on.
SurveyRecord Run::survey_block(int64_t index) {
  const PhaseClock::Scope scope(clock_, "survey");
  const calib::Needs needs = survey_needs();
  model::Block block = model_.load_block(index);
  SurveyRecord record;
  for (size_t g = 0; g < block.groups().size(); ++g) {
    calib::InputStats stats;
    if (needs.any()) {
      if (g > 0) block.prepare(g - 1, plan_.compute);
      stats = samples_.runner->advance(block, g, needs);
      if (g > 0) block.release(g - 1);
    }
    for (const auto& [entry, survey] : surveys_) {
      std::vector<OperatorRow> unused;
      PassContext context{pool_, job_.strict, model_.dtype(), settings_of(entry, index), unused};
      read_gradients(survey->needs(), block, g, context, stats);
      record.numbers[entry].merge(survey->measure(block, g, stats, context));
    }
  }
  if (needs.any() && index + 1 < model_.size()) {
    block.prepare(block.groups().size() - 1, plan_.compute);
    samples_.runner->finish(block);
    record.samples_hash = samples_.hidden->write_to(survey_file(index), model_.architecture().hidden_size);
  }
  record.sums_hash = save_sums(index);
  return record;
}

/// Puts the chosen settings in place of the job's, and what follows from them into plan and report.
void Run::apply_decision(size_t entry, const Survey& survey, const SurveyNumbers& numbers) {
  std::string decision;
  plan_.settings[entry] = survey.decide(numbers, plan_.operators, plan_.settings[entry], decision);
  report_.passes[entry].summary = decision;
  observer_.note(fmt::format("{}: {}", job_.passes[entry].method, decision));
}

}  // namespace lcomp::pipeline
