#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/json_util.h"
#include "io/tokenizer/components.h"
#include "io/tokenizer/vocabulary.h"

namespace lcomp::io::tok {

/// A token that is cut out of the text before the model sees it.
struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool single_word = false;  ///< only where no word character stands beside it
  bool lstrip = false;       ///< takes the white space before it along
  bool rstrip = false;       ///< takes the white space behind it along
  bool normalized = true;    ///< looked for in normalized text, with its content normalized
  bool special = false;      ///< left out by `decode(skip_special_tokens)`
  std::string normalized_content;
};

/// Strings to find in a text: the leftmost, and of those the longest. (A trie walked from every position.)
class TokenFinder {
 public:
  void add(std::string_view text, const AddedToken* token);

  struct Match {
    size_t begin = 0;
    size_t end = 0;
    const AddedToken* token = nullptr;
  };
  /// The first match at or behind `position`; no token when there is none.
  Match find(std::string_view text, size_t position) const;

 private:
  struct Node {
    std::unordered_map<unsigned char, size_t> children;
    const AddedToken* token = nullptr;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
};

/// A part of the input: normalized text for the pre-tokenizer, or an added token.
struct Section {
  Piece text;
  const AddedToken* token = nullptr;
};

/// The added tokens of a tokenizer.
class AddedTokens {
 public:
  /// `json` is the array `added_tokens` (nothing: no tokens). An added token that is in the model's
  /// vocabulary has its id; the others follow behind the vocabulary in the order of the list. Throws
  /// `CorruptFile` when a stated id is another one.
  AddedTokens(const std::optional<JsonView>& json, const Vocabulary& vocabulary,
              const Normalizer& normalizer);
  AddedTokens(const AddedTokens&) = delete;
  AddedTokens& operator=(const AddedTokens&) = delete;

  /// Cuts `text` at added tokens, normalizes what is between them, and hands on the sections in order (views
  /// are valid during the call).
  void cut(std::string_view text, const Normalizer& normalizer,
           const std::function<void(const Section&)>& sink) const;

  const AddedToken* find(int64_t id) const;
  const AddedToken* find(std::string_view content) const;
  /// Number of tokens that the model's vocabulary does not have.
  int64_t number_of_new() const { return number_of_new_; }

 private:
  void add(AddedToken token, const JsonView& json, const Vocabulary& vocabulary, int64_t stated_id);

  std::unordered_map<int64_t, AddedToken> by_id_;
  StringMap<int64_t> ids_;
  int64_t number_of_new_ = 0;
  TokenFinder raw_;         // tokens with normalized = false, looked for in the input
  TokenFinder normalized_;  // the others, looked for after the normalizer
};

}  // namespace lcomp::io::tok
