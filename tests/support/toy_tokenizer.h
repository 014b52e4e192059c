#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "lcomp/io/tokenizer.h"

/// Small tokenizer.json documents made by hand.
namespace lcomp::test {

using Json = nlohmann::json;

/// A BPE model whose ids are the positions in `tokens`.
inline Json bpe_model(const std::vector<std::string>& tokens,
                      const std::vector<std::pair<std::string, std::string>>& merges) {
  Json model = {{"type", "BPE"}, {"vocab", Json::object()}, {"merges", Json::array()}};
  for (size_t id = 0; id < tokens.size(); ++id) model["vocab"][tokens[id]] = id;
  for (const auto& [left, right] : merges) model["merges"].push_back({left, right});
  return model;
}

/// A document with nothing but a model.
inline Json tokenizer_document(Json model) {
  return {{"version", "1.0"},          {"truncation", nullptr},         {"padding", nullptr},
          {"added_tokens", {}},        {"normalizer", nullptr},         {"pre_tokenizer", nullptr},
          {"post_processor", nullptr}, {"decoder", {{"type", "Fuse"}}}, {"model", std::move(model)}};
}

/// a, b, c, ab, abc with the merges that lead to the last two; ids 0 to 4.
inline Json abc_document() {
  return tokenizer_document(bpe_model({"a", "b", "c", "ab", "abc"}, {{"a", "b"}, {"ab", "c"}}));
}

/// What BERT's tokenizers are made of, with the words "un", "##aff", "##able", "affable", "do", "not" and
/// marks.
inline Json word_pieces_document() {
  Json model = {{"type", "WordPiece"},
                {"unk_token", "[UNK]"},
                {"continuing_subword_prefix", "##"},
                {"max_input_chars_per_word", 12},
                {"vocab", Json::object()}};
  for (const char* token :
       {"[UNK]", "[CLS]", "[SEP]", "un", "##aff", "##able", "affable", "do", "not", ",", "."})
    model["vocab"][token] = model["vocab"].size();
  Json document = tokenizer_document(model);
  document["normalizer"] = {{"type", "BertNormalizer"},
                            {"clean_text", true},
                            {"handle_chinese_chars", true},
                            {"strip_accents", nullptr},
                            {"lowercase", true}};
  document["pre_tokenizer"] = {{"type", "BertPreTokenizer"}};
  document["post_processor"] = {{"type", "BertProcessing"}, {"sep", {"[SEP]", 2}}, {"cls", {"[CLS]", 1}}};
  document["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  return document;
}

inline Json added_token(int64_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

inline io::Tokenizer load(const Json& document) {
  return io::Tokenizer::from_json(document.dump(), "toy.json");
}

}  // namespace lcomp::test
