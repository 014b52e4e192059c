#include "lcomp/io/segmentations.h"

#include <unordered_set>

#include "io/json_util.h"
#include "lcomp/io/files.h"

namespace lcomp::io {

Segmentations parse_segmentations(std::string_view text, const std::string& where) {
  const Json document = parse_json(text, where);
  const JsonView root(document, where);
  Segmentations result;
  result.morphemes = root.at("mor_set").texts();
  const std::unordered_set<std::string> known(result.morphemes.begin(), result.morphemes.end());
  for (const auto& [word, view] : root.at("word2mor").members()) {
    std::vector<std::string> parts = view.texts();
    if (parts.empty()) view.fail("must have at least one morpheme; it has none");
    for (const std::string& part : parts) {
      if (known.count(part) == 0) view.fail("must have morphemes of mor_set; it has " + quote_name(part));
    }
    result.words.emplace(word, std::move(parts));
  }
  return result;
}

Segmentations read_segmentations(const std::filesystem::path& file) {
  return parse_segmentations(read_file(file), file.string());
}

}  // namespace lcomp::io
