#include <catch2/catch.hpp>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "io/tokenizer/components.h"
#include "support/test_data.h"

using namespace lcomp::io::tok;
using lcomp::io::Encoding;
using lcomp::io::Json;
using lcomp::io::JsonView;

namespace {

const std::string kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
const std::string kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
const std::string kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

Json split_at(const Json& pattern, const std::string& behavior, bool invert) {
  return {{"type", "Split"}, {"pattern", pattern}, {"behavior", behavior}, {"invert", invert}};
}

Json byte_level(bool add_prefix_space, bool use_regex) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"use_regex", use_regex}};
}

Json metaspace(const std::string& scheme, bool split) {
  return {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", scheme}, {"split", split}};
}

Json replace(const Json& pattern, const std::string& content) {
  return {{"type", "Replace"}, {"pattern", pattern}, {"content", content}};
}

Json strip(bool left, bool right) {
  return {{"type", "Strip"}, {"strip_left", left}, {"strip_right", right}};
}

Json strip_decoder(const std::string& content, int start, int stop) {
  return {{"type", "Strip"}, {"content", content}, {"start", start}, {"stop", stop}};
}

Json bert_normalizer(bool clean, bool lowercase, const Json& strip_accents) {
  return {{"type", "BertNormalizer"},
          {"clean_text", clean},
          {"handle_chinese_chars", clean},
          {"strip_accents", strip_accents},
          {"lowercase", lowercase}};
}

Json wordpiece_decoder(bool cleanup) {
  return {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", cleanup}};
}

/// The components behind the names of the recorded cases.
using Components = std::map<std::string, Json>;

Components normalizers() {
  return {{"NFC", {{"type", "NFC"}}},
          {"NFD", {{"type", "NFD"}}},
          {"NFKC", {{"type", "NFKC"}}},
          {"NFKD", {{"type", "NFKD"}}},
          {"Lowercase", {{"type", "Lowercase"}}},
          {"StripAccents", {{"type", "StripAccents"}}},
          {"NFD+StripAccents",
           {{"type", "Sequence"}, {"normalizers", {{{"type", "NFD"}}, {{"type", "StripAccents"}}}}}},
          {"Strip", strip(true, true)},
          {"StripLeft", strip(true, false)},
          {"Replace-string", replace({{"String", "a"}}, "bb")},
          {"Replace-regex", replace({{"Regex", "\\s+"}}, "_")},
          {"Prepend", {{"type", "Prepend"}, {"prepend", "\u2581"}}},
          {"BertNormalizer-default", bert_normalizer(true, true, nullptr)},
          {"BertNormalizer-cased", bert_normalizer(true, false, nullptr)},
          {"BertNormalizer-lower-keepaccents", bert_normalizer(true, true, false)},
          {"BertNormalizer-noclean-nochinese", bert_normalizer(false, false, nullptr)}};
}

Components pre_tokenizers() {
  Components all = {{"ByteLevel", byte_level(false, true)},
                    {"ByteLevel-prefix", byte_level(true, true)},
                    {"ByteLevel-noregex", byte_level(false, false)},
                    {"Digits-individual", {{"type", "Digits"}, {"individual_digits", true}}},
                    {"Digits-runs", {{"type", "Digits"}, {"individual_digits", false}}},
                    {"Whitespace", {{"type", "Whitespace"}}},
                    {"WhitespaceSplit", {{"type", "WhitespaceSplit"}}},
                    {"BertPreTokenizer", {{"type", "BertPreTokenizer"}}},
                    {"Punctuation-isolated", {{"type", "Punctuation"}, {"behavior", "Isolated"}}},
                    {"Punctuation-contiguous", {{"type", "Punctuation"}, {"behavior", "Contiguous"}}},
                    {"Split-GPT2", split_at({{"Regex", kGpt2}}, "Isolated", false)},
                    {"Split-LLAMA3", split_at({{"Regex", kLlama3}}, "Isolated", false)},
                    {"Split-QWEN2", split_at({{"Regex", kQwen2}}, "Isolated", false)}};
  const std::pair<std::string, std::string> behaviors[] = {{"removed", "Removed"},
                                                           {"isolated", "Isolated"},
                                                           {"merged_with_previous", "MergedWithPrevious"},
                                                           {"merged_with_next", "MergedWithNext"},
                                                           {"contiguous", "Contiguous"}};
  for (const auto& [name, behavior] : behaviors) {
    all["Split-" + name] = split_at({{"String", "-"}}, behavior, false);
    all["Split-" + name + "-invert"] = split_at({{"String", "-"}}, behavior, true);
  }
  for (const std::string scheme : {"always", "first", "never"}) {
    all["Metaspace-" + scheme + "-split"] = metaspace(scheme, true);
    all["Metaspace-" + scheme + "-nosplit"] = metaspace(scheme, false);
  }
  return all;
}

Components decoders() {
  return {{"ByteLevel", {{"type", "ByteLevel"}}},
          {"ByteFallback", {{"type", "ByteFallback"}}},
          {"Metaspace-always", metaspace("always", true)},
          {"Metaspace-first", metaspace("first", true)},
          {"Metaspace-never", metaspace("never", true)},
          {"BPEDecoder", {{"type", "BPEDecoder"}, {"suffix", "</w>"}}},
          {"WordPiece-cleanup", wordpiece_decoder(true)},
          {"WordPiece-nocleanup", wordpiece_decoder(false)},
          {"Strip", strip_decoder(" ", 1, 0)},
          {"Strip-2-1", strip_decoder("x", 2, 1)}};
}

std::optional<Json> recorded(const std::string& kind) {
  const auto path = lcomp::test::shared_data("golden/tokenizers/" + kind + "/cases.json");
  if (!path) {
    WARN("skipped: no golden/tokenizers/" << kind << " under LCOMP_TEST_DATA");
    return std::nullopt;
  }
  std::ifstream file(*path);
  return Json::parse(file);
}

/// Runs `check(component, case)` for every recorded case of the components; each of them must have cases.
template <class Component>
void for_each_case(const Json& groups, const Components& components, Component (*build)(const JsonView&),
                   const std::function<void(const Component&, const Json&)>& check) {
  size_t compared = 0;
  for (const Json& group : groups) {
    const auto name = group.at("name").get<std::string>();
    const auto json = components.find(name);
    if (json == components.end()) {
      WARN("skipped: no component here is called " << name);
      continue;
    }
    const Component component = build(JsonView(json->second, name));
    for (const Json& entry : group.at("cases")) {
      INFO(name << ": " << entry.dump(-1, ' ', true));
      check(component, entry);
    }
    ++compared;
  }
  CHECK(compared == components.size());
}

std::vector<std::string> pieces_of(const PreTokenizer& pre_tokenizer, const std::string& text) {
  std::vector<std::string> pieces;
  if (!text.empty()) pre_tokenizer({text, true}, [&](Piece piece) { pieces.emplace_back(piece.text); });
  return pieces;
}

std::string decoded(const Decoder& decoder, const std::vector<std::string>& tokens) {
  std::string text;
  for (const std::string& token : decoder(tokens)) text += token;
  return text;
}

Encoding of_type(std::vector<int64_t> ids, int64_t type_id) {
  std::vector<int64_t> type_ids(ids.size(), type_id);
  return {std::move(ids), std::move(type_ids)};
}

void check_processed(const PostProcessor& processor, std::vector<Encoding> texts, const Json& entry) {
  INFO(entry.dump(-1, ' ', true));
  const auto joined = [&](bool add_special_tokens) {
    Encoding whole;
    for (const Encoding& part : processor(texts, add_special_tokens)) {
      whole.ids.insert(whole.ids.end(), part.ids.begin(), part.ids.end());
      whole.type_ids.insert(whole.type_ids.end(), part.type_ids.begin(), part.type_ids.end());
    }
    return whole;
  };
  CHECK(joined(true).ids == entry.at("ids").get<std::vector<int64_t>>());
  CHECK(joined(true).type_ids == entry.at("type_ids").get<std::vector<int64_t>>());
  if (entry.contains("ids_plain"))
    CHECK(joined(false).ids == entry.at("ids_plain").get<std::vector<int64_t>>());
}

}  // namespace

TEST_CASE("every normalizer reproduces the recorded cases", "[io][tokenizer][golden]") {
  const auto cases = recorded("components");
  if (!cases) return;
  for_each_case<Normalizer>(cases->at("normalizers"), normalizers(), build_normalizer,
                            [](const Normalizer& normalizer, const Json& entry) {
                              NormalizedText piece{entry.at("text").get<std::string>(), true};
                              normalizer(piece);
                              CHECK(piece.text == entry.at("out").get<std::string>());
                            });
}

TEST_CASE("every pre-tokenizer reproduces the recorded cases", "[io][tokenizer][golden]") {
  const auto cases = recorded("components");
  if (!cases) return;
  for_each_case<PreTokenizer>(cases->at("pre_tokenizers"), pre_tokenizers(), build_pre_tokenizer,
                              [](const PreTokenizer& pre_tokenizer, const Json& entry) {
                                CHECK(pieces_of(pre_tokenizer, entry.at("text").get<std::string>()) ==
                                      entry.at("pieces").get<std::vector<std::string>>());
                              });
}

TEST_CASE("every decoder reproduces the recorded cases", "[io][tokenizer][golden]") {
  const auto cases = recorded("components");
  if (!cases) return;
  for_each_case<Decoder>(cases->at("decoders"), decoders(), build_decoder,
                         [](const Decoder& decoder, const Json& entry) {
                           CHECK(decoded(decoder, entry.at("tokens").get<std::vector<std::string>>()) ==
                                 entry.at("out").get<std::string>());
                         });
}

TEST_CASE("every post-processor reproduces the recorded cases", "[io][tokenizer][golden]") {
  const auto cases = recorded("post_processors");
  if (!cases) return;
  // The ids of the bare texts stand between [CLS] and [SEP] in the cases of BertProcessing.
  std::map<std::string, std::vector<int64_t>> ids_of;
  for (const Json& processor : cases->at("processors")) {
    if (processor.at("name") != "bert") continue;
    for (const Json& entry : processor.at("single")) {
      const auto ids = entry.at("ids").get<std::vector<int64_t>>();
      ids_of[entry.at("a").get<std::string>()] = {ids.begin() + 1, ids.end() - 1};
    }
    for (const Json& entry : processor.at("pair")) {
      const auto ids = entry.at("ids").get<std::vector<int64_t>>();
      const auto first = static_cast<std::ptrdiff_t>(ids_of.at(entry.at("a").get<std::string>()).size());
      ids_of[entry.at("b").get<std::string>()] = {ids.begin() + first + 2, ids.end() - 1};
    }
  }
  REQUIRE_FALSE(ids_of.empty());
  for (const Json& group : cases->at("processors")) {
    INFO(group.at("name").get<std::string>());
    const PostProcessor processor =
        build_post_processor(JsonView(group.at("post_processor"), "post_processor"));
    for (const Json& entry : group.at("single")) {
      check_processed(processor, {of_type(ids_of.at(entry.at("a").get<std::string>()), 0)}, entry);
    }
    for (const Json& entry : group.at("pair")) {
      check_processed(processor,
                      {of_type(ids_of.at(entry.at("a").get<std::string>()), 0),
                       of_type(ids_of.at(entry.at("b").get<std::string>()), 1)},
                      entry);
    }
  }
}

TEST_CASE("Strip takes no more from a token than there is", "[io][tokenizer]") {
  const Json json = strip_decoder("x", 2, 2);
  const Decoder decoder = build_decoder(JsonView(json, "strip"));
  REQUIRE(decoder({"xxx", "x", "", "xxaxx"}) == std::vector<std::string>{"", "", "", "a"});
}

TEST_CASE("byte fallback gives text for valid runs and one replacement character per byte otherwise",
          "[io][tokenizer]") {
  const Json json = {{"type", "ByteFallback"}};
  const Decoder decoder = build_decoder(JsonView(json, "fallback"));
  REQUIRE(decoder({"<0xe4>", "<0xB8>", "<0xAD>", "a"}) == std::vector<std::string>{"\u4e2d", "a"});
  REQUIRE(decoder({"<0xE4>", "<0xB8>", "a"}) == std::vector<std::string>{"\uFFFD", "\uFFFD", "a"});
  REQUIRE(decoder({"<0xG0>", "<0x+1>"}) == std::vector<std::string>{"<0xG0>", "<0x+1>"});
}

TEST_CASE("the ByteLevel normalizer writes every byte as its symbol", "[io][tokenizer]") {
  const Json json = {{"type", "ByteLevel"}};
  NormalizedText piece{"a \u00e9", true};
  build_normalizer(JsonView(json, "byte level"))(piece);
  REQUIRE(piece.text == "a\u0120\u00c3\u00a9");
}

TEST_CASE("old Metaspace fields stand for the schemes always and never", "[io][tokenizer]") {
  Json json = {{"type", "Metaspace"}, {"replacement", "_"}, {"add_prefix_space", true}};
  REQUIRE(pieces_of(build_pre_tokenizer(JsonView(json, "old")), "a b") ==
          std::vector<std::string>{"_a", "_b"});
  json["add_prefix_space"] = false;
  REQUIRE(pieces_of(build_pre_tokenizer(JsonView(json, "old")), "a b") ==
          std::vector<std::string>{"a", "_b"});
}

TEST_CASE("replacing text keeps the start of the input only for a single character", "[io][tokenizer]") {
  const auto keeps_start = [](const Json& json, const std::string& text) {
    NormalizedText piece{text, true};
    build_normalizer(JsonView(json, "normalizer"))(piece);
    return piece.at_start;
  };
  REQUIRE(keeps_start(replace({{"String", " "}}, "_"), " a"));
  REQUIRE(keeps_start(replace({{"String", " "}}, ""), "a "));
  REQUIRE_FALSE(keeps_start(replace({{"String", " "}}, ""), " a"));
  REQUIRE_FALSE(keeps_start(replace({{"Regex", " +"}}, "_"), "  a"));
  REQUIRE_FALSE(keeps_start({{"type", "StripAccents"}}, "\u0301a"));
  REQUIRE(keeps_start({{"type", "StripAccents"}}, "a\u0301"));
}
