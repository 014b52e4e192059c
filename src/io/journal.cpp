#include "lcomp/io/journal.h"

#include <fcntl.h>

#include <map>
#include <sstream>

#include "io/descriptor.h"
#include "io/journal_format.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

/// Why the file does not stand as recorded; empty when it does.
std::string difference(const std::filesystem::path& dir, const FileRecord& recorded) {
  if (!is_there(dir / recorded.name)) return fmt::format("the file {} is missing", recorded.name);
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(dir / recorded.name, error);
  if (error || bytes != recorded.bytes)
    return fmt::format("the file {} does not have the {} bytes recorded", recorded.name, recorded.bytes);
  if (record_of(dir, recorded.name).hash != recorded.hash)
    return fmt::format("the contents of {} are not those recorded", recorded.name);
  return "";
}

/// The parts of a key of `job_key` by name.
std::map<std::string, std::string> parts_of(const std::string& key) {
  std::map<std::string, std::string> parts;
  std::istringstream lines(key);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) parts[line.substr(0, colon)] = line.substr(colon);
  }
  return parts;
}

}  // namespace

std::string job_key(const std::vector<std::pair<std::string, std::string>>& parts) {
  std::string key;
  for (const auto& [name, value] : parts) key += fmt::format("{}: {}\n", name, value);
  return key;
}

std::string other_job(const std::string& key, const std::string& wanted) {
  const auto had = parts_of(key);
  std::vector<std::string> differing;
  for (const auto& [name, value] : parts_of(wanted)) {
    const auto found = had.find(name);
    if (found == had.end() || found->second != value) differing.push_back(name);
  }
  const std::string other = "it belongs to another job, or to this job with other settings or inputs";
  return differing.empty() ? other : fmt::format("{} (other: {})", other, fmt::join(differing, ", "));
}

Journal::Journal(std::filesystem::path dir, const std::string& job_key)
    : dir_(std::move(dir)), path_(dir_ / kFileName) {
  JournalContent content;
  if (is_there(path_)) {
    content = parse_journal(read_file(path_));
    if (!content.problem.empty()) discarded_ = fmt::format("[{}] {}", path_.string(), content.problem);
    if (content.job_key && content.job_key != job_key)
      discarded_ = fmt::format("[{}] {}", path_.string(), other_job(*content.job_key, job_key));
  }
  const bool ours = content.job_key == job_key;
  if (ours) {
    records_ = std::move(content.records);
    size_ = content.valid_bytes;
  } else {
    size_ = write_file_atomic(path_, journal_head_line(job_key)).bytes;
  }
  file_ = std::make_unique<Descriptor>(open_file(path_, O_WRONLY | O_APPEND));
  if (file_size(*file_, path_) != size_) {
    truncate_file(*file_, path_, size_);
    sync_file(*file_, path_);
  }
}

Journal::~Journal() = default;
Journal::Journal(Journal&&) noexcept = default;
Journal& Journal::operator=(Journal&&) noexcept = default;

std::optional<std::string> Journal::job_of(const std::filesystem::path& dir) {
  if (!is_there(dir / kFileName)) return std::nullopt;
  return parse_journal(read_file(dir / kFileName)).job_key;
}

bool Journal::has(const std::string& step) const {
  return std::any_of(records_.begin(), records_.end(),
                     [&](const JournalRecord& record) { return record.step == step; });
}

std::optional<JournalRecord> Journal::committed(const std::string& step, const std::string& key,
                                                std::string* reason) const {
  const auto refuse = [&](std::string why) {
    if (reason != nullptr) *reason = std::move(why);
    return std::nullopt;
  };
  const auto found = std::find_if(records_.rbegin(), records_.rend(),
                                  [&](const JournalRecord& record) { return record.step == step; });
  if (found == records_.rend()) return refuse("it was not committed");
  if (found->key != key) return refuse("it was committed for other inputs");
  for (const FileRecord& file : found->files) {
    if (std::string why = difference(dir_, file); !why.empty()) return refuse(std::move(why));
  }
  return *found;
}

void Journal::commit(const JournalRecord& record) {
  const std::string line = journal_line(record);
  try {
    write_all(*file_, path_, std::as_bytes(std::span(line)));
    sync_file(*file_, path_);
  } catch (const ResourceError&) {
    // A torn line here would hide every later one.
    truncate_file(*file_, path_, size_);
    throw;
  }
  size_ += line.size();
  records_.push_back(record);
}

}  // namespace lcomp::io
