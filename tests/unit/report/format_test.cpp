#include "report/format.h"

#include <catch2/catch.hpp>
#include <limits>

using namespace lcomp::report;

TEST_CASE("numbers keep four significant digits and no exponent where that stays short", "[report][format]") {
  REQUIRE(number(20.70993) == "20.71");
  REQUIRE(number(0.0612345) == "0.06123");
  REQUIRE(number(135234.6) == "135,235");
  REQUIRE(number(-1234.56) == "-1,235");
  REQUIRE(number(4.25) == "4.25");
  REQUIRE(number(16) == "16");
  REQUIRE(number(9.99999) == "10.00");
  REQUIRE(number(11.02, 3) == "11.0");
  REQUIRE(number(0) == "0");
  REQUIRE(number(1.23456e-7) == "1.2e-07");
  REQUIRE(number(3.4e12) == "3.4e+12");
  REQUIRE(number(12.345, 2) == "12");
}

TEST_CASE("numbers that are not finite or not there are named", "[report][format]") {
  REQUIRE(number(std::numeric_limits<double>::quiet_NaN()) == "NaN");
  REQUIRE(number(std::numeric_limits<double>::infinity()) == "infinite");
  REQUIRE(number(-std::numeric_limits<double>::infinity()) == "-infinite");
  REQUIRE(number(std::nullopt) == kAbsent);
  REQUIRE(percent(std::nullopt) == kAbsent);
}

TEST_CASE("counts and sizes are in the largest unit that leaves them at least one", "[report][format]") {
  REQUIRE(exact(134515008) == "134,515,008");
  REQUIRE(exact(-1000) == "-1,000");
  REQUIRE(exact(999) == "999");
  REQUIRE(count(9999) == "9,999");
  REQUIRE(count(134515008) == "134.5 M");
  REQUIRE(bytes(269030016) == "269 MB");
  REQUIRE(bytes(512) == "512 B");
  REQUIRE(bytes(999'970) == "1.00 MB");
  REQUIRE(bytes(1'000) == "1 KB");
  REQUIRE(bytes(0) == "0 B");
  REQUIRE(flops(1.42e13) == "14.2 TFLOP");
}

TEST_CASE("durations read as people say them", "[report][format]") {
  REQUIRE(duration(0.0004) == "0.4 ms");
  REQUIRE(duration(0.0432) == "43 ms");
  REQUIRE(duration(12.34) == "12.3 s");
  REQUIRE(duration(59.97) == "1 min 00 s");
  REQUIRE(duration(271.2) == "4 min 31 s");
  REQUIRE(duration(3599.6) == "1 h 00 min");
  REQUIRE(duration(3720) == "1 h 02 min");
}

TEST_CASE("a time in UTC is written for people, and other text is left alone", "[report][format]") {
  REQUIRE(utc_time("2024-05-01T12:00:00Z") == "2024-05-01 12:00:00 UTC");
  REQUIRE(utc_time("yesterday") == "yesterday");
  REQUIRE(utc_time("") == "");
}

TEST_CASE("changes carry their sign, and none is claimed from nothing", "[report][format]") {
  REQUIRE(percent(0.6312) == "63.1 %");
  REQUIRE(change(20, 25) == "+25 %");
  REQUIRE(change(100, 42) == "−58 %");
  REQUIRE(change(0, 1) == kAbsent);
}

TEST_CASE("the name of a path is its last component", "[report][format]") {
  REQUIRE(base_name("a/b/model") == "model");
  REQUIRE(base_name("a/b/model//") == "model");
  REQUIRE(base_name("model") == "model");
  REQUIRE(base_name("/") == "/");
  REQUIRE(base_name("") == "");
}

TEST_CASE("escaped text has nothing left that means something to HTML or a Markdown table",
          "[report][format]") {
  REQUIRE(escape_html("<a href='x'>\"&\n") == "&lt;a href=&#39;x&#39;&gt;&quot;&amp;&#10;");
  REQUIRE(escape_markdown("a|b\n<i>`_*[]\\&") == "a\\|b &lt;i&gt;\\`\\_\\*\\[\\]\\\\&amp;");
}
