#include "lcomp/core/bytes.h"

#include <catch2/catch.hpp>

using namespace lcomp;

TEST_CASE("sizes are read with decimal and binary units in any case", "[core][bytes]") {
  CHECK(parse_bytes("4GB") == 4'000'000'000);
  CHECK(parse_bytes("4 gb") == 4'000'000'000);
  CHECK(parse_bytes("512MiB") == 512 * 1024 * 1024);
  CHECK(parse_bytes("1.5KiB") == 1536);
  CHECK(parse_bytes("4096") == 4096);
  CHECK(parse_bytes("17B") == 17);
  CHECK(parse_bytes("2TB") == 2'000'000'000'000);
  CHECK(parse_bytes("0") == 0);
}

TEST_CASE("what is no size is refused", "[core][bytes]") {
  for (const char* text :
       {"", "GB", "4GBs", "-1", "4  GB", "nan", "inf", "1e3", "0x10", "4 potatoes", " 4", "9e99TB"}) {
    INFO(text);
    CHECK_FALSE(parse_bytes(text).has_value());
  }
  CHECK(parse_bytes("8388607TiB").has_value());
  CHECK_FALSE(parse_bytes("8388608TiB").has_value());  // 2^63
}

TEST_CASE("sizes are shown with three significant digits", "[core][bytes]") {
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(999) == "999 B");
  CHECK(format_bytes(1000) == "1.00 KB");
  CHECK(format_bytes(1'234'567) == "1.23 MB");
  CHECK(format_bytes(9'996'000) == "10.0 MB");
  CHECK(format_bytes(112'600'000) == "113 MB");
  CHECK(format_bytes(999'500) == "1.00 MB");
  CHECK(format_bytes(4'000'000'000) == "4.00 GB");
}
