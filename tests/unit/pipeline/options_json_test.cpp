#include "pipeline/options_json.h"

#include <fmt/format.h>

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"
#include "unit/pipeline/toy_methods.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using lcomp::test::error_text;

namespace {

/// A struct with a field of every kind.
struct Everything {
  bool flag = false;
  int64_t count = 3;
  int64_t open = 0;
  double share = 0.5;
  std::string name = "x";
  std::vector<std::string> list;
  int64_t size = 1000;
  test::ToyRange range = test::ToyRange::kMinMax;
  int64_t inner = 1;

  void visit(FieldVisitor& v) {
    v.field("flag", flag, "A flag.");
    v.field("count", count, {1, 9}, "A count.");
    v.field("open", open, {0}, "Bounded below.");
    v.field("share", share, {0, 1}, "A share.");
    v.field("name", name, "A name.");
    v.field("list", list, "A list.");
    v.bytes("size", size, "A size.");
    v.field("range", range, "A choice | of two.");
    v.object("nested", "More.", [this](FieldVisitor& n) { n.field("inner", inner, {-5, 5}, "Inner."); });
  }
};

Problems read(const std::string& text, Everything& into) {
  const Json object = Json::parse(text);
  Problems problems;
  JsonReader reader(object, "/at", problems);
  into.visit(reader);
  reader.finish();
  return problems;
}

/// The only problem of a text, as "pointer: message".
std::string problem(const std::string& text) {
  Everything ignored;
  const Problems problems = read(text, ignored);
  REQUIRE(problems.size() == 1);
  return problems[0].pointer + ": " + problems[0].message;
}

}  // namespace

TEST_CASE("every kind of field is read", "[pipeline][options]") {
  Everything all;
  const Problems problems = read(R"({"flag": true, "count": 9, "open": 12345678901, "share": 1, "name": "n",
      "list": ["a", "b"], "size": "2KB", "range": "mse", "nested": {"inner": -5}})",
                                 all);
  CHECK(problems.empty());
  CHECK(all.flag);
  CHECK(all.count == 9);
  CHECK(all.open == 12345678901);
  CHECK(all.share == 1.0);
  CHECK(all.name == "n");
  CHECK(all.list == std::vector<std::string>{"a", "b"});
  CHECK(all.size == 2000);
  CHECK(all.range == test::ToyRange::kMse);
  CHECK(all.inner == -5);
}

TEST_CASE("absent keys leave the defaults alone", "[pipeline][options]") {
  Everything all;
  CHECK(read("{}", all).empty());
  CHECK(all.count == 3);
  CHECK(all.size == 1000);
  CHECK(all.inner == 1);
}

TEST_CASE("one string stands for a list and a number for a size", "[pipeline][options]") {
  Everything all;
  CHECK(read(R"({"list": "alone", "size": 77})", all).empty());
  CHECK(all.list == std::vector<std::string>{"alone"});
  CHECK(all.size == 77);
}

TEST_CASE("a value of the wrong type or out of range is reported with its pointer", "[pipeline][options]") {
  CHECK(problem(R"({"flag": 1})") == "/at/flag: must be true or false; got 1");
  CHECK(problem(R"({"count": "4"})") == "/at/count: must be an integer from 1 to 9; got \"4\"");
  CHECK(problem(R"({"count": 10})") == "/at/count: must be an integer from 1 to 9; got 10");
  CHECK(problem(R"({"count": 4.5})") == "/at/count: must be an integer from 1 to 9; got 4.5");
  CHECK(problem(R"({"open": -1})") == "/at/open: must be an integer of at least 0; got -1");
  CHECK(problem(R"({"open": 18446744073709551615})") ==
        "/at/open: must be an integer of at least 0; got 18446744073709551615");
  CHECK(problem(R"({"share": 1.5})") == "/at/share: must be a number from 0 to 1; got 1.5");
  CHECK(problem(R"({"share": null})") == "/at/share: must be a number from 0 to 1; got null");
  CHECK(problem(R"({"name": ["n"]})") == "/at/name: must be a string; got [\"n\"]");
  CHECK(problem(R"({"list": ["a", 1]})") == "/at/list: must be a list of strings; got [\"a\",1]");
  CHECK(problem(R"({"list": {}})") == "/at/list: must be a list of strings; got {}");
  CHECK(problem(R"({"size": "4 gigs"})") ==
        "/at/size: must be a size such as 4000000000, \"4GB\" or \"512MiB\"; got \"4 gigs\"");
  CHECK(problem(R"({"size": -4})") ==
        "/at/size: must be a size such as 4000000000, \"4GB\" or \"512MiB\"; got -4");
  CHECK(problem(R"({"nested": 3})") == "/at/nested: must be an object; got 3");
  CHECK(problem(R"({"nested": {"inner": 6}})") == "/at/nested/inner: must be an integer from -5 to 5; got 6");
}

TEST_CASE("a bad choice is answered with the list and the nearest name", "[pipeline][options]") {
  CHECK(problem(R"({"range": "mze"})") ==
        "/at/range: must be one of min_max, mse; got \"mze\" (did you mean \"mse\"?)");
  CHECK(problem(R"({"range": 2})") == "/at/range: must be one of min_max, mse; got 2");
}

TEST_CASE("an unknown key is answered with the nearest key, or with all of them", "[pipeline][options]") {
  CHECK(problem(R"({"cuont": 4})") ==
        "/at/cuont: every key must be known; \"cuont\" is not (did you mean \"count\"?)");
  CHECK(problem(R"({"nested": {"outer/~": 4}})") ==
        "/at/nested/outer~1~0: every key must be known; \"outer/~\" is not; the keys here are inner");
}

TEST_CASE("all problems of an object are collected, and its good fields are still read",
          "[pipeline][options]") {
  Everything all;
  const Problems problems =
      read(R"({"flag": 0, "count": 5, "share": -1, "colour": 1, "nested": {"inner": "x"}})", all);
  REQUIRE(problems.size() == 4);
  CHECK(all.count == 5);
  CHECK(all.share == 0.5);
}

TEST_CASE("a long value is cut in the message", "[pipeline][options]") {
  const std::string text = problem(fmt::format("{{\"flag\": \"{}\"}}", std::string(500, 'a')));
  CHECK(text.size() < 150);
  CHECK_THAT(text, Catch::EndsWith("aaa..."));
}

TEST_CASE("reading what was written gives the same values", "[pipeline][options]") {
  Everything all;
  REQUIRE(
      read(
          R"({"flag": true, "count": 2, "share": 0.1, "list": ["p", "q"], "range": "mse", "nested": {"inner": 4}})",
          all)
          .empty());
  Json first = Json::object();
  JsonWriter writer(first);
  all.visit(writer);

  Everything again;
  REQUIRE(read(first.dump(), again).empty());
  Json second = Json::object();
  JsonWriter second_writer(second);
  again.visit(second_writer);
  CHECK(first == second);
  CHECK(first["share"] == 0.1);
  CHECK(first["range"] == "mse");
  CHECK(first["nested"]["inner"] == 4);
  CHECK(first.size() == 9);
}

TEST_CASE("the schema states type, range, choices, default and help of each field", "[pipeline][options]") {
  Everything all;
  Json properties = Json::object();
  SchemaWriter writer(properties);
  all.visit(writer);
  CHECK(properties["count"] ==
        Json::parse(
            R"({"type": "integer", "minimum": 1, "maximum": 9, "description": "A count.", "default": 3})"));
  CHECK(properties["open"]["minimum"] == 0);
  CHECK_FALSE(properties["open"].contains("maximum"));
  CHECK(properties["share"]["type"] == "number");
  CHECK(properties["range"]["enum"] == Json::parse(R"(["min_max", "mse"])"));
  CHECK(properties["range"]["default"] == "min_max");
  CHECK(properties["nested"]["additionalProperties"] == false);
  CHECK(properties["nested"]["properties"]["inner"]["minimum"] == -5);
}

TEST_CASE("the table has one row per field, nested ones by their path", "[pipeline][options]") {
  Everything all;
  TableWriter writer;
  all.visit(writer);
  CHECK(writer.markdown() ==
        "| key | values | default | meaning |\n|---|---|---|---|\n"
        "| `flag` | true, false | `false` | A flag. |\n"
        "| `count` | integer from 1 to 9 | `3` | A count. |\n"
        "| `open` | integer of at least 0 | `0` | Bounded below. |\n"
        "| `share` | number from 0 to 1 | `0.5` | A share. |\n"
        "| `name` | string | `x` | A name. |\n"
        "| `list` | list of strings |  | A list. |\n"
        "| `size` | size | `1.00 KB` | A size. |\n"
        "| `range` | min_max, mse | `min_max` | A choice \\| of two. |\n"
        "| `nested.inner` | integer from -5 to 5 | `1` | Inner. |\n");
}

TEST_CASE("a syntax error is reported with its place", "[pipeline][options]") {
  CHECK_THAT(error_text([] { parse_document("{\n  \"a\": 1,\n  b: 2\n}", "job.json"); }),
             Catch::StartsWith("[job.json: line 3, column 3] must be valid JSON; "));
  CHECK(error_text([] { parse_document("[1, 2]", "job.json"); }) ==
        "[job.json] the file must hold one object; it holds [1,2]");
  CHECK(error_text([] { parse_document(R"({"a": 1, "a": 2})", "job.json"); }) ==
        "[job.json: line 1, column 12] must not repeat a key in an object; \"a\" comes twice");
}

TEST_CASE("settings know their parts, and no other", "[pipeline][options]") {
  const test::RtnToy settings;
  CHECK(settings.part<test::ToyScheme>().bits == 4);
  REQUIRE_THROWS_AS(settings.part<test::ToyTuning>(), InternalError);
  CHECK(error_text([&] { settings.part<test::ToyTuning>(); }) ==
        "[PassOptions::part] the settings must have the part asked for");
}

TEST_CASE("comments are allowed and keys keep their order", "[pipeline][options]") {
  const Json document = parse_document("// first\n{ /* z */ \"z\": 1, \"a\": [true] // end\n}", "job");
  CHECK(document.dump() == R"({"z":1,"a":[true]})");
}
