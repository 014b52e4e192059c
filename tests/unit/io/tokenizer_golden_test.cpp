#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "lcomp/core/error.h"
#include "lcomp/io/tokenizer.h"
#include "support/test_data.h"

namespace {

using lcomp::io::Encoding;
using lcomp::io::Tokenizer;
using nlohmann::json;

/// The kinds whose vectors must be compared, never skipped.
const std::set<std::string> kRequiredKinds = {
    "added_tokens",         "bpe_bytelevel_gpt2", "bpe_bytelevel_prefix_space",
    "bpe_digits_smollm",    "bpe_gemma",          "bpe_llama2_legacy",
    "bpe_llama2_metaspace", "bpe_llama3",         "bpe_qwen2",
    "bpe_no_unk_fallback",  "bpe_suffix",         "smollm2_real",
    "wordpiece_bert_real",  "wordpiece_cased",    "wordpiece_uncased"};

json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  REQUIRE(file.good());
  return json::parse(file);
}

/// The tokenizer that the vectors of a folder belong to: its own, or the released one that it names.
std::optional<std::filesystem::path> tokenizer_of(const std::filesystem::path& folder) {
  if (folder.filename() == "smollm2_real") {
    return lcomp::test::shared_data("models/smollm2-135m-instruct/tokenizer.json");
  }
  if (std::filesystem::exists(folder / "tokenizer.json")) return folder / "tokenizer.json";
  return std::nullopt;
}

std::optional<Tokenizer> load_unless_unsupported(const std::filesystem::path& path) {
  try {
    return Tokenizer::from_file(path);
  } catch (const lcomp::Unsupported& error) {
    WARN("skipped: " << error.what());
    return std::nullopt;
  }
}

void compare_texts(const Tokenizer& tokenizer, const json& cases) {
  for (const json& entry : cases) {
    const auto text = entry.at("text").get<std::string>();
    const auto ids = entry.at("ids").get<std::vector<int64_t>>();
    const auto ids_special = entry.at("ids_special").get<std::vector<int64_t>>();
    INFO("text: " << entry.at("text").dump(-1, ' ', true));
    CHECK(tokenizer.encode(text) == ids);
    CHECK(tokenizer.encode(text, true) == ids_special);
    CHECK(tokenizer.decode(ids) == entry.at("decoded").get<std::string>());
    CHECK(tokenizer.decode(ids_special, true) == entry.at("decoded_skip_special").get<std::string>());
  }
}

void compare_pairs(const Tokenizer& tokenizer, const json& pairs) {
  for (const json& entry : pairs) {
    INFO("pair: " << entry.dump(-1, ' ', true));
    const auto first = entry.at("a").get<std::string>();
    const auto second = entry.at("b").get<std::string>();
    const Encoding encoding = tokenizer.encode_pair(first, second, true);
    CHECK(encoding.ids == entry.at("ids").get<std::vector<int64_t>>());
    CHECK(encoding.type_ids == entry.at("type_ids").get<std::vector<int64_t>>());
  }
}

}  // namespace

TEST_CASE("every recorded vector of a supported tokenizer is reproduced exactly", "[io][tokenizer][golden]") {
  const auto root = lcomp::test::shared_data("golden/tokenizers");
  if (!root) {
    WARN("skipped: no golden/tokenizers under LCOMP_TEST_DATA");
    return;
  }
  std::set<std::string> compared;
  for (const auto& folder : std::filesystem::directory_iterator(*root)) {
    const std::string kind = folder.path().filename().string();
    const auto path = tokenizer_of(folder.path());
    if (!folder.is_directory() || !path) continue;
    const json cases = read_json(folder.path() / "cases.json");
    if (!cases.contains("cases")) continue;
    INFO("kind: " << kind);
    const auto tokenizer = load_unless_unsupported(*path);
    if (!tokenizer) continue;
    compare_texts(*tokenizer, cases.at("cases"));
    compare_pairs(*tokenizer, cases.value("pairs", json::array()));
    compared.insert(kind);
  }
  for (const std::string& kind : kRequiredKinds) {
    INFO("required kind: " << kind);
    CHECK(compared.contains(kind));
  }
}
