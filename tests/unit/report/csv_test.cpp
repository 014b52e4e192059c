#include <algorithm>
#include <catch2/catch.hpp>

#include "lcomp/report/report.h"
#include "support/sample_report.h"

using lcomp::pipeline::RunReport;
using lcomp::report::to_csv;

TEST_CASE("the CSV has a header and a line per operator row, all of the same width", "[report][csv]") {
  RunReport report = lcomp::test::sample_report();
  for (auto& row : report.operators) row.scheme = "int4";
  for (auto& row : report.operators) row.fallback.clear();
  const std::string text = to_csv(report);
  REQUIRE(std::count(text.begin(), text.end(), '\n') == 211);
  REQUIRE(std::count(text.begin(), text.end(), ',') == 211 * 23);
}

TEST_CASE("CSV fields are quoted where needed, and absent numbers are empty", "[report][csv]") {
  RunReport report;
  report.operators.emplace_back();
  report.operators[0].name = "a,\"b\"";
  report.operators[0].loss = 0.1;
  const std::string text = to_csv(report);
  const std::string line = text.substr(text.find('\n') + 1);
  REQUIRE(line == "\"a,\"\"b\"\"\",,-1,0,,,0,0,0,0,0,,,,0.1,,,,0,0,,0,0,0\r\n");
}
