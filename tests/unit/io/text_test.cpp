#include "lcomp/io/text.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"

using lcomp::io::require_utf8;
using lcomp::io::with_unix_line_ends;

TEST_CASE("line ends of every kind become one line feed each", "[io][text]") {
  REQUIRE(with_unix_line_ends("a\r\nb\rc\nd") == "a\nb\nc\nd");
  REQUIRE(with_unix_line_ends("\r\r\n\n\r") == "\n\n\n\n");
  REQUIRE(with_unix_line_ends("no ends").size() == 7);
  REQUIRE(with_unix_line_ends("").empty());
}

TEST_CASE("a text that is not UTF-8 is refused with its file and the byte", "[io][text]") {
  REQUIRE_NOTHROW(require_utf8("", "f"));
  REQUIRE_NOTHROW(require_utf8("na\xC3\xAFve", "f"));
  REQUIRE_THROWS_AS(require_utf8("na\xEFve", "f"), lcomp::CorruptFile);
  REQUIRE_THROWS_WITH(require_utf8("na\xEFve", "f"),
                      "[f] the text must be valid UTF-8; byte 2 (0xEF) is not");
}
