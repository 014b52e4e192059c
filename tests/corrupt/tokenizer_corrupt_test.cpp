#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "support/toy_tokenizer.h"

using lcomp::ErrorKind;
using lcomp::test::abc_document;
using lcomp::test::added_token;
using lcomp::test::Json;
using lcomp::test::word_pieces_document;

namespace {

/// A change that breaks a good document, and the error that it must give.
struct Breakage {
  std::string what;
  std::string pointer;  ///< where `value` is put
  Json value;
  ErrorKind kind;
  std::string error;  ///< behind "[toy.json: "
};

constexpr ErrorKind kCorrupt = ErrorKind::kCorruptFile;
constexpr ErrorKind kUnknown = ErrorKind::kUnsupported;

void check(const Json& document, const Breakage& breakage) {
  INFO(breakage.what);
  try {
    lcomp::test::load(document);
    FAIL_CHECK("nothing was thrown");
  } catch (const lcomp::Error& error) {
    CHECK(error.kind() == breakage.kind);
    CHECK_THAT(error.what(), Catch::StartsWith("[toy.json: " + breakage.error));
  }
}

void check_each(const Json& good, const std::vector<Breakage>& breakages) {
  REQUIRE_NOTHROW(lcomp::test::load(good));
  for (const Breakage& breakage : breakages) {
    Json document = good;
    document[Json::json_pointer(breakage.pointer)] = breakage.value;
    check(document, breakage);
  }
}

Json template_processing() {
  return Json::parse(R"({"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"a": {"id": "a", "ids": [0], "tokens": ["a"]}}})");
}

}  // namespace

TEST_CASE("a broken BPE model is refused with the reason", "[io][tokenizer][corrupt]") {
  check_each(
      abc_document(),
      {{"two tokens with one id",
        "/model/vocab",
        {{"a", 0}, {"b", 0}},
        kCorrupt,
        R"(/model/vocab] tokens must have ids of their own; "a" and "b" both have 0)"},
       {"negative id", "/model/vocab/a", -1, kCorrupt, "/model/vocab/a] must be "},
       {"id of 33 bits", "/model/vocab/a", 4294967296, kCorrupt, "/model/vocab/a] must be "},
       {"id that is not whole", "/model/vocab/a", 0.5, kCorrupt, "/model/vocab/a] must be "},
       {"vocabulary that is a list", "/model/vocab", Json::array(), kCorrupt,
        "/model/vocab] must be an object {token: id, ...}; it is of type array"},
       {"merges that are an object", "/model/merges", Json::object(), kCorrupt,
        "/model/merges] must be an array; it is of type object"},
       {"merge of one part",
        "/model/merges",
        {"ab"},
        kCorrupt,
        R"(/model/merges] merge 0: must be two tokens, ["a", "b"] or "a b" with one space; it is "ab")"},
       {"merge of three parts",
        "/model/merges",
        {"a b", "a b c"},
        kCorrupt,
        R"(/model/merges] merge 1: must be two tokens, ["a", "b"] or "a b" with one space; it is "a b c")"},
       {"merge of three tokens",
        "/model/merges",
        {{"a", "b", "c"}},
        kCorrupt,
        "/model/merges] merge 0: must be two tokens"},
       {"merge of numbers",
        "/model/merges",
        {{1, 2}},
        kCorrupt,
        "/model/merges] merge 0: must be two tokens"},
       {"left side not in the vocabulary", "/model/merges", Json::parse(R"([["x", "b"]])"), kCorrupt,
        R"(/model/merges] merge 0: "x" must be in the vocabulary; it is not)"},
       {"right side not in the vocabulary", "/model/merges", Json::parse(R"([["a", "x"]])"), kCorrupt,
        R"(/model/merges] merge 0: "x" must be in the vocabulary; it is not)"},
       {"joined token not in the vocabulary", "/model/merges", Json::parse(R"([["a", "b"], ["b", "a"]])"),
        kCorrupt, R"(/model/merges] merge 1: "ba" must be in the vocabulary; it is not)"},
       {"right side without the prefix", "/model/continuing_subword_prefix", "##", kCorrupt,
        R"(/model/merges] merge 0: the right side must begin with the continuing_subword_prefix "##"; it is "b")"},
       {"unknown token not in the vocabulary", "/model/unk_token", "<unk>", kCorrupt,
        R"(/model/unk_token] must be in the vocabulary; "<unk>" is not)"},
       {"dropout", "/model/dropout", 0.1, kUnknown,
        "/model/dropout] dropout must be null or 0 (it makes ids random); it is 0.1"},
       {"flag that is a string", "/model/fuse_unk", "yes", kCorrupt, "/model/fuse_unk] must be "}});
}

TEST_CASE("a broken WordPiece tokenizer is refused with the reason", "[io][tokenizer][corrupt]") {
  check_each(
      word_pieces_document(),
      {{"unknown token not in the vocabulary", "/model/unk_token", "<unk>", kCorrupt,
        R"(/model/unk_token] must be in the vocabulary; "<unk>" is not)"},
       {"unknown token of no text", "/model/unk_token", 3, kCorrupt, "/model/unk_token] must be "},
       {"negative length", "/model/max_input_chars_per_word", -1, kCorrupt,
        "/model/max_input_chars_per_word] must be "},
       {"prefix of no text", "/model/continuing_subword_prefix", nullptr, kCorrupt,
        "/model/continuing_subword_prefix] must be a string; it is null"},
       {"flag that is a number", "/normalizer/lowercase", 1, kCorrupt, "/normalizer/lowercase] must be "},
       {"decoder without cleanup",
        "/decoder",
        {{"type", "WordPiece"}, {"prefix", "##"}},
        kCorrupt,
        R"(/decoder] must have the key "cleanup"; it is missing)"}});
}

TEST_CASE("a tokenizer without its parts is refused", "[io][tokenizer][corrupt]") {
  Json document = abc_document();
  document["model"].erase("merges");
  check(document, {"no merges", "", {}, kCorrupt, "/model] must have the key \"merges\"; it is missing"});
  document["model"].erase("type");
  check(document,
        {"no type",
         "",
         {},
         kCorrupt,
         "/model] must have a type, or merges (BPE) or max_input_chars_per_word (WordPiece); it has "
         "none of them"});
  document.erase("model");
  REQUIRE_THROWS_WITH(lcomp::test::load(document), "[toy.json] must have the key \"model\"; it is missing");
}

TEST_CASE("unknown components are named together with the known ones", "[io][tokenizer][corrupt]") {
  check_each(abc_document(),
             {{"version", "/version", "2.0", kUnknown, R"(/version] the version must be "1.0"; it is "2.0")"},
              {"model", "/model/type", "Unigram", kUnknown,
               R"(/model] the type of a model must be one of BPE, WordPiece; it is "Unigram")"},
              {"normalizer",
               "/normalizer",
               {{"type", "Precompiled"}},
               kUnknown,
               "/normalizer] the type of a normalizer must be one of BertNormalizer, ByteLevel, Lowercase, "
               "NFC, NFD, NFKC, NFKD, "
               "Prepend, "
               "Replace, Sequence, Strip, StripAccents; it is \"Precompiled\""},
              {"nested pre-tokenizer",
               "/pre_tokenizer",
               {{"type", "Sequence"},
                {"pretokenizers", {{{"type", "Whitespace"}}, {{"type", "CharDelimiterSplit"}}}}},
               kUnknown,
               "/pre_tokenizer/pretokenizers/1] the type of a pre-tokenizer must be one of BertPreTokenizer, "
               "ByteLevel, Digits, "
               "Metaspace, "
               "Punctuation, Sequence, Split, Whitespace, WhitespaceSplit; it is \"CharDelimiterSplit\""},
              {"post-processor",
               "/post_processor",
               {{"type", "X"}},
               kUnknown,
               "/post_processor] the type of a post-processor must be one of BertProcessing, ByteLevel, "
               "RobertaProcessing, "
               "Sequence, TemplateProcessing; it is \"X\""},
              {"decoder",
               "/decoder",
               {{"type", "CTC"}},
               kUnknown,
               "/decoder] the type of a decoder must be one of BPEDecoder, ByteFallback, ByteLevel, Fuse, "
               "Metaspace, Replace, "
               "Sequence, Strip, WordPiece; it is \"CTC\""},
              {"component without type", "/decoder", Json::object(), kCorrupt,
               "/decoder] must have the key \"type\"; it is missing"}});
}

TEST_CASE("broken patterns and component fields are refused", "[io][tokenizer][corrupt]") {
  Json good = abc_document();
  good["normalizer"] = {{"type", "Replace"}, {"pattern", {{"Regex", "x+"}}}, {"content", "a"}};
  good["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Split"}, {"pattern", {{"String", "-"}}}, {"behavior", "Isolated"}, {"invert", false}},
        {{"type", "Metaspace"}, {"replacement", "_"}, {"prepend_scheme", "never"}}}}};
  good["decoder"] = {{"type", "Strip"}, {"content", "_"}, {"start", 1}, {"stop", 0}};
  const std::string metaspace = "/pre_tokenizer/pretokenizers/1";
  check_each(
      good,
      {{"pattern without a kind",
        "/normalizer/pattern",
        {{"Glob", "*"}},
        kCorrupt,
        R"(/normalizer/pattern] must be {"Regex": ...} or {"String": ...}; it has neither key)"},
       {"expression that does not compile", "/normalizer/pattern/Regex", "a(", kCorrupt,
        "/normalizer/pattern/Regex] the regular expression must compile; "},
       {"expression of another dialect", "/normalizer/pattern/Regex", "[a&&b]", kUnknown,
        "/normalizer/pattern/Regex] the expression must be made of what PCRE2 and Oniguruma share; "},
       {"unknown behavior", "/pre_tokenizer/pretokenizers/0/behavior", "Dropped", kCorrupt,
        "/pre_tokenizer/pretokenizers/0/behavior] must be one of Removed, Isolated, MergedWithPrevious, "
        "MergedWithNext, Contiguous; it is \"Dropped\""},
       {"replacement of two characters", metaspace + "/replacement", "__", kCorrupt,
        metaspace + "/replacement] must be one character; it is \"__\""},
       {"empty replacement", metaspace + "/replacement", "", kCorrupt,
        metaspace + "/replacement] must be one character; it is \"\""},
       {"unknown scheme", metaspace + "/prepend_scheme", "last", kCorrupt,
        metaspace + "/prepend_scheme] must be one of always, first, never; it is \"last\""},
       {"schemes at odds", metaspace, Json::parse(R"({"type": "Metaspace", "replacement": "_",
          "prepend_scheme": "first", "add_prefix_space": false})"),
        kCorrupt, metaspace + "] add_prefix_space false must go with prepend_scheme never; it is \"first\""},
       {"stripped string", "/decoder/content", "ab", kCorrupt,
        "/decoder/content] must be one character; it is \"ab\""},
       {"negative count", "/decoder/start", -1, kCorrupt, "/decoder/start] must be "}});
}

TEST_CASE("broken post-processors are refused", "[io][tokenizer][corrupt]") {
  Json good = abc_document();
  good["post_processor"] = template_processing();
  const std::string at = "/post_processor";
  check_each(good, {{"unknown special token", at + "/single/0/SpecialToken/id", "<s>", kCorrupt,
                     at + "/single/0/SpecialToken/id] must be in special_tokens; \"<s>\" is not"},
                    {"unknown sequence", at + "/pair/1/Sequence/id", "C", kCorrupt,
                     at + "/pair/1/Sequence/id] must be \"A\" or \"B\"; it is \"C\""},
                    {"piece of no kind", at + "/single/0", Json::object(), kCorrupt,
                     at + "/single/0] must have the key Sequence or SpecialToken; it has neither"},
                    {"second text in single", at + "/single/1/Sequence/id", "B", kCorrupt,
                     at + "/single] must use the sequence A only; it uses B"},
                    {"missing text in pair", at + "/pair/1/Sequence/id", "A", kCorrupt,
                     at + "/pair] must use the sequences A and B; one is missing"},
                    {"ids without texts", at + "/special_tokens/a/tokens", Json::array(), kCorrupt,
                     at + "/special_tokens/a] ids and tokens must be of one length; there are 1 and 0"},
                    {"id outside the vocabulary", at + "/special_tokens/a/ids/0", 77, kCorrupt,
                     at + "] special tokens must be in the vocabulary; id 77 is not"},
                    {"separator of one element",
                     at,
                     {{"type", "BertProcessing"}, {"sep", {"a"}}, {"cls", {"a", 0}}},
                     kCorrupt,
                     at + "/sep] must be [token, id]; it has 1 elements"},
                    {"two that add tokens",
                     at,
                     {{"type", "Sequence"}, {"processors", {template_processing(), template_processing()}}},
                     kUnknown,
                     at + "] a sequence must have at most one post-processor that adds tokens; it has 2"}});
}

TEST_CASE("added tokens at odds with the vocabulary are refused", "[io][tokenizer][corrupt]") {
  Json good = abc_document();
  good["added_tokens"] = {added_token(0, "a"), added_token(5, "<s>")};
  check_each(good,
             {{"id that is not the vocabulary's", "/added_tokens/0/id", 1, kCorrupt,
               R"(/added_tokens/0] the id of "a" must be 0 (as in the vocabulary); it is 1)"},
              {"id that is not the next", "/added_tokens/1/id", 9, kCorrupt,
               R"(/added_tokens/1] the id of "<s>" must be 5 (the next one behind the vocabulary); it is 9)"},
              {"id that a gap in the vocabulary makes two of",
               "/model/vocab",
               {{"a", 0}, {"b", 1}, {"c", 2}, {"ab", 3}, {"abc", 5}},
               kCorrupt,
               R"(/added_tokens/1] tokens must have ids of their own; "<s>" and "abc" both have 5)"},
              {"token without content",
               "/added_tokens/1",
               {{"id", 5}},
               kCorrupt,
               "/added_tokens/1] must have the key \"content\"; it is missing"}});
}

TEST_CASE("what is not one JSON document is refused", "[io][tokenizer][corrupt]") {
  for (const std::string text :
       {"", "{", "[]", "null", "{\"version\": \"1.0\"} x", "{\"model\": {}, \"model\": {}}"}) {
    INFO(text);
    REQUIRE_THROWS_AS(lcomp::io::Tokenizer::from_json(text, "toy.json"), lcomp::CorruptFile);
    REQUIRE_THROWS_WITH(lcomp::io::Tokenizer::from_json(text, "toy.json"), Catch::StartsWith("[toy.json"));
  }
}

TEST_CASE("a tokenizer cut off anywhere is refused", "[io][tokenizer][corrupt]") {
  const std::string text = abc_document().dump();
  for (size_t length = 0; length < text.size(); ++length) {
    REQUIRE_THROWS_AS(lcomp::io::Tokenizer::from_json(text.substr(0, length), "toy.json"),
                      lcomp::CorruptFile);
  }
}
