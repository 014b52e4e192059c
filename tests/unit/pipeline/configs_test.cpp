// The ready jobs of configs/, and the schema that is published for them.
#include <catch2/catch.hpp>

// GCC 12 sees an overlap in inlined string concatenation where there is none (GCC bug 105651).
#pragma GCC diagnostic ignored "-Wrestrict"
#pragma GCC diagnostic ignored "-Warray-bounds"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>

#include "lcomp/pipeline/builtin_methods.h"
#include "lcomp/pipeline/job.h"
#include "support/error_text.h"
#include "support/test_data.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using nlohmann::json;
namespace fs = std::filesystem;

namespace {

std::vector<fs::path> configs() {
  std::vector<fs::path> found;
  for (const auto& entry : fs::directory_iterator(test::source_dir() / "configs")) {
    if (entry.path().extension() == ".json") found.push_back(entry.path());
  }
  return found;
}

json read_with_comments(const fs::path& path) {
  std::ifstream file(path);
  return json::parse(file, nullptr, true, /*ignore_comments=*/true);
}

/// Whether the published schema accepts a document.
class SchemaCheck {
 public:
  SchemaCheck() : document_(json::parse(job_schema(builtin_methods()))) {
    valijson::SchemaParser parser;
    const valijson::adapters::NlohmannJsonAdapter adapter(document_);
    parser.populateSchema(adapter, schema_);
  }

  bool operator()(const json& job) const {
    valijson::Validator validator;
    const valijson::adapters::NlohmannJsonAdapter adapter(job);
    return validator.validate(schema_, adapter, nullptr);
  }

 private:
  json document_;
  valijson::Schema schema_;
};

}  // namespace

TEST_CASE("every ready job is valid, and writing and reading it again changes nothing",
          "[pipeline][configs]") {
  const MethodTable methods = builtin_methods();
  REQUIRE(configs().size() >= 6);
  for (const fs::path& path : configs()) {
    INFO(path);
    const std::string resolved = to_json(load_job(path.string(), methods));
    CHECK(to_json(parse_job(resolved, "resolved", methods)) == resolved);
  }
}

TEST_CASE("the ready jobs of the demo name files that exist", "[pipeline][configs]") {
  size_t demos = 0;
  for (const fs::path& path : configs()) {
    if (!path.filename().string().starts_with("demo_")) continue;
    ++demos;
    INFO(path);
    const Job job = load_job(path.string(), builtin_methods());
    CHECK(fs::exists(fs::path(job.model) / "model.safetensors"));
    CHECK((job.calibration.text.empty() || fs::exists(job.calibration.text)));
    REQUIRE(job.evaluate);
    CHECK(fs::exists(job.evaluate->text));
  }
  CHECK(demos >= 3);
}

TEST_CASE("the published schema accepts every ready job, as written and resolved", "[pipeline][configs]") {
  const SchemaCheck accepts;
  for (const fs::path& path : configs()) {
    INFO(path);
    CHECK(accepts(read_with_comments(path)));
    CHECK(accepts(json::parse(to_json(load_job(path.string(), builtin_methods())))));
  }
}

TEST_CASE("the published schema refuses what the parser refuses", "[pipeline][configs]") {
  const SchemaCheck accepts;
  const json good = json::parse(R"({"model": "m", "output": "o", "passes": [{"method": "rtn", "bits": 4,
      "overrides": [{"match": "a", "bits": 8}]}], "max_memory": "1.5 GiB", "evaluate": {"text": "t"}})");
  REQUIRE(accepts(good));
  REQUIRE_NOTHROW(parse_job(good.dump(), "job", builtin_methods()));

  const std::vector<std::pair<std::string, json>> edits = {
      {"/passes", json::array()},
      {"/passes/0/bits", 9},
      {"/passes/0/bits", "4"},
      {"/passes/0/method", "gtpq"},
      {"/passes/0/colour", 1},
      {"/passes/0/targets", json::array({1})},
      {"/passes/0/overrides/0", json::object({{"bits", 8}})},
      {"/passes/0/overrides/0/match", 3},
      {"/max_memory", "4 gigs"},
      {"/max_memory", -1},
      {"/compute", "f64"},
      {"/calibration", json::object({{"short", "pak"}})},
      {"/calibration", json::object({{"samples", 0}})},
      {"/evaluate", nullptr},
      {"/sede", 1},
  };
  for (const auto& [pointer, value] : edits) {
    json bad = good;
    bad[json::json_pointer(pointer)] = value;
    INFO(pointer << " = " << value);
    CHECK_FALSE(accepts(bad));
    CHECK_THROWS(parse_job(bad.dump(), "job", builtin_methods()));
  }
}
