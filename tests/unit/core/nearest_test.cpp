#include "lcomp/core/nearest.h"

#include <catch2/catch.hpp>

using namespace lcomp;

TEST_CASE("the edit distance counts inserts, deletes, replacements and swaps of neighbours",
          "[core][nearest]") {
  CHECK(edit_distance("", "") == 0);
  CHECK(edit_distance("", "abc") == 3);
  CHECK(edit_distance("kitten", "sitting") == 3);
  CHECK(edit_distance("gtpq", "gptq") == 1);
  CHECK(edit_distance("Bits", "bits") == 0);
  CHECK(edit_distance("ca", "abc") == 3);  // optimal string alignment edits no substring twice
}

TEST_CASE("the edit distance is symmetric and obeys the bound of the longer name", "[core][nearest]") {
  const std::vector<std::string> names = {"group_size", "groupsize", "gruop_size", "bits", "", "symmetric"};
  for (const std::string& a : names) {
    for (const std::string& b : names) {
      CHECK(edit_distance(a, b) == edit_distance(b, a));
      CHECK(edit_distance(a, b) <= std::max(a.size(), b.size()));
    }
  }
}

TEST_CASE("a near name is suggested and a far one is not", "[core][nearest]") {
  const std::vector<std::string> names = {"bits", "group_size", "symmetric"};
  CHECK(nearest_name("groupsize", names) == "group_size");
  CHECK(nearest_name("bit", names) == "bits");
  CHECK(nearest_name("sparsity", names).empty());
  CHECK(nearest_name("x", {"y"}).empty());
  CHECK(did_you_mean("symetric", names) == " (did you mean \"symmetric\"?)");
  CHECK(did_you_mean("sparsity", names).empty());
}
