#include "lcomp/io/text.h"

#include <catch2/catch.hpp>

using lcomp::io::with_unix_line_ends;

TEST_CASE("line ends of every kind become one line feed each", "[io][text]") {
  REQUIRE(with_unix_line_ends("a\r\nb\rc\nd") == "a\nb\nc\nd");
  REQUIRE(with_unix_line_ends("\r\r\n\n\r") == "\n\n\n\n");
  REQUIRE(with_unix_line_ends("no ends").size() == 7);
  REQUIRE(with_unix_line_ends("").empty());
}
