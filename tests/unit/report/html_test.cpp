#include <algorithm>
#include <catch2/catch.hpp>

#include "lcomp/report/report.h"
#include "support/html_check.h"
#include "support/sample_report.h"

using Catch::Matchers::Contains;
using lcomp::pipeline::RunReport;
using lcomp::pipeline::RunStatus;
using lcomp::report::to_html;
using lcomp::test::demo_model;
using lcomp::test::HtmlOutline;
using lcomp::test::outline_html;
using lcomp::test::sample_report;
using lcomp::test::sample_running_report;

namespace {

int64_t count_of(const std::vector<std::string>& all, const std::string& one) {
  return std::count(all.begin(), all.end(), one);
}

/// Every text of a report is this one.
RunReport hostile_report() {
  const std::string evil = "</script></style><script>alert('1')</script>\"'><img src=x onerror=alert(2)>&";
  RunReport report = sample_report(demo_model());
  report.version = report.message = report.started_at = report.finished_at = report.output = evil;
  report.job_json = evil;
  report.status = RunStatus::kFailed;
  report.host.processor = report.host.compute = evil;
  report.host.instructions = {evil};
  report.model.path = report.model.family = report.model.dtype = evil;
  auto& calibration = *report.calibration;
  calibration.file = calibration.text_hash = calibration.tokenizer_hash = calibration.short_policy = evil;
  report.passes[0].method = report.passes[0].summary = evil;
  for (auto& row : report.operators) {
    row.name = evil + row.name;
    row.kind = row.method = row.scheme = row.rung = row.fallback = evil;
    row.fell_back = true;
  }
  for (auto& row : report.totals.files) row.path = row.hash = evil;
  for (auto& row : report.timings.phases) row.phase = evil;
  for (auto& row : report.roofline) row.phase = row.precision = evil;
  for (auto& row : report.evaluation) row.text = row.text_hash = row.tokenizer_hash = row.protocol = evil;
  report.evaluation[1].model = evil;
  report.verification->passed = false;
  report.verification->message = evil;
  report.warnings.assign(20, evil);
  return report;
}

}  // namespace

TEST_CASE("every element of the page is closed in order, for every state of a run", "[report][html]") {
  const std::vector<RunReport> reports = {RunReport{},
                                          sample_report(),
                                          sample_report(demo_model()),
                                          sample_running_report({}, 12),
                                          sample_running_report({}, 0),
                                          sample_report(lcomp::test::big_model()),
                                          hostile_report()};
  for (const RunReport& report : reports) REQUIRE(outline_html(to_html(report)).error.empty());
}

TEST_CASE("the checker of pages sees a page that is not well formed", "[report][html]") {
  REQUIRE(outline_html("<p><b></p></b>").error == "</p> closes 'b'");
  REQUIRE(outline_html("<p>").error == "'p' is not closed");
  REQUIRE(outline_html("</p>").error == "</p> closes ''");
  REQUIRE(outline_html("<p title=\"a > b\" class=c>x</p>").attributes ==
          std::vector<std::string>{"title", "class"});
}

TEST_CASE("the page loads nothing from anywhere", "[report][html]") {
  const std::string page = to_html(sample_report());
  for (const std::string_view outside : {"http:", "https:", "src=", "url(", "@import", "<link", "//cdn"}) {
    INFO(outside);
    REQUIRE(page.find(outside) == std::string::npos);
  }
  const HtmlOutline outline = outline_html(page);
  REQUIRE(count_of(outline.tags, "script") == 1);
  REQUIRE(count_of(outline.tags, "style") == 1);
}

TEST_CASE("text from files stays text wherever it is shown", "[report][html]") {
  const std::string page = to_html(hostile_report());
  const HtmlOutline outline = outline_html(page);
  REQUIRE(outline.error.empty());
  REQUIRE(count_of(outline.tags, "script") == 1);
  REQUIRE(count_of(outline.tags, "img") == 0);
  REQUIRE(count_of(outline.attributes, "onerror") == 0);
  REQUIRE(page.find("<script>alert") == std::string::npos);
  REQUIRE_THAT(page, Contains("&lt;script&gt;alert(&#39;1&#39;)"));
}

TEST_CASE("the heat map has a cell per operator and a column per block", "[report][html]") {
  const std::string page = to_html(sample_report());
  size_t cells = 0;
  for (size_t at = page.find("<td class=\"a"); at != std::string::npos;
       at = page.find("<td class=\"a", at + 1))
    ++cells;
  REQUIRE(cells == 210);
  REQUIRE_THAT(page, Contains("<th scope=col>29</th>") && !Contains("<th scope=col>30</th>"));
  REQUIRE_THAT(page, Contains("title=\"model.layers.29.mlp.down_proj&#10;"));
}

TEST_CASE("the headline has sizes, quality and cost, before and after", "[report][html]") {
  const std::string text = outline_html(to_html(sample_report())).text;
  REQUIRE_THAT(text, Contains("269 MB → 114 MB"));
  REQUIRE_THAT(text, Contains("20.71 → 25.93") && Contains("+25.2 %"));
  REQUIRE_THAT(text, Contains("0.219") && Contains("78.4 %") && Contains("431 MB"));
  REQUIRE_THAT(text, Contains("5f1d7a84ff2f8cbbd30a0fb2d2a7c9f1"));
}

TEST_CASE("what was not measured is said to be not measured", "[report][html]") {
  const std::string text = outline_html(to_html(sample_running_report({}, 3))).text;
  REQUIRE_THAT(text, Contains("not measured") && Contains("Not evaluated.") &&
                         Contains("The output has not been verified."));
  REQUIRE_THAT(text, Contains("compressed size not known yet"));
}

TEST_CASE("a model that grew is not called smaller", "[report][html]") {
  RunReport report = sample_report(demo_model());
  report.totals.bytes_after = report.totals.bytes_before + 1;
  REQUIRE_THAT(to_html(report), Contains("not smaller") && !Contains("times smaller"));
}

TEST_CASE("a run that is not done says so before the first number", "[report][html]") {
  const std::string text = outline_html(to_html(sample_running_report({}, 12))).text;
  REQUIRE(text.find("12 of 30 blocks are done") < text.find("Bits per weight"));
  REQUIRE_THAT(to_html(sample_report()), !Contains("role=status"));
}

TEST_CASE("warnings stand before the first number and none is lost", "[report][html]") {
  RunReport report = sample_report(demo_model());
  report.warnings.clear();
  for (int i = 0; i < 40; ++i) report.warnings.push_back(fmt::format("warning number {};", i));
  const std::string text = outline_html(to_html(report)).text;
  REQUIRE(text.find("40 warnings") < text.find("Bits per weight"));
  for (int i = 0; i < 40; ++i) REQUIRE_THAT(text, Contains(fmt::format("warning number {};", i)));
}

TEST_CASE("fallbacks and rungs are marked in the map and listed", "[report][html]") {
  const std::string page = to_html(sample_report());
  REQUIRE_THAT(page, Contains("rung fell\"") && Contains("rtn: the loss"));
  REQUIRE_THAT(to_html(RunReport{}), Contains("No second moment had to be factored"));
}

TEST_CASE("the page of a large model stays below two megabytes", "[report][html]") {
  REQUIRE(to_html(sample_report(lcomp::test::big_model())).size() < 2'000'000);
}
