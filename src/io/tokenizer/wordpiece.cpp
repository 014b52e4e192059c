#include "io/tokenizer/components.h"
#include "io/tokenizer/pattern.h"
#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

/// WordPiece (Schuster and Nakajima 2012) as BERT applies it: the longest token that begins the word, then
/// the longest continuing token that begins the rest, and so on. A word that cannot be covered this way, or
/// that is too long, is one unknown token.
class WordPiece : public Model {
 public:
  explicit WordPiece(const JsonView& json)
      : vocabulary_(Vocabulary::from_json(json.at("vocab"))),
        prefix_(json.at("continuing_subword_prefix").text()),
        longest_word_(json.at("max_input_chars_per_word").integer(0)) {
    const std::string unk = json.at("unk_token").text();
    const auto id = vocabulary_.id(unk);
    if (!id) json.at("unk_token").fail("must be in the vocabulary; " + quote_name(unk) + " is not");
    unk_id_ = *id;
  }

  const Vocabulary& vocabulary() const override { return vocabulary_; }

  void tokenize(std::string_view word, std::vector<int64_t>& ids) const override {
    const size_t size_before = ids.size();
    if (count_code_points(word) <= longest_word_ && cover(word, ids)) return;
    ids.resize(size_before);
    ids.push_back(unk_id_);
  }

 private:
  /// False when no token begins some rest of the word; `ids` then has those of the part before it.
  bool cover(std::string_view word, std::vector<int64_t>& ids) const {
    std::string rest(word);  // with the prefix in front, from the second piece on
    while (!word.empty()) {
      std::string_view piece = rest;
      size_t length = word.size();
      while (length > 0 && !vocabulary_.id(piece)) {
        const size_t end = length;
        previous_code_point(word, length);
        piece.remove_suffix(end - length);
      }
      if (length == 0) return false;
      ids.push_back(*vocabulary_.id(piece));
      word.remove_prefix(length);
      rest = prefix_ + std::string(word);
    }
    return true;
  }

  Vocabulary vocabulary_;
  std::string prefix_;
  int64_t longest_word_;  // in code points
  int64_t unk_id_ = 0;
};

/// What the decoder's `cleanup` rewrites in each token, in this order.
const std::pair<std::string, std::string> kCleanups[] = {
    {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
    {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};

}  // namespace

std::unique_ptr<Model> build_wordpiece(const JsonView& json) {
  return std::make_unique<WordPiece>(json);
}

Decoder build_wordpiece_decoder(const JsonView& json) {
  const std::string prefix = json.at("prefix").text();
  std::vector<std::pair<Pattern, std::string>> cleanups;
  if (json.at("cleanup").boolean()) {
    for (const auto& [from, to] : kCleanups) cleanups.emplace_back(Pattern::literal(from), to);
  }
  return [prefix, cleanups](std::vector<std::string> tokens) {
    for (size_t i = 0; i < tokens.size(); ++i) {
      if (i > 0 && tokens[i].starts_with(prefix)) {
        tokens[i].erase(0, prefix.size());
      } else if (i > 0) {
        tokens[i].insert(tokens[i].begin(), ' ');
      }
      for (const auto& [pattern, content] : cleanups) tokens[i] = pattern.replaced(tokens[i], content);
    }
    return tokens;
  };
}

}  // namespace lcomp::io::tok
