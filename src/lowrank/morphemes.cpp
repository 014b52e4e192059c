#include "lcomp/lowrank/morphemes.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <unordered_set>

#include "lcomp/core/error.h"

namespace lcomp::lowrank {
namespace {

using Strings = std::vector<std::string>;

bool is_ascii_word(const std::string& token) {
  return !token.empty() && std::all_of(token.begin(), token.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
  });
}

/// The longest affix first; of equally long ones the first.
void sort_by_length(Strings& affixes) {
  std::stable_sort(affixes.begin(), affixes.end(),
                   [](const std::string& a, const std::string& b) { return a.size() > b.size(); });
}

/// Numbers morphemes in order of appearance.
class MorphemeList {
 public:
  int32_t number_of(const std::string& morpheme) {
    const auto [place, added] = numbers_.try_emplace(morpheme, static_cast<int32_t>(names_.size()));
    if (added) names_.push_back(morpheme);
    return place->second;
  }
  Strings take_names() { return std::move(names_); }

 private:
  std::unordered_map<std::string, int32_t> numbers_;
  Strings names_;
};

/// Exactly `order` morphemes: the tail joined, or padded.
Strings fitted(Strings parts, size_t order) {
  while (parts.size() > order) {
    const std::string last = parts.back();
    parts.pop_back();
    parts.back() += last;
  }
  while (parts.size() < order) parts.push_back(fmt::format("[PAD-{}]", parts.size()));
  return parts;
}

void check_tokens(const Strings& tokens, int64_t order, const std::vector<int64_t>& specials) {
  constexpr const char* kWhere = "morpheme_index";
  if (tokens.empty()) throw InvalidArgument(kWhere, "there must be tokens; there are none");
  if (order < 1 || order > 16)
    throw InvalidArgument(kWhere, fmt::format("the order must lie in [1, 16]; it is {}", order));
  for (const int64_t id : specials) {
    if (id < 0 || id >= static_cast<int64_t>(tokens.size())) {
      throw InvalidArgument(kWhere,
                            fmt::format("special tokens must lie in [0, {}); one is {}", tokens.size(), id));
    }
  }
}

int64_t count_collisions(const at::Tensor& index) {
  std::set<std::vector<int32_t>> rows;
  const auto* numbers = index.data_ptr<int32_t>();
  for (int64_t i = 0; i < index.size(0); ++i, numbers += index.size(1))
    rows.emplace(numbers, numbers + index.size(1));
  return index.size(0) - static_cast<int64_t>(rows.size());
}

}  // namespace

TableSegmenter::TableSegmenter(std::unordered_map<std::string, Strings> words) : words_(std::move(words)) {}

Strings TableSegmenter::segment(const std::string& token) const {
  const auto found = words_.find(token);
  return found == words_.end() ? Strings() : found->second;
}

AffixTable AffixTable::english() {
  return {.prefixes = {"anti",  "auto",  "bi",   "co",    "counter", "de",    "dis",  "ex",    "fore",
                       "hyper", "il",    "im",   "in",    "inter",   "ir",    "mega", "micro", "mid",
                       "mini",  "mis",   "mono", "multi", "neo",     "non",   "out",  "over",  "para",
                       "poly",  "post",  "pre",  "pro",   "pseudo",  "re",    "semi", "sub",   "super",
                       "tele",  "trans", "tri",  "ultra", "un",      "under", "up"},
          .suffixes = {"able",   "age",   "al",     "ally", "ance",  "ant",  "ary",   "ate",  "ated", "ates",
                       "ating",  "ation", "ations", "ed",   "en",    "ence", "ent",   "er",   "ers",  "ery",
                       "es",     "est",   "ful",    "hood", "ial",   "ian",  "ians",  "ible", "ic",   "ical",
                       "ically", "ied",   "ies",    "ing",  "ings",  "ion",  "ions",  "ious", "ise",  "ised",
                       "ish",    "ism",   "ist",    "ists", "ities", "ity",  "ive",   "ize",  "ized", "izing",
                       "less",   "like",  "ly",     "ment", "ments", "ness", "or",    "ors",  "ory",  "ous",
                       "s",      "ship",  "sion",   "tion", "tions", "ward", "wards", "y"},
          .shortest_stem = 3};
}

AffixSegmenter::AffixSegmenter(AffixTable table) : table_(std::move(table)) {
  sort_by_length(table_.prefixes);
  sort_by_length(table_.suffixes);
}

Strings AffixSegmenter::segment(const std::string& token) const {
  if (!is_ascii_word(token)) return {};
  Strings front, back;
  std::string stem = token;
  const auto stays_long = [&](const std::string& affix) {
    return !affix.empty() &&
           stem.size() >= affix.size() + static_cast<size_t>(std::max<int64_t>(1, table_.shortest_stem));
  };
  const auto next_of = [&](const Strings& affixes, bool at_front) {
    const auto found = std::find_if(affixes.begin(), affixes.end(), [&](const std::string& affix) {
      return stays_long(affix) && (at_front ? stem.starts_with(affix) : stem.ends_with(affix));
    });
    return found == affixes.end() ? std::string() : *found;
  };
  for (std::string affix; !(affix = next_of(table_.prefixes, true)).empty(); stem.erase(0, affix.size()))
    front.push_back(affix);
  for (std::string affix; !(affix = next_of(table_.suffixes, false)).empty();
       stem.erase(stem.size() - affix.size()))
    back.push_back(affix);
  front.push_back(stem);
  front.insert(front.end(), back.rbegin(), back.rend());
  return front;
}

MarkerSegmenter::MarkerSegmenter(SegmenterPtr inner, Strings leading, Strings trailing)
    : inner_(std::move(inner)), leading_(std::move(leading)), trailing_(std::move(trailing)) {
  if (inner_ == nullptr)
    throw InvalidArgument("MarkerSegmenter", "the inner segmenter must be there; it is not");
}

MarkerSegmenter::MarkerSegmenter(SegmenterPtr inner)
    : MarkerSegmenter(std::move(inner), {"\u0120", "\u010A", "\u0109", "\u2581", "##"}, {"@@", "</w>"}) {}

Strings MarkerSegmenter::segment(const std::string& token) const {
  std::string rest = token, before, after;
  for (const std::string& marker : leading_) {
    if (marker.empty() || rest.size() <= marker.size() || !rest.starts_with(marker)) continue;
    before = marker;
    rest.erase(0, marker.size());
    break;
  }
  for (const std::string& marker : trailing_) {
    if (marker.empty() || rest.size() <= marker.size() || !rest.ends_with(marker)) continue;
    after = marker;
    rest.erase(rest.size() - marker.size());
    break;
  }
  Strings parts = inner_->segment(rest);
  if (before.empty() && after.empty()) return parts;
  if (parts.empty()) parts.push_back(rest);
  if (!before.empty()) parts.insert(parts.begin(), before);
  if (!after.empty()) parts.push_back(after);
  return parts;
}

MorphemeIndex morpheme_index(const Strings& tokens, const Segmenter& segmenter, int64_t order,
                             const std::vector<int64_t>& specials, const Strings& known) {
  check_tokens(tokens, order, specials);
  const std::unordered_set<int64_t> special(specials.begin(), specials.end());
  const std::unordered_set<std::string> in_list(known.begin(), known.end());
  const auto count = static_cast<int64_t>(tokens.size());
  MorphemeIndex result{.index = at::empty({count, order}, at::kInt), .morphemes = {}};
  MorphemeList list;
  auto* numbers = result.index.data_ptr<int32_t>();
  for (int64_t id = 0; id < count; ++id) {
    const std::string& token = tokens[static_cast<size_t>(id)];
    Strings parts = special.count(id) > 0 ? Strings() : segmenter.segment(token);
    for (std::string& part : parts) {
      if (!in_list.empty() && in_list.count(part) == 0 && part != token) part = "[UNK]";
    }
    if (parts.empty()) parts.push_back(token);
    for (const std::string& part : fitted(std::move(parts), static_cast<size_t>(order)))
      *numbers++ = list.number_of(part);
  }
  result.morphemes = list.take_names();
  result.collisions = count_collisions(result.index);
  return result;
}

}  // namespace lcomp::lowrank
