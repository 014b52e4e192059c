#include "lcomp/io/segmentations.h"

#include <catch2/catch.hpp>
#include <fstream>

#include "support/error_text.h"
#include "support/test_data.h"

using lcomp::io::parse_segmentations;
using lcomp::test::error_text;

TEST_CASE("segmentations are read as MorphTE stores them", "[io][segmentations]") {
  const std::string text = R"({"mor_set": ["walk", "ing"], "word2mor": {"walking": ["walk", "ing"]}})";
  const auto read = parse_segmentations(text, "test");
  CHECK(read.morphemes == std::vector<std::string>{"walk", "ing"});
  CHECK(read.words.at("walking") == std::vector<std::string>{"walk", "ing"});
  const lcomp::test::TempDir dir;
  std::ofstream(dir / "words.json") << text;
  CHECK(lcomp::io::read_segmentations(dir / "words.json").words == read.words);
}

TEST_CASE("other segmentations are refused with their place", "[io][segmentations]") {
  const auto text_of = [](const std::string& text) {
    return error_text([&] { parse_segmentations(text, "test"); });
  };
  CHECK_THAT(text_of("[]"), Catch::Contains("[test]"));
  CHECK_THAT(text_of(R"({"mor_set": []})"), Catch::Contains("word2mor"));
  CHECK_THAT(text_of(R"({"mor_set": ["a"], "word2mor": {"b": "a"}})"),
             Catch::Contains("[test: /word2mor/b]"));
  CHECK_THAT(text_of(R"({"mor_set": ["a"], "word2mor": {"b": []}})"),
             Catch::Contains("[test: /word2mor/b] must have at least one morpheme; it has none"));
  CHECK_THAT(text_of(R"({"mor_set": ["a"], "word2mor": {"b": ["a", "c"]}})"),
             Catch::Contains("must have morphemes of mor_set; it has \"c\""));
}
