#include "io/tokenizer/vocabulary.h"

namespace lcomp::io::tok {

Vocabulary Vocabulary::from_json(const JsonView& json) {
  if (!json.value().is_object())
    json.fail(
        fmt::format("must be an object {{token: id, ...}}; it is of type {}", json.value().type_name()));
  Vocabulary vocabulary;
  vocabulary.ids_.reserve(json.value().size());
  vocabulary.tokens_.reserve(json.value().size());
  // Not `json.members()`: a view with its pointer for each of some hundred thousand tokens takes its time.
  for (const auto& [token, value] : json.value().items()) {
    const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= static_cast<uint64_t>(kMaxId);
    const int64_t id = fits ? value.get<int64_t>() : json.at(token).integer(0, kMaxId);
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
