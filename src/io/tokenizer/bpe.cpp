#include <queue>

#include "io/tokenizer/components.h"
#include "io/tokenizer/unicode.h"
#include "lcomp/core/error.h"

namespace lcomp::io::tok {
namespace {

/// A merge rule: the pair with the lowest rank in a word is joined first.
struct Merge {
  uint32_t rank = 0;
  uint32_t id = 0;  ///< of the joined token
};

uint64_t pair_key(uint32_t left, uint32_t right) {
  return uint64_t{left} << 32 | right;
}

/// Multiplicative hashing; the identity would put pairs with one right side into one bucket.
struct PairHash {
  size_t operator()(uint64_t key) const { return (key * 0x9E3779B97F4A7C15u) >> 20; }
};
using MergeTable = std::unordered_map<uint64_t, Merge, PairHash>;

struct BpeOptions {
  std::optional<std::string> unk_token;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

BpeOptions options_from_json(const JsonView& json) {
  if (const auto dropout = json.find("dropout"); dropout && dropout->number() != 0) {
    throw Unsupported(
        dropout->place(),
        fmt::format("dropout must be null or 0 (it makes ids random); it is {}", dropout->number()));
  }
  BpeOptions options;
  if (const auto unk = json.find("unk_token")) options.unk_token = unk->text();
  options.continuing_subword_prefix = json.text_or("continuing_subword_prefix", "");
  options.end_of_word_suffix = json.text_or("end_of_word_suffix", "");
  options.fuse_unk = json.boolean_or("fuse_unk", false);
  options.byte_fallback = json.boolean_or("byte_fallback", false);
  options.ignore_merges = json.boolean_or("ignore_merges", false);
  return options;
}

using MergeSides = std::pair<std::string_view, std::string_view>;

/// The sides of "a b".
std::optional<MergeSides> split_merge(std::string_view text) {
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos)
    return std::nullopt;
  return MergeSides(text.substr(0, space), text.substr(space + 1));
}

/// The sides of one merge in either notation, "a b" or ["a", "b"].
std::optional<MergeSides> merge_sides(const Json& merge) {
  if (merge.is_string()) return split_merge(merge.get_ref<const std::string&>());
  if (!merge.is_array() || merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
    return std::nullopt;
  return MergeSides(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>());
}

/// The line that begins a merges.txt and found its way into some files.
bool is_version_line(const Json& merge) {
  return merge.is_string() && merge.get_ref<const std::string&>().starts_with("#version");
}

MergeTable merges_from_json(const JsonView& json, const Vocabulary& vocabulary, const std::string& prefix) {
  const Json& list = json.value();
  if (!list.is_array()) json.fail(fmt::format("must be an array; it is of type {}", list.type_name()));
  MergeTable table;
  table.reserve(list.size());
  const auto id_of = [&](std::string_view token, size_t index) {
    const auto id = vocabulary.id(token);
    if (!id)
      json.fail(fmt::format("merge {}: {} must be in the vocabulary; it is not", index, quote_name(token)));
    return static_cast<uint32_t>(*id);
  };
  uint32_t rank = 0;
  for (size_t i = 0; i < list.size(); ++i) {
    if (is_version_line(list[i])) continue;
    const auto sides = merge_sides(list[i]);
    if (!sides) {
      json.fail(
          fmt::format("merge {}: must be two tokens, [\"a\", \"b\"] or \"a b\" with one space; it is {}", i,
                      list[i].dump(-1, ' ', true)));
    }
    const auto [left, right] = *sides;
    if (!right.starts_with(prefix)) {
      json.fail(
          fmt::format("merge {}: the right side must begin with the continuing_subword_prefix {}; it is {}",
                      i, quote_name(prefix), quote_name(right)));
    }
    const uint32_t left_id = id_of(left, i);
    const uint32_t right_id = id_of(right, i);
    const uint32_t joined_id = id_of(std::string(left) + std::string(right.substr(prefix.size())), i);
    table[pair_key(left_id, right_id)] = {rank++, joined_id};
  }
  return table;
}

/// A word while its symbols are joined: a doubly linked list in one array, so that joining costs O(1).
class Word {
 public:
  void add(uint32_t id) {
    const auto index = static_cast<int32_t>(symbols_.size());
    if (index > 0) symbols_.back().next = index;
    symbols_.push_back({id, index - 1, -1, true});
  }

  /// Applies the merges in order of (rank, position), each as often as it fits: O(n log n).
  void merge_all(const MergeTable& merges) {
    for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols_.size()); ++i) offer(i, merges);
    while (!queue_.empty()) {
      const Candidate best = queue_.top();
      queue_.pop();
      if (!still_stands(best)) continue;
      join(best);
      const int32_t previous = symbols_[static_cast<size_t>(best.left)].previous;
      if (previous >= 0) offer(previous, merges);
      offer(best.left, merges);
    }
  }

  void append_ids(std::vector<int64_t>& out) const {
    for (const Symbol& symbol : symbols_) {
      if (symbol.alive) out.push_back(symbol.id);
    }
  }

 private:
  struct Symbol {
    uint32_t id;
    int32_t previous;
    int32_t next;
    bool alive;
  };
  struct Candidate {
    uint32_t rank;
    int32_t left;
    uint64_t pair;
    uint32_t joined_id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };

  Symbol& at(int32_t index) { return symbols_[static_cast<size_t>(index)]; }

  void offer(int32_t left, const MergeTable& merges) {
    if (at(left).next < 0) return;
    const uint64_t pair = pair_key(at(left).id, at(at(left).next).id);
    const auto merge = merges.find(pair);
    if (merge != merges.end()) queue_.push({merge->second.rank, left, pair, merge->second.id});
  }

  bool still_stands(const Candidate& candidate) {
    const Symbol& left = at(candidate.left);
    return left.alive && left.next >= 0 && pair_key(left.id, at(left.next).id) == candidate.pair;
  }

  void join(const Candidate& candidate) {
    Symbol& left = at(candidate.left);
    Symbol& right = at(left.next);
    left.id = candidate.joined_id;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) at(left.next).previous = candidate.left;
  }

  std::vector<Symbol> symbols_;
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue_;
};

/// Byte-pair encoding (Sennrich et al. 2016, section 3.2) with the variants of the `tokenizers` library.
class Bpe : public Model {
 public:
  explicit Bpe(const JsonView& json)
      : vocabulary_(Vocabulary::from_json(json.at("vocab"))),
        options_(options_from_json(json)),
        merges_(merges_from_json(json.at("merges"), vocabulary_, options_.continuing_subword_prefix)) {
    if (options_.unk_token) {
      unk_id_ = vocabulary_.id(*options_.unk_token);
      if (!unk_id_) {
        json.at("unk_token")
            .fail("must be in the vocabulary; " + quote_name(*options_.unk_token) + " is not");
      }
    }
    if (options_.byte_fallback) find_byte_tokens();
  }

  const Vocabulary& vocabulary() const override { return vocabulary_; }

  void tokenize(std::string_view word, std::vector<int64_t>& ids) const override {
    if (options_.ignore_merges) {
      if (const auto id = vocabulary_.id(word)) {
        ids.push_back(*id);
        return;
      }
    }
    Word symbols = split(word);
    symbols.merge_all(merges_);
    symbols.append_ids(ids);
  }

 private:
  void find_byte_tokens() {
    byte_ids_.resize(256);
    for (size_t byte = 0; byte < 256; ++byte)
      byte_ids_[byte] = vocabulary_.id(fmt::format("<0x{:02X}>", byte));
  }

  /// One symbol per character. A character that is not in the vocabulary becomes byte tokens, or the unknown
  /// token, or nothing.
  Word split(std::string_view word) const {
    Word symbols;
    bool unk_pending =
        false;  // as in the reference, byte tokens overtake an unknown token that waits for fusion
    const auto flush_unk = [&] {
      if (unk_pending) symbols.add(static_cast<uint32_t>(*unk_id_));
      unk_pending = false;
    };
    std::string decorated;
    for (size_t position = 0; position < word.size();) {
      const size_t begin = position;
      position += utf8_length(static_cast<unsigned char>(word[begin]));
      const std::string_view symbol = decorate(word, begin, position, decorated);
      if (const auto id = vocabulary_.id(symbol)) {
        flush_unk();
        symbols.add(static_cast<uint32_t>(*id));
      } else if (!add_bytes(symbol, symbols) && unk_id_) {
        if (!options_.fuse_unk) flush_unk();
        unk_pending = true;
      }
    }
    flush_unk();
    return symbols;
  }

  /// The character [begin, end) of `word` with the prefix of continuing and the suffix of last symbols.
  std::string_view decorate(std::string_view word, size_t begin, size_t end, std::string& buffer) const {
    const std::string_view character = word.substr(begin, end - begin);
    const bool prefixed = begin > 0 && !options_.continuing_subword_prefix.empty();
    const bool suffixed = end == word.size() && !options_.end_of_word_suffix.empty();
    if (!prefixed && !suffixed) return character;
    buffer = prefixed ? options_.continuing_subword_prefix : "";
    buffer += character;
    if (suffixed) buffer += options_.end_of_word_suffix;
    return buffer;
  }

  /// False, and no change, unless every byte of `symbol` has its token.
  bool add_bytes(std::string_view symbol, Word& symbols) const {
    if (!options_.byte_fallback) return false;
    const auto id_of = [&](char byte) { return byte_ids_[static_cast<unsigned char>(byte)]; };
    if (!std::all_of(symbol.begin(), symbol.end(), [&](char byte) { return id_of(byte).has_value(); }))
      return false;
    for (const char byte : symbol) symbols.add(static_cast<uint32_t>(*id_of(byte)));
    return true;
  }

  Vocabulary vocabulary_;
  BpeOptions options_;
  MergeTable merges_;
  std::optional<int64_t> unk_id_;
  std::vector<std::optional<int64_t>> byte_ids_;
};

}  // namespace

std::unique_ptr<Model> build_bpe(const JsonView& json) {
  return std::make_unique<Bpe>(json);
}

}  // namespace lcomp::io::tok
