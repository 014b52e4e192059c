#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/io/files.h"

/// The files of a Hugging Face model directory that are not weights.
namespace lcomp::io {

/// Names of the files in `dir` that go with a model wherever its weights go: tokenizer (tokenizer.json,
/// tokenizer_config.json, special_tokens_map.json, added_tokens.json, vocab.json, merges.txt, vocab.txt,
/// tokenizer.model, chat_template.jinja), generation_config.json and LICENSE*. Sorted. README.md is left out:
/// it describes the model as it was. Throws CorruptFile for one that is a link out of the folder and of the
/// cache that it belongs to (../../blobs): copied with the model it would carry a stranger's choice of this
/// user's files.
std::vector<std::string> companion_files(const std::filesystem::path& dir);

/// Copies the companion files; returns their records, named relative to `to`.
std::vector<FileRecord> copy_companion_files(const std::filesystem::path& from,
                                             const std::filesystem::path& to);

/// A top-level key of config.json and its value as JSON text; an empty text takes the key away.
using JsonEntries = std::vector<std::pair<std::string, std::string>>;

/// `config` (the text of a config.json) with the top-level `entries` set: existing keys keep their place, new
/// ones follow at the end, those with an empty text go; everything else stays as it is, unknown fields and
/// the order of keys included. Throws `ConfigError` when the text is not a JSON object, and `InvalidArgument`
/// when an entry's value is not JSON. `where` names the source in errors.
std::string config_with(const std::string& config, const JsonEntries& entries, const std::string& where);
}  // namespace lcomp::io
