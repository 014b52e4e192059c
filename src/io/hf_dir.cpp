#include "lcomp/io/hf_dir.h"

#include <algorithm>
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

/// Whether the file lies in the model's folder, or where the cache of a hub keeps the files that its folders
/// of models link to: blobs, two levels above.
bool belongs_to(const std::filesystem::path& file, const std::filesystem::path& dir) {
  const auto lies_in = [target = std::filesystem::canonical(file)](const std::filesystem::path& folder) {
    const auto [end, unused] = std::mismatch(folder.begin(), folder.end(), target.begin(), target.end());
    return end == folder.end();
  };
  const std::filesystem::path home = std::filesystem::canonical(dir);
  return lies_in(home) || lies_in(home.parent_path().parent_path() / "blobs");
}

void require_own(const std::filesystem::path& file, const std::filesystem::path& dir) {
  if (belongs_to(file, dir)) return;
  throw CorruptFile(
      file.string(),
      fmt::format("a file that goes with the model must lie in its folder, or in the cache that the folder "
                  "links to; it leads to {}. Put a copy in its place",
                  quote_name(std::filesystem::canonical(file).string())));
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
  for (const std::string& name : names) require_own(dir / name, dir);
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
