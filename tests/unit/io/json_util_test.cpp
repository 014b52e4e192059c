#include "io/json_util.h"

#include <catch2/catch.hpp>

using namespace lcomp;
using namespace lcomp::io;
using Catch::Contains;

namespace {

std::string error_of(std::string_view text, const JsonRules& rules = {}) {
  try {
    parse_json(text, "job.json", rules);
  } catch (const Error& error) {
    REQUIRE(error.kind() == rules.error);
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST_CASE("strict JSON reads every kind of value", "[io][json]") {
  const Json value = parse_json(R"({"a": [1, -2, 2.5, true, null, "xé😀"], "b": {}})", "x");
  REQUIRE(value["a"][0] == 1);
  REQUIRE(value["a"][5] == "xé😀");
  REQUIRE(value["b"].empty());
}

TEST_CASE("ordered JSON keeps the order of keys through a round trip", "[io][json]") {
  const std::string text = R"({"z":1,"a":{"y":[2,{"k":3}],"b":1e-05},"m":"é"})";
  REQUIRE(parse_ordered_json(text, "x").dump() == text);
}

TEST_CASE("every breach of strict JSON is an error with file, line and column", "[io][json]") {
  struct Case {
    std::string text;
    std::string message;
  };
  const std::vector<Case> cases = {
      {"",
       "[job.json: line 1, column 1] must be valid JSON; syntax error while parsing value - unexpected end"},
      {"{\"a\": 1,\n  \"a\": 2}",
       "[job.json: line 2, column 5] must not repeat a key in an object; \"a\" comes twice"},
      {R"({"x": {"é": 1, "\u00e9": 2}})", "\"é\" comes twice"},
      {"{\"a\": nul}",
       "[job.json: line 1, column 10] must be valid JSON; syntax error while parsing value - "},
      {"[1, 2", "line 1, column 6] must be valid JSON"},
      {"[1] x", "line 1, column 5] must be valid JSON"},
      {"[1,]", "line 1, column 4]"},
      {"[1e999]", "must be valid JSON; number overflow"},
      {"[01]", "must be valid JSON"},
      {"[NaN]", "must be valid JSON"},
      {"[\"\\ud800\"]", "must be valid JSON"},
      {"[\"a\nb\"]", "must be valid JSON"},
      {"[1] // no", "must be valid JSON"},
      {std::string("{}\0{", 4), "[job.json: line 1, column 3] must be valid JSON; it has a NUL byte"},
      {"[\"\xff\"]", "[job.json: line 1, column 3] must be valid UTF-8; byte 2 is 0xff"},
      {"[\"\xc0\xaf\"]", "must be valid UTF-8; byte 2 is 0xc0"},
      {"[\"\xed\xa0\x80\"]", "must be valid UTF-8; byte 2 is 0xed"},
      {"[\"é\xe4\xb8", "line 1, column 4] must be valid UTF-8; byte 4 is 0xe4"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.text);
    REQUIRE_THAT(error_of(c.text), Contains(c.message));
    REQUIRE_FALSE(find_invalid_utf8(error_of(c.text)));
  }
}

TEST_CASE("comments are accepted where the rules allow them", "[io][json]") {
  const JsonRules rules{.error = ErrorKind::kConfig, .comments = true};
  REQUIRE(parse_json("// head\n{\"a\": /* one */ 1} // tail", "x", rules)["a"] == 1);
  REQUIRE_THAT(error_of("{\"a\": /* open", rules), Contains("must be valid JSON"));
  REQUIRE_THAT(error_of("// c\n{,}", rules), Contains("[job.json: line 2, column 2]"));
}

TEST_CASE("nesting is limited before it can exhaust the stack", "[io][json]") {
  REQUIRE_NOTHROW(parse_json(std::string(200, '[') + std::string(200, ']'), "x"));
  REQUIRE_THAT(error_of(std::string(1000000, '[')),
               Contains("column 201] must nest at most 200 arrays and objects; it goes deeper"));
  REQUIRE_THAT(error_of("{\"a\":{\"b\":1}}", {.max_depth = 1}), Contains("must nest at most 1 "));
}

TEST_CASE("parsing an ordered object takes time proportional to its keys", "[io][json]") {
  std::string text = "{";
  for (int i = 0; i < 100000; ++i) text += fmt::format("\"key{}\":{},", i, i);
  text.back() = '}';
  REQUIRE(parse_ordered_json(text, "x").size() == 100000);  // quadratic insertion would take minutes
}

TEST_CASE("a view's getters return values and name the place of a wrong one", "[io][json]") {
  const Json json = parse_json(
      R"({"n": 8, "x": 0.5, "s": "t", "f": true, "l": [1, 2], "w": ["u", "v"], "z": null,
          "o": {"a/b": {"c~d": "8"}}, "big": 18446744073709551615})",
      "config.json");
  const JsonView view(json, "config.json", ErrorKind::kConfig);
  REQUIRE(view.at("n").integer() == 8);
  REQUIRE(view.at("n").number() == 8.0);
  REQUIRE(view.at("x").number() == 0.5);
  REQUIRE(view.at("s").text() == "t");
  REQUIRE(view.at("f").boolean());
  REQUIRE(view.at("l").integers() == std::vector<int64_t>{1, 2});
  REQUIRE(view.at("w").texts() == std::vector<std::string>{"u", "v"});
  REQUIRE(view.members().size() == 9);
  REQUIRE(view.at("o").members()[0].first == "a/b");
  REQUIRE_FALSE(view.find("z"));
  REQUIRE_FALSE(view.find("absent"));
  REQUIRE(view.integer_or("z", 3) == 3);
  REQUIRE(view.integer_or("n", 3) == 8);
  REQUIRE(view.text_or("absent", "d") == "d");
  REQUIRE(view.boolean_or("f", false));

  REQUIRE_THROWS_WITH(view.at("absent"), "[config.json] must have the key \"absent\"; it is missing");
  REQUIRE_THROWS_WITH(view.at("o").at("a/b").at("c~d").number(),
                      "[config.json: /o/a~1b/c~0d] must be a number; it is the string \"8\"");
  REQUIRE_THROWS_WITH(view.at("x").integer(), "[config.json: /x] must be an integer; it is 0.5");
  REQUIRE_THROWS_WITH(view.at("n").integer(1, 4), "[config.json: /n] must be an integer in [1, 4]; it is 8");
  REQUIRE_THROWS_WITH(view.at("big").integer(0),
                      Contains("/big] must be an integer in [0, 9223372036854775807]"));
  REQUIRE_THROWS_WITH(view.at("n").text(), "[config.json: /n] must be a string; it is 8");
  REQUIRE_THROWS_WITH(view.at("l").boolean(), "[config.json: /l] must be true or false; it is an array");
  REQUIRE_THROWS_WITH(view.at("l").texts(), "[config.json: /l/0] must be a string; it is 1");
  REQUIRE_THROWS_WITH(view.at("o").elements(), "[config.json: /o] must be an array; it is an object");
  REQUIRE_THROWS_WITH(view.at("l").members(), "[config.json: /l] must be an object; it is an array");
  REQUIRE_THROWS_WITH(view.at("z").find("k"), "[config.json: /z] must be an object; it is null");
  REQUIRE_THROWS_AS(view.fail("x"), ConfigError);
  REQUIRE_THROWS_AS(JsonView(json, "data").fail("x"), CorruptFile);
}
