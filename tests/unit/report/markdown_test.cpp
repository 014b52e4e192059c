#include <catch2/catch.hpp>
#include <sstream>

#include "lcomp/report/report.h"
#include "support/sample_report.h"

using Catch::Matchers::Contains;
using lcomp::pipeline::RunReport;
using lcomp::report::to_markdown;
using lcomp::test::sample_report;
using lcomp::test::sample_running_report;

namespace {

int64_t cells_of(const std::string& line) {
  int64_t pipes = 0;
  for (size_t i = 0; i < line.size(); ++i)
    if (line[i] == '|' && (i == 0 || line[i - 1] != '\\')) ++pipes;
  return pipes - 1;
}

/// Every line of a table has as many cells as the first.
void require_tables(const std::string& text) {
  std::istringstream lines(text);
  int64_t cells = 0;
  int64_t tables = 0;
  for (std::string line; std::getline(lines, line);) {
    if (line.empty() || line[0] != '|') {
      cells = 0;
      continue;
    }
    INFO(line);
    if (cells == 0) {
      cells = cells_of(line);
      ++tables;
    }
    REQUIRE(line.back() == '|');
    REQUIRE(cells_of(line) == cells);
  }
  REQUIRE(tables >= 1);
}

}  // namespace

TEST_CASE("every line of a Markdown table has as many cells as its header", "[report][markdown]") {
  RunReport hostile = sample_report(lcomp::test::demo_model());
  for (auto& row : hostile.operators) row.kind = row.name = row.product = "a|b\n| c |";
  hostile.outliers = {{"a|b\n", 1, 0.5, 0.5, true}};
  for (auto& row : hostile.totals.files) row.path = "x|y\n";
  for (const RunReport& report : {RunReport{}, sample_report(), sample_running_report({}, 5), hostile})
    require_tables(to_markdown(report));
}

TEST_CASE("the Markdown report has the headline, the protocol and the hashes", "[report][markdown]") {
  const std::string text = to_markdown(sample_report());
  REQUIRE_THAT(text, Contains("# smollm2-135m-instruct"));
  REQUIRE_THAT(text, Contains("| perplexity | 20.71 | 25.93 | +25.2 % |"));
  REQUIRE_THAT(text, Contains("| size of the tensors | 269 MB | 114 MB | −57.6 % |"));
  REQUIRE_THAT(
      text, Contains("mean loss over the last 2047 tokens") && Contains("c0ffee5f1d7a84ff2f8cbbd30a0fb2d2"));
  REQUIRE_THAT(text, Contains("## Warnings") && Contains("lm\\_head is tied"));
}

TEST_CASE("the Markdown report of an unfinished run begins with that", "[report][markdown]") {
  const std::string text = to_markdown(sample_running_report({}, 5));
  REQUIRE(text.find("> **running**: ") < text.find("| --- |"));
  REQUIRE_THAT(text, Contains("5 of 30 blocks are done") && Contains("Not evaluated."));
}

TEST_CASE("a job cannot end its own code block", "[report][markdown]") {
  RunReport report;
  report.job_json = "\"````\n# heading\"";
  REQUIRE_THAT(to_markdown(report), Contains("`````json\n\"````\n# heading\"\n`````\n"));
}
