#include "lcomp/core/option_ranges.h"

#include <catch2/catch.hpp>

#include "support/error_text.h"

using lcomp::FieldVisitor;
using lcomp::test::error_text;

TEST_CASE("numbers out of their declared range are refused, nested ones too", "[core][options]") {
  int64_t count = 3;
  double share = 0.5;
  const auto visit = [&](FieldVisitor& v) {
    v.field("count", count, {1}, "");
    v.object("inner", "", [&](FieldVisitor& inner) { inner.field("share", share, {0, 1}, ""); });
  };
  const auto text = [&] { return error_text([&] { lcomp::check_ranges(visit, "here"); }); };
  REQUIRE(text() == "nothing was thrown");
  share = 1.5;
  REQUIRE(text() == "[here] share must be in [0, 1]; received 1.5");
  count = 0;
  REQUIRE(text() == "[here] count must be at least 1; received 0");
}
