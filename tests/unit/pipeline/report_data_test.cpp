#include "lcomp/pipeline/report_data.h"

#include <catch2/catch.hpp>
#include <limits>
#include <nlohmann/json.hpp>

#include "lcomp/core/error.h"
#include "support/sample_report.h"

using Json = nlohmann::ordered_json;
using lcomp::CorruptFile;
using lcomp::pipeline::from_json;
using lcomp::pipeline::RooflineRow;
using lcomp::pipeline::RunReport;
using lcomp::pipeline::RunStatus;
using lcomp::pipeline::to_json;

namespace {

/// A report none of whose values, in the first element of each list, is the default.
RunReport full_report() {
  RunReport report = lcomp::test::sample_report(lcomp::test::demo_model());
  report.message = "[gptq] something";
  auto& row = report.operators.front();
  row.pass = 1;
  row.mismatch_weight = 0.5;
  row.parameters = 11;
  row.macs = 12;
  row.rung_index = 2;
  row.fell_back = true;
  row.fallback = "rtn: why";
  row.dead_columns = 3;
  row.product = "int8 product";
  row.outliers = {{5, 0.25}};
  report.outliers = {{"q_proj", 5, 0.5, 0.25, true}};
  row.block = 7;
  auto& block = report.blocks.front();
  block.block = 5;
  block.resumed = true;
  report.calibration->short_dropped = 9;
  report.evaluation.front().kl_mean = 1e-9;
  report.evaluation.front().top1_agreement = 1.0;
  report.totals.parameters_after = 5;
  report.totals.numbers_after = 4;
  report.totals.macs_before = 9;
  report.totals.macs_after = 3;
  report.evaluation.front().embedding_cosine = 0.5;
  report.evaluation.front().embedding_cosine_min = 0.25;
  report.evaluation.front().rank_correlation = 0.75;
  report.verification->message = "differs";
  return report;
}

bool is_default(const Json& value) {
  return value.is_null() || value == 0 || value == "" || value == false ||
         (value.is_structured() && value.empty());
}

/// Every leaf of the document, lists by their first element.
void require_all_set(const Json& value, const std::string& pointer) {
  INFO(pointer);
  REQUIRE_FALSE(is_default(value));
  if (value.is_object())
    for (const auto& [key, member] : value.items())
      if (pointer != "" || key != "job") require_all_set(member, pointer + "/" + key);
  if (value.is_array()) require_all_set(value.front(), pointer + "/0");
}

std::string with(const std::string& pointer, const Json& value) {
  Json document = Json::parse(to_json(full_report()));
  document[Json::json_pointer(pointer)] = value;
  return document.dump();
}

}  // namespace

TEST_CASE("reading a report's JSON gives the report, with every field set", "[pipeline][report]") {
  const RunReport report = full_report();
  require_all_set(Json::parse(to_json(report)), "");
  const RunReport back = from_json(to_json(report));
  REQUIRE(back == report);
  REQUIRE(to_json(back) == to_json(report));
}

TEST_CASE("a field that is changed changes the JSON and comes back changed", "[pipeline][report]") {
  const RunReport report = full_report();
  RunReport other = report;
  other.operators.back().loss = 0.1 + 0.2;
  REQUIRE_FALSE(from_json(to_json(other)) == report);
  REQUIRE(from_json(to_json(other)) == other);
}

TEST_CASE("the status is written by name and every status comes back", "[pipeline][report]") {
  for (const auto status :
       {RunStatus::kRunning, RunStatus::kDone, RunStatus::kInterrupted, RunStatus::kFailed}) {
    RunReport report;
    report.status = status;
    REQUIRE(Json::parse(to_json(report))["status"] == std::string(lcomp::name_of(status)));
    REQUIRE(from_json(to_json(report)).status == status);
  }
}

TEST_CASE("absent values are null, and an empty report comes back as it was", "[pipeline][report]") {
  RunReport report;
  report.operators.emplace_back();
  report.evaluation.emplace_back();
  const Json document = Json::parse(to_json(report));
  REQUIRE(document["job"].is_null());
  REQUIRE(document["calibration"].is_null());
  REQUIRE(document["verification"].is_null());
  REQUIRE(document["operators"][0]["loss"].is_null());
  REQUIRE(document["evaluation"][0]["perplexity"].is_null());
  REQUIRE(from_json(to_json(report)) == report);
}

TEST_CASE("numbers that are not finite are written as null and read as absent", "[pipeline][report]") {
  RunReport report;
  report.operators.emplace_back();
  report.operators[0].loss = std::numeric_limits<double>::quiet_NaN();
  report.operators[0].rtn_loss = std::numeric_limits<double>::infinity();
  report.operators[0].seconds = std::numeric_limits<double>::quiet_NaN();
  const Json document = Json::parse(to_json(report));
  REQUIRE(document["operators"][0]["loss"].is_null());
  REQUIRE(document["operators"][0]["rtn_loss"].is_null());
  const RunReport back = from_json(to_json(report));
  REQUIRE_FALSE(back.operators[0].loss.has_value());
  REQUIRE_FALSE(back.operators[0].rtn_loss.has_value());
  REQUIRE(std::isnan(back.operators[0].seconds));
}

TEST_CASE("the job is part of the document, and text that is not JSON is kept as text",
          "[pipeline][report]") {
  RunReport report;
  report.job_json = R"({"seed":3,"a":[1]})";
  REQUIRE(Json::parse(to_json(report))["job"]["seed"] == 3);
  REQUIRE(Json::parse(from_json(to_json(report)).job_json) == Json::parse(report.job_json));
  report.job_json = "{ not JSON";
  REQUIRE(Json::parse(to_json(report))["job"] == "{ not JSON");
  REQUIRE(from_json(to_json(report)) == report);
}

TEST_CASE("names that are not UTF-8 do not prevent a report", "[pipeline][report]") {
  RunReport report;
  report.warnings = {"bad \xff name"};
  REQUIRE(from_json(to_json(report)).warnings[0] == "bad \xef\xbf\xbd name");
}

TEST_CASE("the roofline's derived numbers are written and follow from the measured ones",
          "[pipeline][report]") {
  RooflineRow row{"forward", "f32", 3e12, 60, 100};
  REQUIRE(*row.achieved_gflops() == Approx(50));
  REQUIRE(*row.share() == Approx(0.5));
  RunReport report;
  report.roofline = {row};
  const Json written = Json::parse(to_json(report))["roofline"][0];
  REQUIRE(written["achieved_gflops"] == Approx(50));
  REQUIRE(written["share"] == Approx(0.5));
  row.peak_gflops = 0;
  REQUIRE_FALSE(row.share().has_value());
  row.seconds = 0;
  REQUIRE_FALSE(row.achieved_gflops().has_value());
}

TEST_CASE("keys of other versions are skipped and missing ones keep their defaults", "[pipeline][report]") {
  REQUIRE(from_json(with("/host/invented", 1)) == full_report());
  const RunReport bare = from_json(R"({"format":"lcomp-report","format_version":1,"version":"9"})");
  RunReport expected;
  expected.version = "9";
  REQUIRE(bare == expected);
}

TEST_CASE("a report that cannot be read says where and why", "[pipeline][report]") {
  struct Case {
    std::string text;
    std::string message;
  };
  const std::vector<Case> cases = {
      {with("/operators/1/bytes_after", "many"),
       "[report.json] '/operators/1/bytes_after' must be a 64-bit integer; its type is string"},
      {with("/operators/0/bytes_after", 18446744073709551615ULL),
       "[report.json] '/operators/0/bytes_after' must be a 64-bit integer; its type is number"},
      {with("/operators/0/loss", true),
       "[report.json] '/operators/0/loss' must be a number; its type is boolean"},
      {with("/operators/0/fell_back", 1),
       "[report.json] '/operators/0/fell_back' must be true or false; its type is number"},
      {with("/host", Json::array()), "[report.json] '/host' must be an object; its type is array"},
      {with("/warnings", 3), "[report.json] '/warnings' must be an array; its type is number"},
      {with("/warnings/0", 3), "[report.json] '/warnings/0' must be a string; its type is number"},
      {with("/status", "asleep"),
       "[report.json] '/status' must be one of running, done, interrupted, failed; it is 'asleep'"},
      {with("/format_version", 2),
       "[report.json] '/format' and '/format_version' must be 'lcomp-report' and 1; they are "
       "\"lcomp-report\" and 2"},
      {"[]",
       "[report.json] '/format' and '/format_version' must be 'lcomp-report' and 1; they are null and null"}};
  for (const Case& c : cases) REQUIRE_THROWS_WITH(from_json(c.text), c.message);
  REQUIRE_THROWS_WITH(from_json("{\"format\""),
                      Catch::Matchers::StartsWith("[report.json: line 1, column 10] must be valid JSON"));
  REQUIRE_THROWS_WITH(from_json("{\"format\": 1e999}"),
                      Catch::Matchers::StartsWith("[report.json: line 1, column 16] must be valid JSON"));
  REQUIRE_THROWS_AS(from_json(""), CorruptFile);
}

TEST_CASE("outlier features are gathered over the blocks, by the criteria of the paper",
          "[pipeline][report]") {
  using namespace lcomp::pipeline;
  const auto row = [](const char* kind, int64_t block, const std::vector<OutlierFeature>& outliers) {
    OperatorRow out;
    out.kind = kind;
    out.block = block;
    out.outliers = outliers;
    return out;
  };
  const std::vector<OutlierRow> rows = outlier_features(
      {row("q_proj", 0, {{3, 0.5}, {9, 0.01}}), row("k_proj", 0, {}), row("down_proj", 0, {{3, 1.0}}),
       row("q_proj", 1, {{3, 0.7}}), row("down_proj", 1, {}), row("q_proj", 2, {{9, 0.05}})},
      8);
  const std::vector<OutlierRow> expected = {
      {"q_proj", 3, 0.25, 0.6, true}, {"q_proj", 9, 0.25, 0.03, false}, {"down_proj", 3, 0.125, 1.0, false}};
  REQUIRE(rows.size() == expected.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    CAPTURE(i);
    REQUIRE(rows[i].kind == expected[i].kind);
    REQUIRE(rows[i].feature == expected[i].feature);
    REQUIRE(rows[i].layers == Approx(expected[i].layers));
    REQUIRE(rows[i].tokens == Approx(expected[i].tokens));
    REQUIRE(rows[i].systematic == expected[i].systematic);
  }
  REQUIRE(outlier_features({}, 0).empty());
}
