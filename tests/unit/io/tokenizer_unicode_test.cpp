#include <catch2/catch.hpp>

#include "io/tokenizer/byte_alphabet.h"
#include "io/tokenizer/regex.h"
#include "io/tokenizer/unicode.h"
#include "lcomp/core/error.h"

using namespace lcomp::io::tok;

namespace {

std::string utf8(char32_t code_point) {
  std::string text;
  append_utf8(text, code_point);
  return text;
}

/// Calls `visit` with every Unicode scalar value.
template <class Visit>
void for_all_code_points(Visit visit) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c < 0xD800 || c > 0xDFFF) visit(c);
  }
}

/// All scalar values that `expression` matches, found in one text of them all.
std::vector<bool> matched_by(const std::string& expression) {
  std::string everything;
  for_all_code_points([&](char32_t c) { append_utf8(everything, c); });
  std::vector<bool> matched(0x110000);
  const Regex regex(expression, "test");
  Regex::Search search(regex, everything);
  while (const auto match = search.next()) {
    for (size_t position = match->begin; position < match->end;)
      matched[next_code_point(everything, position)] = true;
  }
  return matched;
}

/// Where `property` and the expression disagree, among the code points that both libraries' versions of
/// Unicode know.
std::vector<uint32_t> disagreements(bool (*property)(char32_t), const std::string& expression) {
  const std::vector<bool> expected = matched_by(expression);
  const std::vector<bool> assigned = matched_by("\\P{Cn}");
  std::vector<uint32_t> out;
  for_all_code_points([&](char32_t c) {
    if (assigned[c] && property(c) != expected[c]) out.push_back(c);
  });
  return out;
}

}  // namespace

TEST_CASE("control characters and nonspacing marks are those of their categories",
          "[io][tokenizer][unicode]") {
  REQUIRE(disagreements(is_control, "[\\p{Cc}\\p{Cf}\\p{Co}]") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_nonspacing_mark, "\\p{Mn}") == std::vector<uint32_t>{});
}

TEST_CASE("white space in expressions is White_Space, over all code points", "[io][tokenizer][unicode]") {
  const std::vector<bool> matched = matched_by("\\s");
  REQUIRE(std::count(matched.begin(), matched.end(), true) == 25);
  REQUIRE(disagreements(is_white_space, "\\s") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_white_space, "[^\\S]") == std::vector<uint32_t>{});
  REQUIRE_FALSE(is_white_space(0x180E));  // PCRE2's own \s has it
}

TEST_CASE("the properties of code points agree with the expressions, over all code points",
          "[io][tokenizer][unicode]") {
  REQUIRE(disagreements(is_number, "\\p{N}") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_mark, "\\p{M}") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_punctuation, "[\\p{P}$+<=>^`|~]") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_word, "\\w") == std::vector<uint32_t>{});
  REQUIRE(disagreements(is_word, "[\\w]") == std::vector<uint32_t>{});
}

TEST_CASE("code points survive UTF-8 in both directions", "[io][tokenizer][unicode]") {
  bool forward = true;
  bool backward = true;
  for_all_code_points([&](char32_t c) {
    const std::string text = utf8(c);
    size_t begin = 0;
    size_t end = text.size();
    forward = forward && next_code_point(text, begin) == c && begin == text.size();
    backward = backward && previous_code_point(text, end) == c && end == 0;
  });
  REQUIRE(forward);
  REQUIRE(backward);
}

TEST_CASE("ill-formed parts become one replacement character each", "[io][tokenizer][unicode]") {
  const std::string r = "\uFFFD";
  REQUIRE(lossy_utf8("") == "");
  REQUIRE(lossy_utf8("a\u00e9\u4e2d\U0001F600") == "a\u00e9\u4e2d\U0001F600");
  REQUIRE(lossy_utf8("\x80") == r);
  REQUIRE(lossy_utf8("\xC0\xAF") == r + r);          // overlong: no byte begins a valid sequence
  REQUIRE(lossy_utf8("\xE4\xB8") == r);              // cut at the end
  REQUIRE(lossy_utf8("\xE4\xB8x") == r + "x");       // cut before another character
  REQUIRE(lossy_utf8("\xED\xA0\x80") == r + r + r);  // a surrogate
  REQUIRE(lossy_utf8("\xF0\x9F\x98x") == r + "x");
  REQUIRE(lossy_utf8("\xF4\x90\x80\x80") == r + r + r + r);  // above U+10FFFF
  // Unicode 15, table 3-11.
  REQUIRE(lossy_utf8("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41") == r + r + r + r + "A");
}

TEST_CASE("the byte alphabet is a bijection between 256 bytes and 256 symbols", "[io][tokenizer][unicode]") {
  int symbols = 0;
  for_all_code_points([&](char32_t c) {
    const auto byte = byte_of_symbol(c);
    if (!byte) return;
    ++symbols;
    CHECK(symbol_of_byte(*byte) == utf8(c));
  });
  REQUIRE(symbols == 256);
  REQUIRE(symbol_of_byte(' ') == "\u0120");
  REQUIRE(symbol_of_byte('\n') == "\u010A");
  REQUIRE(symbol_of_byte(0x7F) == "\u0121");
  REQUIRE(symbol_of_byte(0x80) == "\u0122");
  REQUIRE(symbol_of_byte(0xAD) == "\u0143");
  REQUIRE(symbol_of_byte('A') == "A");
}

TEST_CASE("normal forms compose, decompose and replace compatibility characters",
          "[io][tokenizer][unicode]") {
  REQUIRE(to_normal_form("e\u0301\uFB01", NormalForm::kNfc) == "\u00e9\uFB01");
  REQUIRE(to_normal_form("\u00e9\uFB01", NormalForm::kNfd) == "e\u0301\uFB01");
  REQUIRE(to_normal_form("e\u0301\uFB01", NormalForm::kNfkc) ==
          "\u00e9"
          "fi");
  REQUIRE(to_normal_form("\u00e9\uFB01", NormalForm::kNfkd) ==
          "e\u0301"
          "fi");
  REQUIRE(to_normal_form(std::string("\0\u00e9", 3), NormalForm::kNfc) == std::string("\0\u00e9", 3));
  REQUIRE_THROWS_AS(to_normal_form("\xFF", NormalForm::kNfc), lcomp::InternalError);
  REQUIRE_THROWS_WITH(to_normal_form("\xFF", NormalForm::kNfc),
                      Catch::Contains("[to_normal_form] valid UTF-8 must normalize; utf8proc says: "));
}

TEST_CASE("lower case takes each code point on its own", "[io][tokenizer][unicode]") {
  REQUIRE(to_lower("ABC\u00c9\u03a3") == "abc\u00e9\u03c3");
  REQUIRE(to_lower("\u0130") == "i\u0307");
  REQUIRE(to_lower("\u1e9e") == "\u00df");
}
