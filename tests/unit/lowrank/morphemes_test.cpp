#include "lcomp/lowrank/morphemes.h"

#include <ATen/ATen.h>

#include <catch2/catch.hpp>

#include "support/error_text.h"

using namespace lcomp::lowrank;
using lcomp::test::error_text;

namespace {

using Strings = std::vector<std::string>;

std::vector<std::string> row_of(const MorphemeIndex& index, int64_t token) {
  Strings names;
  for (int64_t j = 0; j < index.index.size(1); ++j)
    names.push_back(index.morphemes.at(static_cast<size_t>(index.index[token][j].item<int64_t>())));
  return names;
}

}  // namespace

TEST_CASE("affixes come off the longest first while the stem stays long enough", "[lowrank][morphemes]") {
  const AffixSegmenter english;
  CHECK(english.segment("unhelpfulness") == Strings{"un", "help", "ful", "ness"});
  CHECK(english.segment("Walking") == Strings{"Walk", "ing"});
  CHECK(english.segment("house") == Strings{"house"});
  CHECK(english.segment("bing") == Strings{"bing"});
  CHECK(english.segment("walk2").empty());
  CHECK(english.segment("").empty());
  CHECK(english.segment("\u00e9t\u00e9").empty());
  const AffixSegmenter own({.prefixes = {"a", "ab"}, .suffixes = {"", "z", "yz"}, .shortest_stem = 1});
  CHECK(own.segment("ababcyzz") == Strings{"ab", "ab", "c", "yz", "z"});
  CHECK(own.segment("ab") == Strings{"a", "b"});
}

TEST_CASE("markers become morphemes of their own", "[lowrank][morphemes]") {
  const auto english = std::make_shared<AffixSegmenter>();
  const MarkerSegmenter marked(english);
  CHECK(marked.segment("\u0120walking") == Strings{"\u0120", "walk", "ing"});
  CHECK(marked.segment("walking") == Strings{"walk", "ing"});
  CHECK(marked.segment("\u0120") == Strings{});
  CHECK(marked.segment("\u0120\u0120\u0120") == Strings{"\u0120", "\u0120\u0120"});
  CHECK(marked.segment("\u010A12") == Strings{"\u010A", "12"});
  CHECK(marked.segment("##walks@@") == Strings{"##", "walk", "s", "@@"});
  CHECK(marked.segment("12").empty());
  CHECK(MarkerSegmenter(english, {"_"}).segment("_walks") == Strings{"_", "walk", "s"});
  CHECK_THAT(error_text([] { MarkerSegmenter(nullptr); }),
             Catch::Contains("the inner segmenter must be there"));
}

TEST_CASE("tokens get as many numbers as the order says", "[lowrank][morphemes]") {
  const TableSegmenter table(
      {{"abcd", {"a", "b", "c", "d"}}, {"ab", {"a", "b"}}, {"x", {"x"}}, {"<s>", {"<", "s>"}}});
  const Strings tokens{"abcd", "ab", "x", "<s>", "new"};
  const MorphemeIndex index = morpheme_index(tokens, table, 3, {3});
  REQUIRE(index.index.sizes() == at::IntArrayRef({5, 3}));
  REQUIRE(index.index.scalar_type() == at::kInt);
  CHECK(row_of(index, 0) == Strings{"a", "b", "cd"});
  CHECK(row_of(index, 1) == Strings{"a", "b", "[PAD-2]"});
  CHECK(row_of(index, 2) == Strings{"x", "[PAD-1]", "[PAD-2]"});
  CHECK(row_of(index, 3) == Strings{"<s>", "[PAD-1]", "[PAD-2]"});
  CHECK(row_of(index, 4) == Strings{"new", "[PAD-1]", "[PAD-2]"});
  CHECK(index.morphemes == Strings{"a", "b", "cd", "[PAD-2]", "x", "[PAD-1]", "<s>", "new"});
  CHECK(index.collisions == 0);
  CHECK(row_of(morpheme_index(tokens, table, 1), 0) == Strings{"abcd"});
}

TEST_CASE("tokens of equal morphemes are counted, unknown morphemes share one", "[lowrank][morphemes]") {
  const TableSegmenter table(
      {{"ab", {"a", "b"}}, {"AB", {"a", "b"}}, {"ac", {"a", "c"}}, {"ad", {"a", "d"}}});
  const Strings tokens{"ab", "AB", "ac", "ad"};
  CHECK(morpheme_index(tokens, table, 2).collisions == 1);
  const MorphemeIndex known = morpheme_index(tokens, table, 2, {}, {"a", "b"});
  CHECK(known.collisions == 2);
  CHECK(row_of(known, 3) == Strings{"a", "[UNK]"});
}

TEST_CASE("morphemes: what does not fit is refused", "[lowrank][morphemes]") {
  const TableSegmenter table({});
  CHECK_THAT(error_text([&] { morpheme_index({}, table, 3); }), Catch::Contains("there must be tokens"));
  CHECK_THAT(error_text([&] { morpheme_index({"a"}, table, 0); }),
             Catch::Contains("the order must lie in [1, 16]; it is 0"));
  CHECK_THAT(error_text([&] { morpheme_index({"a"}, table, 3, {1}); }),
             Catch::Contains("special tokens must lie in [0, 1); one is 1"));
}
