// What no JSON file of a stranger may have is refused by each parser, in one line that names the file and the
// place.
#include <catch2/catch.hpp>
#include <functional>

#include "io/checkpoint_index.h"
#include "io/safetensors_header.h"
#include "lcomp/core/error.h"
#include "lcomp/io/tokenizer.h"
#include "lcomp/model/architecture.h"
#include "lcomp/model/quantization_config.h"
#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "lcomp/pipeline/report_data.h"
#include "pipeline/block_record.h"
#include "pipeline/output_record.h"
#include "pipeline/run.h"
#include "support/error_text.h"

using namespace lcomp;

namespace {

struct Parser {
  std::string file;
  std::function<void(const std::string& text)> parse;
};

std::vector<Parser> parsers() {
  return {
      {"model.safetensors",
       [](const auto& text) { io::parse_safetensors_header(text, 8 + text.size(), "model.safetensors"); }},
      {"index.json", [](const auto& text) { io::parse_checkpoint_index(text, "index.json"); }},
      {"config.json", [](const auto& text) { model::read_architecture(text, "config.json"); }},
      {"config.json", [](const auto& text) { model::QuantizationConfig::read(text, "config.json"); }},
      {"tokenizer.json", [](const auto& text) { io::Tokenizer::from_json(text, "tokenizer.json"); }},
      {"job.json",
       [](const auto& text) { pipeline::parse_job(text, "job.json", pipeline::builtin_methods()); }},
      {"report.json", [](const auto& text) { pipeline::from_json(text); }},
      {"journal", [](const auto& text) { pipeline::BlockRecord::from_json(text); }},
      {"journal: survey", [](const auto& text) { pipeline::SurveyRecord::from_json(text); }},
      {"lcomp.json", [](const auto& text) { pipeline::OutputRecord::from_json(text, "lcomp.json"); }},
  };
}

void require_refused(const std::string& text, const std::string& message) {
  for (const Parser& parser : parsers()) {
    CAPTURE(parser.file, text.substr(0, 40));
    const std::string error = test::error_text([&] { parser.parse(text); });
    REQUIRE_THAT(error, Catch::StartsWith("[" + parser.file) && Catch::Contains(message));
    REQUIRE(error.find('\n') == std::string::npos);
    REQUIRE(error.size() < 300);
  }
}

}  // namespace

TEST_CASE("nesting that would exhaust the stack is refused", "[corrupt][json]") {
  require_refused("{\"a\":" + std::string(1'000'000, '['), " arrays and objects; it goes deeper");
  std::string objects;
  for (int i = 0; i < 100'000; ++i) objects += "{\"a\":";
  require_refused(objects, " arrays and objects; it goes deeper");
}

TEST_CASE("keys that come twice are refused", "[corrupt][json]") {
  require_refused(R"({"a": 1, "b": {}, "a": 2})", "must not repeat a key in an object; \"a\" comes twice");
  require_refused(R"({"a": {"\u0062": 1, "b": 2}})", "must not repeat a key in an object; \"b\" comes twice");
}

TEST_CASE("text that is not UTF-8 is refused with the byte", "[corrupt][json]") {
  for (const char* bytes : {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe4\xb8"}) {
    require_refused("{\"" + std::string(bytes) + "\": 1}", "must be valid UTF-8; byte 2 is 0x");
    require_refused("{\"k\": \"" + std::string(bytes) + "\"}", "must be valid UTF-8; byte 7 is 0x");
  }
}

TEST_CASE("what is no JSON document is refused", "[corrupt][json]") {
  require_refused(R"({"a": 1} x)", "must be valid JSON");
  require_refused(std::string("{\"a\": 1\0}", 9), "must be valid JSON");
  require_refused("{\"a\": 1e999}", "must be");
  require_refused("{\"a\": NaN}", "must be valid JSON");
}
