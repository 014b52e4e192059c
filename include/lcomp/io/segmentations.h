#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace lcomp::io {

/// Words split into morphemes by another program, as the code of MorphTE stores them: a JSON object with
/// "mor_set", all morphemes, and "word2mor", the morphemes of each word.
struct Segmentations {
  std::vector<std::string> morphemes;
  std::unordered_map<std::string, std::vector<std::string>> words;
};

/// Reads such a text; `where` names it in errors. Throws CorruptFile for any other form, for a word without
/// morphemes, and for a morpheme of a word that is not in the set.
Segmentations parse_segmentations(std::string_view text, const std::string& where);

/// The same of a file.
Segmentations read_segmentations(const std::filesystem::path& file);

}  // namespace lcomp::io
