#include "io/tokenizer/vocabulary.h"

namespace lcomp::io::tok {

Vocabulary Vocabulary::from_json(const JsonView& json) {
  Vocabulary vocabulary;
  const auto members = json.members();
  vocabulary.ids_.reserve(members.size());
  vocabulary.tokens_.reserve(members.size());
  for (const auto& [token, value] : members) {
    const int64_t id = value.integer(0, kMaxId);
    if (!vocabulary.add(token, id)) {
      json.fail(fmt::format("tokens must have ids of their own; {} and {} both have {}",
                            quote_name(*vocabulary.token(id)), quote_name(token), id));
    }
  }
  return vocabulary;
}

bool Vocabulary::add(std::string_view token, int64_t id) {
  if (tokens_.contains(id)) return false;
  const auto [entry, is_new] = ids_.emplace(token, id);
  if (is_new) tokens_.emplace(id, &entry->first);
  return is_new;
}

std::optional<int64_t> Vocabulary::id(std::string_view token) const {
  const auto entry = ids_.find(token);
  return entry == ids_.end() ? std::nullopt : std::optional(entry->second);
}

const std::string* Vocabulary::token(int64_t id) const {
  const auto entry = tokens_.find(id);
  return entry == tokens_.end() ? nullptr : entry->second;
}

}  // namespace lcomp::io::tok
