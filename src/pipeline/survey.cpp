#include "lcomp/pipeline/survey.h"

#include <malloc.h>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/io/hash.h"
#include "pipeline/run.h"

/// The survey sweep of a run: the dense model is streamed once before the block loop, and passes that decide
/// something for the whole model take their numbers.
namespace lcomp::pipeline {
namespace {

constexpr const char* kSurveyRecord = "journal: survey";

std::string survey_step(int64_t block) {
  return fmt::format("survey {}", block);
}

}  // namespace

std::string SurveyRecord::to_json() const {
  io::Json json;
  json["samples_hash"] = samples_hash;
  json["numbers"] = io::Json::object();
  for (const auto& [entry, of_entry] : numbers) json["numbers"][std::to_string(entry)] = of_entry;
  return json.dump();
}

SurveyRecord SurveyRecord::from_json(const std::string& text) {
  const io::Json json = io::parse_json(text, kSurveyRecord);
  SurveyRecord record;
  record.samples_hash = json.at("samples_hash").get<std::string>();
  for (const auto& [entry, of_entry] : json.at("numbers").items())
    record.numbers[std::stoul(entry)] = of_entry.get<SurveyNumbers>();
  return record;
}

std::filesystem::path Run::survey_file(int64_t block) const {
  return work_->path() / fmt::format("survey-samples-{:04}.bin", block);
}

/// Brings back the samples behind a surveyed block. When that fails, they stand at the first block.
bool Run::restore_survey(int64_t block, const std::string& hash) {
  start_samples();
  try {
    if (samples_.hidden->read_from(survey_file(block), model_.architecture().hidden_size) == hash)
      return true;
  } catch (const Error&) {  // gone or cut short: as good as damaged
  }
  observer_.note("the saved activations are gone or damaged: surveying from the first block");
  start_samples();
  return false;
}

calib::Needs Run::survey_needs() const {
  calib::Needs needs;
  for (const auto& [entry, survey] : surveys_) needs = needs | survey->needs();
  return needs;
}

void Run::survey() {
  if (surveys_.empty()) return;
  if (plan_.needs_gradients) last_key_ = gradient_key_ = gradient_key();
  std::vector<SurveyRecord> records;
  std::vector<std::string> keys = {last_key_};
  for (int64_t i = 0; i < model_.size(); ++i) {
    keys.push_back(block_key(keys.back(), i).text);
    const auto found = work_->journal().committed(survey_step(i), keys.back());
    if (found && static_cast<int64_t>(records.size()) == i)
      records.push_back(SurveyRecord::from_json(found->note));
  }
  const auto done = static_cast<int64_t>(records.size());
  if (done < model_.size()) {
    if (survey_needs().gradients()) make_gradients(done);
    if (survey_needs().any()) {
      if (done == 0) {
        start_samples();
      } else if (!restore_survey(done - 1, records.back().samples_hash)) {
        records.clear();
      }
    }
    for (auto i = static_cast<int64_t>(records.size()); i < model_.size(); ++i) {
      check_cancelled();
      step("survey", i, model_.size(), fmt::format("block {} of {}", i + 1, model_.size()));
      records.push_back(survey_block(i));
      work_->journal().commit(
          {survey_step(i), keys[static_cast<size_t>(i) + 1], {}, records.back().to_json()});
      if (i > 0) std::filesystem::remove(survey_file(i - 1));
      malloc_trim(0);
    }
    step("survey", model_.size(), model_.size());
    samples_.runner.reset();
    samples_.work.reset();
    samples_.hidden.reset();
  }
  // What becomes of any block depends now on all of them.
  last_key_ = keys.back();
  for (const auto& [entry, survey] : surveys_) {
    SurveyNumbers numbers;
    for (SurveyRecord& record : records) numbers.merge(record.numbers[entry]);
    apply_decision(entry, *survey, numbers);
  }
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
