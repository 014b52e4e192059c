#include "lcomp/io/hf_dir.h"

#include <array>

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

constexpr std::array kCompanions = {
    "added_tokens.json",
    "chat_template.jinja",
    "config_sentence_transformers.json",
    "generation_config.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
};

/// How a sentence encoder pools, in the folder that modules.json names for it.
constexpr const char* kPooling = "1_Pooling/config.json";

bool is_companion(const std::string& name) {
  return name.starts_with("LICENSE") ||
         std::find(kCompanions.begin(), kCompanions.end(), name) != kCompanions.end();
}

OrderedJson parse_entry(const std::string& key, const std::string& text) {
  try {
    return parse_ordered_json(text, key);
  } catch (const CorruptFile& error) {
    throw InvalidArgument("config_with",
                          fmt::format("the value of {} must be JSON; {}", quote_name(key), error.what()));
  }
}

}  // namespace

std::vector<std::string> companion_files(const std::filesystem::path& dir) {
  std::vector<std::string> names;
  if (std::filesystem::exists(dir / kPooling)) names.emplace_back(kPooling);
  for (const std::filesystem::path& entry : list_directory(dir)) {
    std::error_code ignored;
    const std::string name = entry.filename().string();
    if (is_companion(name) && std::filesystem::is_regular_file(entry, ignored)) names.push_back(name);
  }
  return names;
}

std::vector<FileRecord> copy_companion_files(const std::filesystem::path& from,
                                             const std::filesystem::path& to) {
  std::vector<FileRecord> records;
  for (const std::string& name : companion_files(from)) {
    make_directories((to / name).parent_path());
    records.push_back(copy_file_atomic(from / name, to / name));
    records.back().name = name;
  }
  return records;
}

std::string config_with(const std::string& config, const JsonEntries& entries, const std::string& where) {
  OrderedJson json = parse_ordered_json(config, where, {.error = ErrorKind::kConfig});
  OrderedJsonView(json, where, ErrorKind::kConfig).members();  // must be an object
  for (const auto& [key, text] : entries) {
    if (text.empty()) {
      json.erase(key);
    } else {
      json[key] = parse_entry(key, text);
    }
  }
  return json.dump(2) + "\n";
}

}  // namespace lcomp::io
