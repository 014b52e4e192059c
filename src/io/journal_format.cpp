#include "io/journal_format.h"

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"

namespace lcomp::io {
namespace {

constexpr std::string_view kBeforeHash = R"({"hash":")";
constexpr size_t kHashDigits = 32;
constexpr std::string_view kBeforeRecord = R"(","record":)";
constexpr size_t kRecordBegin = kBeforeHash.size() + kHashDigits + kBeforeRecord.size();

/// Bytes that are not UTF-8 (a file name may have them) become U+FFFD: such a step is merely run again.
std::string sealed(const Json& record) {
  const std::string text = record.dump(-1, ' ', false, Json::error_handler_t::replace);
  return fmt::format("{}{}{}{}}}\n", kBeforeHash, hash_of(text), kBeforeRecord, text);
}

/// The record of a line without its newline, or nothing when the line is not what `sealed` writes.
std::optional<std::string_view> unsealed(std::string_view line) {
  if (line.size() <= kRecordBegin || !line.starts_with(kBeforeHash) || !line.ends_with('}') ||
      line.substr(kBeforeHash.size() + kHashDigits, kBeforeRecord.size()) != kBeforeRecord)
    return std::nullopt;
  const std::string_view record = line.substr(kRecordBegin, line.size() - kRecordBegin - 1);
  if (line.substr(kBeforeHash.size(), kHashDigits) != hash_of(record)) return std::nullopt;
  return record;
}

JournalRecord parse_record(const JsonView& view) {
  JournalRecord record;
  record.step = view.at("step").text();
  record.key = view.at("key").text();
  record.note = view.at("note").text();
  for (const JsonView& file : view.at("files").elements()) {
    record.files.push_back({.name = file.at("name").text(),
                            .bytes = static_cast<uint64_t>(file.at("bytes").integer(0)),
                            .hash = file.at("hash").text()});
  }
  return record;
}

/// Adds the meaning of one line to `content`; false when there is none.
bool take_line(std::string_view line, JournalContent& content) {
  const auto text = unsealed(line);
  if (!text) return false;
  try {
    const Json json = parse_json(*text, Journal::kFileName);
    const JsonView view(json, Journal::kFileName);
    if (!content.job_key) {
      content.job_key = view.at("job").text();
    } else {
      content.records.push_back(parse_record(view));
    }
  } catch (const CorruptFile&) {  // the seal is right, so another version of lcomp wrote it
    return false;
  }
  return true;
}

}  // namespace

std::string journal_head_line(const std::string& job_key) {
  return sealed({{"job", job_key}});
}

std::string journal_line(const JournalRecord& record) {
  Json files = Json::array();
  for (const FileRecord& file : record.files)
    files.push_back({{"name", file.name}, {"bytes", file.bytes}, {"hash", file.hash}});
  return sealed({{"step", record.step}, {"key", record.key}, {"files", files}, {"note", record.note}});
}

JournalContent parse_journal(std::string_view text) {
  JournalContent content;
  for (int number = 1; content.valid_bytes < text.size(); ++number) {
    const std::string_view rest = text.substr(content.valid_bytes);
    const size_t newline = rest.find('\n');
    if (newline == std::string_view::npos) {
      content.problem = fmt::format("line {} is torn, as after a crash", number);
      break;
    }
    if (!take_line(rest.substr(0, newline), content)) {
      content.problem = fmt::format("line {} does not match its hash or is no record", number);
      break;
    }
    content.valid_bytes += newline + 1;
  }
  return content;
}

}  // namespace lcomp::io
