#include "io/name_pattern.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"

using namespace lcomp;
using io::NamePattern;

TEST_CASE("a pattern matches a whole name, or a part at its beginning", "[io][name_pattern]") {
  const NamePattern pattern("model[.]layers[.]\\d+");
  CHECK(pattern.matches("model.layers.12"));
  CHECK_FALSE(pattern.matches("model.layers.12.mlp"));
  CHECK_FALSE(pattern.matches("a.model.layers.12"));
  CHECK(pattern.matches_start_of("model.layers.12.mlp"));
  CHECK_FALSE(pattern.matches_start_of("a.model.layers.12"));
  CHECK(NamePattern("(a|ab)").matches("ab"));  // the first alternative that matches does not decide
}

TEST_CASE("a pattern of a stranger costs little, or is refused", "[io][name_pattern]") {
  const std::string name(60, 'a');
  for (const char* expression : {"(a+)+b", "(a|a)*b", "(.*.*.*.*.*.*.*)*x", "(a*)*(a*)*(a*)*b"}) {
    CAPTURE(expression);
    try {
      CHECK_FALSE(NamePattern(expression).matches(name));
    } catch (const Unsupported& error) {
      CHECK_THAT(error.what(), Catch::Contains("must match without backtracking so far; on \"aaa"));
    }
  }
  CHECK_THROWS_WITH(NamePattern(std::string(1'000'000, '(')),
                    Catch::Contains("the expression must have at most 10000 bytes; it has 1000000"));
  CHECK_THROWS_WITH(NamePattern("a("), Catch::Contains("the expression must compile; at byte 2: "));
  CHECK_THROWS_WITH(NamePattern(std::string(9000, '(')),
                    Catch::Contains("the expression must compile; at byte "));
}
