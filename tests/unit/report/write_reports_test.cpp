#include <catch2/catch.hpp>
#include <cstdlib>
#include <filesystem>

#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "lcomp/report/report.h"
#include "support/sample_report.h"
#include "support/test_data.h"

using lcomp::io::read_file;
using lcomp::pipeline::RunReport;
using lcomp::report::write_reports;

TEST_CASE("writing reports leaves the three files and nothing else, replaced each time", "[report]") {
  lcomp::test::TempDir dir;
  RunReport report = lcomp::test::sample_running_report(lcomp::test::demo_model(), 1);
  write_reports(dir.path(), report);
  report = lcomp::test::sample_report(lcomp::test::demo_model());
  write_reports(dir.path(), report);
  REQUIRE(lcomp::pipeline::from_json(read_file(dir / "report.json")) == report);
  REQUIRE(read_file(dir / "report.md") == lcomp::report::to_markdown(report));
  REQUIRE(read_file(dir / "report.html") == lcomp::report::to_html(report));
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) files += entry.exists();
  REQUIRE(files == 3);
}

TEST_CASE("a report that cannot be written names its file", "[report]") {
  lcomp::test::TempDir dir;
  REQUIRE_THROWS_AS(write_reports(dir / "absent", RunReport{}), lcomp::ResourceError);
  REQUIRE_THROWS_WITH(write_reports(dir / "absent", RunReport{}), Catch::Matchers::Contains("report.json"));
}

// Not a test of anything: pages to look at, for whoever changes them.
//   LCOMP_SAMPLE_REPORTS=DIR lcomp_unit_tests "[sample_reports]"
TEST_CASE("sample reports are written to $LCOMP_SAMPLE_REPORTS", "[.][sample_reports]") {
  const char* root = std::getenv("LCOMP_SAMPLE_REPORTS");
  if (root == nullptr) {
    WARN("skipped: LCOMP_SAMPLE_REPORTS names no folder");
    return;
  }
  const auto write = [&](const std::string& name, const RunReport& report) {
    std::filesystem::create_directories(std::filesystem::path(root) / name);
    write_reports(std::filesystem::path(root) / name, report);
  };
  write("demo", lcomp::test::sample_report(lcomp::test::demo_model()));
  write("smollm2", lcomp::test::sample_report());
  write("llama70b", lcomp::test::sample_report(lcomp::test::big_model()));
  write("running", lcomp::test::sample_running_report({}, 12));
  write("empty", RunReport{});
}
