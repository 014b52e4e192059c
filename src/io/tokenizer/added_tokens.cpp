#include "io/tokenizer/added_tokens.h"

#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

AddedToken token_from_json(const JsonView& json) {
  AddedToken token;
  token.content = json.at("content").text();
  token.special = json.boolean_or("special", false);
  token.single_word = json.boolean_or("single_word", false);
  token.lstrip = json.boolean_or("lstrip", false);
  token.rstrip = json.boolean_or("rstrip", false);
  token.normalized = json.boolean_or("normalized", !token.special);
  return token;
}

std::string normalized(const std::string& content, const Normalizer& normalizer) {
  NormalizedText piece{content, false};
  if (normalizer) normalizer(piece);
  return piece.text;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && is_word(previous_code_point(text, begin))) return false;
  return end == text.size() || !is_word(next_code_point(text, end));
}

size_t extended_left(std::string_view text, size_t begin, size_t limit) {
  while (begin > limit) {
    size_t previous = begin;
    if (!is_white_space(previous_code_point(text, previous))) break;
    begin = previous;
  }
  return begin;
}

size_t extended_right(std::string_view text, size_t end) {
  while (end < text.size()) {
    size_t next = end;
    if (!is_white_space(next_code_point(text, next))) break;
    end = next;
  }
  return end;
}

/// Cuts `piece` at the matches of `finder`. White space that a token takes along belongs to the first token
/// that can have it.
void cut_at(Piece piece, const TokenFinder& finder, const std::function<void(const Section&)>& sink) {
  const std::string_view text = piece.text;
  const auto text_between = [&](size_t begin, size_t end) {
    if (begin < end) sink({{text.substr(begin, end - begin), piece.at_start && begin == 0}, nullptr});
  };
  size_t done = 0;
  for (auto match = finder.find(text, 0); match.token != nullptr; match = finder.find(text, match.end)) {
    if (match.token->single_word && !stands_alone(text, match.begin, match.end)) continue;
    const size_t begin = match.token->lstrip ? extended_left(text, match.begin, done) : match.begin;
    text_between(done, begin);
    sink({{}, match.token});
    done = match.token->rstrip ? extended_right(text, match.end) : match.end;
  }
  text_between(done, text.size());
}

}  // namespace

void TokenFinder::add(std::string_view text, const AddedToken* token) {
  size_t node = 0;
  for (const char byte : text) {
    const auto [child, is_new] =
        nodes_[node].children.try_emplace(static_cast<unsigned char>(byte), nodes_.size());
    node = child->second;
    if (is_new) nodes_.emplace_back();
  }
  nodes_[node].token = token;
}

TokenFinder::Match TokenFinder::find(std::string_view text, size_t position) const {
  for (size_t begin = position; begin < text.size(); ++begin) {
    Match longest;
    const Node* node = nodes_.data();
    for (size_t end = begin; end < text.size(); ++end) {
      const auto child = node->children.find(static_cast<unsigned char>(text[end]));
      if (child == node->children.end()) break;
      node = &nodes_[child->second];
      if (node->token != nullptr) longest = {begin, end + 1, node->token};
    }
    if (longest.token != nullptr) return longest;
  }
  return {};
}

AddedTokens::AddedTokens(const std::optional<JsonView>& json, const Vocabulary& vocabulary,
                         const Normalizer& normalizer) {
  if (!json) return;
  for (const JsonView& entry : json->elements()) {
    AddedToken token = token_from_json(entry);
    // The reference takes an empty token for none at all.
    if (!token.content.empty()) add(std::move(token), entry, vocabulary, entry.at("id").integer(0, kMaxId));
  }
  for (auto& [id, token] : by_id_) {
    token.normalized_content = token.normalized ? normalized(token.content, normalizer) : token.content;
    if (!token.normalized_content.empty())
      (token.normalized ? normalized_ : raw_).add(token.normalized_content, &token);
  }
}

void AddedTokens::add(AddedToken token, const JsonView& json, const Vocabulary& vocabulary,
                      int64_t stated_id) {
  const auto known = ids_.find(token.content);
  const auto in_vocabulary = vocabulary.id(token.content);
  token.id = in_vocabulary ? *in_vocabulary : vocabulary.size() + number_of_new_;
  if (known != ids_.end()) token.id = known->second;
  if (token.id != stated_id) {
    json.fail(fmt::format("the id of {} must be {} ({}); it is {}", quote_name(token.content), token.id,
                          in_vocabulary ? "as in the vocabulary" : "the next one behind the vocabulary",
                          stated_id));
  }
  if (!in_vocabulary && vocabulary.token(token.id) != nullptr) {
    json.fail(fmt::format("tokens must have ids of their own; {} and {} both have {}",
                          quote_name(token.content), quote_name(*vocabulary.token(token.id)), token.id));
  }
  if (known == ids_.end() && !in_vocabulary) ++number_of_new_;
  ids_.insert_or_assign(token.content, token.id);
  by_id_.insert_or_assign(token.id, std::move(token));
}

void AddedTokens::cut(std::string_view text, const Normalizer& normalizer,
                      const std::function<void(const Section&)>& sink) const {
  cut_at({text, true}, raw_, [&](const Section& section) {
    if (section.token != nullptr) return sink(section);
    if (!normalizer) return cut_at(section.text, normalized_, sink);
    NormalizedText piece{std::string(section.text.text), section.text.at_start};
    normalizer(piece);
    cut_at({piece.text, piece.at_start}, normalized_, sink);
  });
}

const AddedToken* AddedTokens::find(int64_t id) const {
  const auto entry = by_id_.find(id);
  return entry == by_id_.end() ? nullptr : &entry->second;
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto entry = ids_.find(content);
  return entry == ids_.end() ? nullptr : find(entry->second);
}

}  // namespace lcomp::io::tok
