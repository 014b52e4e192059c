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

inline Json added_token(int64_t id, const std::string& content) {
  return {{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
          {"rstrip", false}, {"normalized", false}, {"special", true}};
}

inline io::Tokenizer load(const Json& document) {
  return io::Tokenizer::from_json(document.dump(), "toy.json");
}

}  // namespace lcomp::test
