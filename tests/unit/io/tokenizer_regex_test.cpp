#include <catch2/catch.hpp>

#include "io/tokenizer/pattern.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/regex_dialect.h"
#include "lcomp/core/error.h"

using namespace lcomp::io::tok;

using Strings = std::vector<std::string>;

namespace {

Strings matches(const std::string& expression, const std::string& text) {
  const Regex regex(expression, "test");
  Regex::Search search(regex, text);
  Strings out;
  while (const auto match = search.next())
    out.push_back(text.substr(match->begin, match->end - match->begin));
  return out;
}

Strings split(const Pattern& pattern, SplitBehavior behavior, bool invert, const std::string& text) {
  Strings out;
  Splitter splitter(behavior,
                    [&](Range range) { out.push_back(text.substr(range.begin, range.end - range.begin)); });
  pattern.for_each_span(text, [&](Span span) { splitter.add({span.range, span.match != invert}); });
  splitter.finish();
  return out;
}

}  // namespace

TEST_CASE("each split behavior joins or drops matches as documented", "[io][tokenizer][regex]") {
  const std::string text = "The-final--countdown";
  const Pattern dash = Pattern::literal("-");
  REQUIRE(split(dash, SplitBehavior::kRemoved, false, text) == Strings{"The", "final", "countdown"});
  REQUIRE(split(dash, SplitBehavior::kRemoved, true, text) == Strings{"-", "-", "-"});
  REQUIRE(split(dash, SplitBehavior::kIsolated, false, text) ==
          Strings{"The", "-", "final", "-", "-", "countdown"});
  REQUIRE(split(dash, SplitBehavior::kMergedWithPrevious, false, text) ==
          Strings{"The-", "final-", "-", "countdown"});
  REQUIRE(split(dash, SplitBehavior::kMergedWithNext, false, text) ==
          Strings{"The", "-final", "-", "-countdown"});
  REQUIRE(split(dash, SplitBehavior::kContiguous, false, text) ==
          Strings{"The", "-", "final", "--", "countdown"});
  REQUIRE(split(dash, SplitBehavior::kIsolated, false, "") == Strings{});
}

TEST_CASE("an empty pattern splits between all code points", "[io][tokenizer][regex]") {
  REQUIRE(split(Pattern::literal(""), SplitBehavior::kIsolated, false, "a\u4e2db") ==
          Strings{"a", "\u4e2d", "b"});
}

TEST_CASE("an empty match directly behind a match does not count", "[io][tokenizer][regex]") {
  REQUIRE(matches("a*", "baac") == Strings{"", "aa", ""});
}

TEST_CASE("the look-around sees the text before the place where the search goes on",
          "[io][tokenizer][regex]") {
  REQUIRE(matches("(?<=a)b|a", "ab") == Strings{"a", "b"});
}

TEST_CASE("case-insensitive contractions include the long s", "[io][tokenizer][regex]") {
  REQUIRE(matches("(?i:'s)", "it's IT'S it'\u017f") == Strings{"'s", "'S", "'\u017f"});
}

TEST_CASE("what Oniguruma and PCRE2 read differently is rewritten", "[io][tokenizer][regex]") {
  REQUIRE(to_pcre2_dialect(R"([^\s\p{L}\p{N}]+|\S)", "test") == R"([^\p{wspace}\p{L}\p{N}]+|\P{wspace})");
  REQUIRE(to_pcre2_dialect(R"(\h\u4e00(?m:.)(?i-m:a)a{2}a{2,3}?\[[\[\]])", "test") ==
          R"([0-9a-fA-F]\x{4e00}(?s:.)(?i-s:a)a{2}a{2,3}?\[[\[\]])");
  REQUIRE(to_pcre2_dialect("a{x}|{|{,|(?=a)", "test") == "a{x}|{|{,|(?=a)");
  REQUIRE(matches(R"(\w+)", "a\u0301_1-b\u203f") == Strings{"a\u0301_1", "b\u203f"});
  REQUIRE(matches(R"(\W)", "a\u0301-") == Strings{"-"});
  REQUIRE(matches(R"(\H)", "afg") == Strings{"g"});
  REQUIRE(matches(R"([\h]+)", "xafgx") == Strings{"af"});
  REQUIRE(matches(R"(\ba\u0301\b)", "a\u0301 ba\u0301") == Strings{"a\u0301"});
  REQUIRE(matches(R"(\Ba)", "a ba") == Strings{"a"});
  REQUIRE(matches("^b$", "a\nb\nc") == Strings{"b"});
  REQUIRE(matches(".", "\r\n") == Strings{"\r"});
}

TEST_CASE("constructs that cannot be rewritten are named", "[io][tokenizer][regex]") {
  const std::pair<std::string, std::string> cases[] = {{R"([\W])", R"("\\W")"},
                                                       {R"([\H])", R"("\\H")"},
                                                       {R"([\b])", R"("\\b")"},
                                                       {"[a[bc]]", "[ inside a class"},
                                                       {"[[:alpha:]]", "[ inside a class"},
                                                       {"[a&&b]", "&&"},
                                                       {"a{1,3}+", "{1,3}+"},
                                                       {"a{3}?", "{3}?"},
                                                       {"a{,3}", "{,3}"},
                                                       {R"(\Qa\E)", R"("\\Q")"},
                                                       {R"(\u12)", R"("\\u12")"},
                                                       {"[]", "[]"},
                                                       {"[^]a]", "[]"},
                                                       {R"(\G)", R"("\\G")"}};
  for (const auto& [expression, construct] : cases) {
    INFO(expression);
    REQUIRE_THROWS_AS(Regex(expression, "x.json: /pattern"), lcomp::Unsupported);
    REQUIRE_THROWS_WITH(
        Regex(expression, "x.json: /pattern"),
        Catch::Contains("[x.json: /pattern] the expression must be made of what PCRE2 and Oniguruma "
                        "share; ") &&
            Catch::Contains(construct));
  }
}

TEST_CASE("an expression that does not compile is named with the reason", "[io][tokenizer][regex]") {
  REQUIRE_THROWS_AS(Regex("a(", "x.json: /pattern"), lcomp::CorruptFile);
  REQUIRE_THROWS_WITH(Regex("a(", "x.json: /pattern"),
                      "[x.json: /pattern] the regular expression must compile; \"a(\" fails: missing closing "
                      "parenthesis");
}

TEST_CASE("matching beyond the small stack of compiled code goes on in the interpreter",
          "[io][tokenizer][regex]") {
  const std::string text(200000, 'a');
  REQUIRE(matches("(?:(a)|(b))+", text) == Strings{text});
}

TEST_CASE("an expression that backtracks without end is stopped and named", "[io][tokenizer][regex]") {
  const std::string text = std::string(40, 'a') + "d";
  REQUIRE_THROWS_AS(matches("(a|aa)+[bc]", text), lcomp::Unsupported);
  REQUIRE_THROWS_WITH(
      matches("(a|aa)+[bc]", text),
      "[test] the regular expression must match within PCRE2's limits; \"(a|aa)+[bc]\" fails at byte "
      "0: match limit exceeded");
}
