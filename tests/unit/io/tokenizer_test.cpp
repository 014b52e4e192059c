#include "lcomp/io/tokenizer.h"

#include <catch2/catch.hpp>
#include <fstream>
#include <random>
#include <thread>

#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/unicode.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"
#include "support/test_data.h"
#include "support/toy_tokenizer.h"

using Catch::Equals;
using lcomp::io::Encoding;
using lcomp::io::Tokenizer;
using lcomp::test::abc_document;
using lcomp::test::added_token;
using lcomp::test::bpe_model;
using lcomp::test::Json;
using lcomp::test::load;
using lcomp::test::tokenizer_document;
using lcomp::test::word_pieces_document;

using Ids = std::vector<int64_t>;

namespace {

std::string random_text(std::mt19937& random, size_t length) {
  // Ranges of 1, 2, 3 and 4 byte sequences, with controls, white space and letters of several scripts.
  const std::pair<char32_t, char32_t> ranges[] = {{0, 0x7F},        {0x20, 0x7E},     {0x80, 0x7FF},
                                                  {0x800, 0xD7FF},  {0xE000, 0xFFFF}, {0x10000, 0x10FFFF},
                                                  {0x2000, 0x200F}, {'0', '9'}};
  std::string text;
  for (size_t i = 0; i < length; ++i) {
    const auto [first, last] = ranges[random() % std::size(ranges)];
    lcomp::io::tok::append_utf8(text, first + random() % (last - first + 1));
  }
  return text;
}

/// All 256 byte symbols and nothing else, cut into GPT-2's words.
Json byte_level_document() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.emplace_back(lcomp::io::tok::symbol_of_byte(static_cast<unsigned char>(byte)));
  }
  Json document = tokenizer_document(bpe_model(tokens, {}));
  document["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  document["decoder"] = {{"type", "ByteLevel"}};
  return document;
}

/// Byte-pair encoding in its plainest form: as long as some pair has a merge, apply the one of the lowest
/// rank, the leftmost first.
std::vector<std::string> naive_bpe(const std::string& word,
                                   const std::vector<std::pair<std::string, std::string>>& merges) {
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  for (;;) {
    size_t best_rank = merges.size();
    size_t best_position = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank] != std::make_pair(symbols[i], symbols[i + 1])) continue;
        best_rank = rank;
        best_position = i;
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best_position] += symbols[best_position + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_position) + 1);
  }
}

}  // namespace

TEST_CASE("merges apply by rank, and the leftmost first among equals", "[io][tokenizer]") {
  const Tokenizer tokenizer = load(abc_document());
  REQUIRE(tokenizer.encode("abc") == Ids{4});
  REQUIRE(tokenizer.encode("ababc") == Ids{3, 4});
  REQUIRE(tokenizer.encode("bca") == Ids{1, 2, 0});
  const Tokenizer pairs = load(tokenizer_document(bpe_model({"a", "aa"}, {{"a", "a"}})));
  REQUIRE(pairs.encode("aaa") == Ids{1, 0});
}

TEST_CASE("byte-pair encoding equals the naive algorithm on random vocabularies and words",
          "[io][tokenizer]") {
  const unsigned seed = 20240607;
  std::mt19937 random(seed);
  for (int repeat = 0; repeat < 20; ++repeat) {
    std::vector<std::string> tokens = {"a", "b", "c"};
    std::vector<std::pair<std::string, std::string>> merges;
    while (tokens.size() < 25) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      if (std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
      tokens.push_back(left + right);
      merges.emplace_back(left, right);
    }
    const Tokenizer tokenizer = load(tokenizer_document(bpe_model(tokens, merges)));
    for (int word_number = 0; word_number < 20; ++word_number) {
      std::string word;
      while (word.size() < 1 + random() % 60) word += tokens[random() % 3];
      std::vector<std::string> pieces;
      for (const int64_t id : tokenizer.encode(word)) pieces.push_back(tokenizer.id_to_token(id));
      INFO("seed " << seed << ", repeat " << repeat << ", word " << word);
      REQUIRE_THAT(pieces, Equals(naive_bpe(word, merges)));
    }
  }
}

TEST_CASE("one word of a megabyte is encoded in little time", "[io][tokenizer]") {
  std::string word;
  for (int i = 0; i < 300000; ++i) word += "abc";
  REQUIRE(load(abc_document()).encode(word) == Ids(300000, 4));
}

TEST_CASE("decoding gives back every text when all bytes have a symbol", "[io][tokenizer]") {
  const Tokenizer tokenizer = load(byte_level_document());
  const unsigned seed = 7;
  std::mt19937 random(seed);
  for (size_t length = 0; length < 200; ++length) {
    const std::string text = random_text(random, length);
    INFO("seed " << seed << ", length " << length);
    REQUIRE(tokenizer.decode(tokenizer.encode(text)) == text);
  }
}

TEST_CASE("ids of cut characters decode to one replacement character per ill-formed part",
          "[io][tokenizer]") {
  const Tokenizer tokenizer = load(byte_level_document());
  REQUIRE(tokenizer.decode({0xE4, 0xB8, 0xAD}) == "\u4e2d");
  REQUIRE(tokenizer.decode({0xE4, 0xB8, 'x'}) == "\uFFFDx");
  REQUIRE(tokenizer.decode({0x80, 0x80}) == "\uFFFD\uFFFD");
}

TEST_CASE("the same word gives the same ids wherever it stands", "[io][tokenizer]") {
  const Tokenizer tokenizer = load(byte_level_document());
  const Ids once = tokenizer.encode(" word");
  Ids often;
  for (int i = 0; i < 100; ++i) often.insert(often.end(), once.begin(), once.end());
  std::string text;
  for (int i = 0; i < 100; ++i) text += " word";
  REQUIRE(tokenizer.encode(text) == often);
}

TEST_CASE("threads that share a tokenizer get what one thread gets", "[io][tokenizer]") {
  const Tokenizer tokenizer = load(byte_level_document());
  std::mt19937 random(11);
  const std::string text = random_text(random, 2000);
  const Ids expected = tokenizer.encode(text);
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer.encode(text); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) REQUIRE(result == expected);
}

TEST_CASE("a character outside the vocabulary becomes bytes, the unknown token, or nothing",
          "[io][tokenizer]") {
  Json document = abc_document();
  REQUIRE(load(document).encode("a?b") == Ids{3});

  document["model"]["vocab"]["<unk>"] = 5;
  document["model"]["unk_token"] = "<unk>";
  REQUIRE(load(document).encode("a??b") == Ids{0, 5, 5, 1});
  document["model"]["fuse_unk"] = true;
  REQUIRE(load(document).encode("a??b?") == Ids{0, 5, 1, 5});

  document["model"]["byte_fallback"] = true;
  document["model"]["vocab"]["<0xC3>"] = 6;
  document["model"]["vocab"]["<0xA9>"] = 7;
  REQUIRE(load(document).encode("a\u00e9b") == Ids{0, 6, 7, 1});
  // Only one of the bytes of U+00E8 (C3 A8) has a token: all or nothing.
  REQUIRE(load(document).encode("a\u00e8b") == Ids{0, 5, 1});
  // As in the reference, byte tokens overtake the unknown token that waits to be fused.
  REQUIRE(load(document).encode("?\u00e9b") == Ids{6, 7, 5, 1});
}

TEST_CASE("prefix and suffix mark the continuing and the last symbols of a word", "[io][tokenizer]") {
  Json model = bpe_model({"a", "##b", "##c</w>", "a##b</w>", "ab", "abc</w>", "a</w>"},
                         {{"a", "##b"}, {"ab", "##c</w>"}});
  model["continuing_subword_prefix"] = "##";
  model["end_of_word_suffix"] = "</w>";
  const Tokenizer tokenizer = load(tokenizer_document(model));
  REQUIRE(tokenizer.encode("abc") == Ids{5});
  REQUIRE(tokenizer.encode("a") == Ids{6});
}

TEST_CASE("ignore_merges takes a whole word that no merge reaches", "[io][tokenizer]") {
  Json document = tokenizer_document(bpe_model({"a", "b", "ab"}, {}));
  REQUIRE(load(document).encode("ab") == Ids{0, 1});
  document["model"]["ignore_merges"] = true;
  REQUIRE(load(document).encode("ab") == Ids{2});
}

TEST_CASE("merges are read in both notations", "[io][tokenizer]") {
  Json document = abc_document();
  document["model"]["merges"] = {"#version: 0.2", "a b", "ab c"};
  REQUIRE(load(document).encode("abc") == Ids{4});
}

TEST_CASE("a document of another version is refused", "[io][tokenizer]") {
  Json document = abc_document();
  document["version"] = "2.0";
  REQUIRE_THROWS_AS(load(document), lcomp::Unsupported);
  REQUIRE_THROWS_WITH(load(document),
                      Catch::EndsWith("/version] the version must be \"1.0\"; it is \"2.0\""));
}

TEST_CASE("a model without a type that has merges is a BPE", "[io][tokenizer]") {
  Json document = abc_document();
  document["model"].erase("type");
  REQUIRE(load(document).encode("abc") == Ids{4});
}

TEST_CASE("added tokens are found before the model sees the text, the longest first", "[io][tokenizer]") {
  Json document = abc_document();
  document["added_tokens"] = {added_token(5, "<a>"), added_token(6, "<a><a>"), added_token(0, "a")};
  const Tokenizer tokenizer = load(document);
  REQUIRE(tokenizer.vocab_size() == 7);
  REQUIRE(tokenizer.encode("b<a><a>bc<a>") == Ids{1, 6, 1, 2, 5});
  REQUIRE(tokenizer.encode("abc") == Ids{0, 1, 2});  // "a" is now a token of its own
  REQUIRE(tokenizer.token_to_id("<a>") == 5);
  REQUIRE(tokenizer.token_to_id("abc") == 4);
  REQUIRE_FALSE(tokenizer.token_to_id("abcd").has_value());
  REQUIRE(tokenizer.id_to_token(6) == "<a><a>");
  REQUIRE(tokenizer.id_to_token(4) == "abc");
}

TEST_CASE("special tokens stay out of the text when asked", "[io][tokenizer]") {
  Json document = abc_document();
  document["added_tokens"] = {added_token(5, "<s>"), added_token(6, "<x>")};
  document["added_tokens"][1]["special"] = false;
  const Tokenizer tokenizer = load(document);
  REQUIRE(tokenizer.decode({5, 4, 6}) == "<s>abc<x>");
  REQUIRE(tokenizer.decode({5, 4, 6}, true) == "abc<x>");
}

TEST_CASE("the flags of an added token say where it is found and what it takes along", "[io][tokenizer]") {
  Json document = abc_document();
  document["added_tokens"] = {added_token(5, "[L]"), added_token(6, "[R]"), added_token(7, "c")};
  document["added_tokens"][0]["lstrip"] = true;
  document["added_tokens"][1]["rstrip"] = true;
  document["added_tokens"][2] = added_token(2, "c");
  document["added_tokens"][2]["single_word"] = true;
  document["model"]["vocab"][" "] = 7;
  const Json with_space = document;
  Json renumbered = with_space;  // the space is in the vocabulary, so the new tokens follow behind it
  renumbered["model"]["vocab"][" "] = 5;
  renumbered["added_tokens"][0]["id"] = 6;
  renumbered["added_tokens"][1]["id"] = 7;
  const Tokenizer tokenizer = load(renumbered);
  REQUIRE(tokenizer.encode("a [L] b") == Ids{0, 6, 5, 1});
  REQUIRE(tokenizer.encode("a [R] b") == Ids{0, 5, 7, 1});
  REQUIRE(tokenizer.encode("abc") == Ids{4});
  REQUIRE(tokenizer.encode("ab c") == Ids{3, 5, 2});
  REQUIRE(tokenizer.encode("ab\u00e9c") == Ids{4});  // a letter stands before c, and is then dropped
}

TEST_CASE("a normalized added token is found in any form and decodes to its normal one", "[io][tokenizer]") {
  Json document = abc_document();
  document["normalizer"] = {{"type", "Lowercase"}};
  document["added_tokens"] = {added_token(5, "TOK")};
  document["added_tokens"][0]["normalized"] = true;
  const Tokenizer tokenizer = load(document);
  REQUIRE(tokenizer.encode("ABCtOkA") == Ids{4, 5, 0});
  REQUIRE(tokenizer.decode({5}) == "tok");
  REQUIRE(tokenizer.id_to_token(5) == "TOK");
}

TEST_CASE("Metaspace's scheme first marks only the piece at the start of the input", "[io][tokenizer]") {
  const auto pieces = [](const Json& document, const std::string& text) {
    const Tokenizer tokenizer = load(document);
    std::string joined;
    for (const int64_t id : tokenizer.encode(text)) joined += tokenizer.id_to_token(id);
    return joined;
  };
  Json document = tokenizer_document(bpe_model({"a", "b", "\u2581"}, {}));
  document["added_tokens"] = {added_token(3, "<s>")};
  document["pre_tokenizer"] = {
      {"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "first"}, {"split", false}};
  REQUIRE(pieces(document, "a<s>b") == "\u2581a<s>b");
  REQUIRE(pieces(document, "<s>b a") == "<s>b\u2581a");
  // What the normalizer cut off stood at the start.
  document["normalizer"] = {{"type", "Strip"}, {"strip_left", true}, {"strip_right", true}};
  REQUIRE(pieces(document, "a ") == "\u2581a");
  REQUIRE(pieces(document, " a") == "a");
}

TEST_CASE("without a post-processor a pair is two texts with segment numbers 0 and 1", "[io][tokenizer]") {
  const Encoding encoding = load(abc_document()).encode_pair("ab", "ca", true);
  REQUIRE(encoding.ids == Ids{3, 2, 0});
  REQUIRE(encoding.type_ids == Ids{0, 1, 1});
}

TEST_CASE("BERT and RoBERTa frame one text and two", "[io][tokenizer]") {
  Json document = abc_document();
  document["added_tokens"] = {added_token(5, "<s>"), added_token(6, "</s>")};
  document["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"</s>", 6}}, {"cls", {"<s>", 5}}};
  const Tokenizer bert = load(document);
  REQUIRE(bert.encode("ab") == Ids{3});
  REQUIRE(bert.encode("ab", true) == Ids{5, 3, 6});
  REQUIRE(bert.encode_pair("ab", "c", true).ids == Ids{5, 3, 6, 2, 6});
  REQUIRE(bert.encode_pair("ab", "c", true).type_ids == Ids{0, 0, 0, 1, 1});

  document["post_processor"]["type"] = "RobertaProcessing";
  const Tokenizer roberta = load(document);
  REQUIRE(roberta.encode_pair("ab", "c", true).ids == Ids{5, 3, 6, 6, 2, 6});
  REQUIRE(roberta.encode_pair("ab", "c", true).type_ids == Ids(6, 0));
  REQUIRE(roberta.encode_pair("ab", "c").type_ids == Ids(2, 0));
}

TEST_CASE("WordPiece takes the longest token at each place, or the whole word is unknown",
          "[io][tokenizer]") {
  const Tokenizer tokenizer = load(word_pieces_document());
  REQUIRE(tokenizer.encode("Unaffable") == Ids{3, 4, 5});
  REQUIRE(tokenizer.encode("affable") == Ids{6});
  REQUIRE(tokenizer.encode("unable, \u00c4ffable.") == Ids{3, 5, 9, 6, 10});  // the accent goes
  REQUIRE(tokenizer.encode("unx not") == Ids{0, 8});                          // no rest, so no part
  REQUIRE(tokenizer.encode("unaffaffaff") == Ids{3, 4, 4, 4});
  REQUIRE(tokenizer.encode("unaffaffaffaff") == Ids{0});  // 14 characters
  REQUIRE(tokenizer.encode("do\u4e2dnot", true) == Ids{1, 7, 0, 8, 2});
  REQUIRE(tokenizer.decode({3, 4, 5, 9, 7, 8, 10}) == "unaffable, do not.");
}

TEST_CASE("the special tokens of a text are those that encoding adds", "[io][tokenizer]") {
  const Tokenizer bert = load(word_pieces_document());
  const auto special = bert.special_tokens();
  REQUIRE((special.front == Ids{1} && special.back == Ids{2} && special.count() == 2));
  REQUIRE(special.around(bert.encode("do not")) == bert.encode("do not", true));
  REQUIRE(load(abc_document()).special_tokens().count() == 0);
}

TEST_CASE("a model without a type that limits its words is a WordPiece", "[io][tokenizer]") {
  Json document = word_pieces_document();
  document["model"].erase("type");
  REQUIRE(load(document).encode("unable") == Ids{3, 5});
}

TEST_CASE("a tokenizer is named by the hash of its file", "[io][tokenizer]") {
  const std::string text = abc_document().dump();
  const lcomp::test::TempDir dir;
  std::ofstream(dir / "tokenizer.json") << text;
  const Tokenizer tokenizer = Tokenizer::from_file(dir / "tokenizer.json");
  REQUIRE(tokenizer.hash() == lcomp::io::hash_of(text));
  REQUIRE(tokenizer.encode("abc") == Ids{4});
}

TEST_CASE("text that is not UTF-8 and ids outside the vocabulary are refused", "[io][tokenizer]") {
  const Tokenizer tokenizer = load(abc_document());
  REQUIRE_THROWS_WITH(tokenizer.encode("ab\xFF"),
                      "[Tokenizer::encode] the text must be valid UTF-8; byte 2 (0xFF) is not");
  REQUIRE_THROWS_AS(tokenizer.encode("\xED\xA0\x80"), lcomp::InvalidArgument);  // a surrogate
  REQUIRE_THROWS_WITH(tokenizer.decode({0, 5}),
                      "[Tokenizer::decode] ids must be in the vocabulary of 5 tokens; 5 is not");
  REQUIRE_THROWS_WITH(tokenizer.id_to_token(-1),
                      "[Tokenizer::id_to_token] ids must be in the vocabulary of 5 tokens; -1 is not");
}

TEST_CASE("a missing tokenizer file is named", "[io][tokenizer]") {
  REQUIRE_THROWS_AS(Tokenizer::from_file("/nonexistent/tokenizer.json"), lcomp::CorruptFile);
  REQUIRE_THROWS_WITH(Tokenizer::from_file("/nonexistent/tokenizer.json"),
                      Catch::Contains("/nonexistent/tokenizer.json"));
}
