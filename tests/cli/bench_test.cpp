// lcomp bench: what it prints and refuses. How fast anything is is no matter of a test.
#include <catch2/catch.hpp>
#include <nlohmann/json.hpp>

#include "support/process.h"
#include "support/test_data.h"

using lcomp::test::run_lcomp;
using nlohmann::json;

namespace {

std::string bundled_model() {
  return (lcomp::test::source_dir() / "examples/model").string();
}

void check_row(const json& row) {
  CAPTURE(row.dump());
  for (const char* key : {"name", "stored", "density", "tokens", "speedup", "faster", "bytes", "dense_bytes"})
    CHECK(row.contains(key));
  for (const char* of : {"measured", "dense"}) {
    CHECK(row.at(of).at("median_ms") > 0);
    CHECK(row.at(of).at("p90_ms") >= row.at(of).at("median_ms"));
  }
  const double ratio =
      row.at("dense").at("median_ms").get<double>() / row.at("measured").at("median_ms").get<double>();
  CHECK(row.at("speedup").get<double>() == Approx(ratio));
  if (row.at("faster")) CHECK(ratio > 1);
}

}  // namespace

TEST_CASE("bench has a row for each kind of operator, their sum and all blocks", "[cli][bench]") {
  const auto result = run_lcomp({"bench", bundled_model(), "--vs", bundled_model(), "--batch", "1,4",
                                 "--tokens", "8", "--repeat", "1", "--json", "--quiet"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const json document = json::parse(result.out);
  CHECK(document.at("threads") == 1);
  CHECK(document.at("rounds") == 1);
  REQUIRE(document.at("rows").size() == 2 * (7 + 1) + 1);
  for (const json& row : document.at("rows")) check_row(row);
  CHECK(document.at("rows").at(0).at("name") == "q_proj");
  CHECK(document.at("rows").at(15).at("name") == "all operators");
  CHECK(document.at("rows").at(16).at("name") == "all blocks");
  CHECK(document.at("rows").at(16).at("tokens") == 8);
}

TEST_CASE("bench has a row for each storage, density and batch", "[cli][bench]") {
  const auto result = run_lcomp({"bench", "--shape", "64x128", "--density", "0.5,0.25", "--batch", "1,8",
                                 "--repeat", "1", "--json", "--quiet"});
  INFO(result.err);
  REQUIRE(result.exit_code == 0);
  const json rows = json::parse(result.out).at("rows");
  CHECK(rows.size() == 2 * (2 * 4 + 1));  // 2:4 has one density
  for (const json& row : rows) check_row(row);
}

TEST_CASE("bench says it where nothing is gained, and how it measured", "[cli][bench]") {
  // A full matrix with 48 bits for each element, and the dense one with 16 or 32.
  const auto result = run_lcomp({"bench", "--shape", "512x512", "--density", "1", "--storage", "csr",
                                 "--batch", "64", "--repeat", "4", "--quiet"});
  REQUIRE(result.exit_code == 0);
  CHECK_THAT(result.out,
             Catch::Contains("storage") && Catch::Contains("dense ms") && Catch::Contains("this ms"));
  CHECK_THAT(result.out,
             Catch::Contains("medians of 4 rounds of both in turn, processor time of one thread"));
  CHECK_THAT(result.out, Catch::Contains("x  not faster\n"));
}

TEST_CASE("bench refuses what it cannot measure", "[cli][bench]") {
  const auto error = [](const std::vector<std::string>& arguments, int exit_code) {
    const auto result = run_lcomp(arguments);
    CHECK(result.exit_code == exit_code);
    CHECK(result.out.empty());
    return result.err;
  };
  CHECK(error({"bench"}, 2) == "lcomp: error: [bench] DIR or --shape must be given; neither is\n");
  for (const char* shape : {"64", "64x", "x64", "64x64x64", "0x64", "-1x4", "64x64 "}) {
    CHECK(error({"bench", "--shape", shape}, 2) ==
          "lcomp: error: [--shape] must be OUTxIN, two numbers from 1 up; got '" + std::string(shape) +
              "'\n");
  }
  CHECK_THAT(error({"bench", "--shape", "64x64", "--density", "1.5"}, 2), Catch::Contains("--density"));
  CHECK_THAT(error({"bench", "--shape", "64x64", "--storage", "coo"}, 2), Catch::Contains("--storage"));
  CHECK_THAT(error({"bench", bundled_model(), "--density", "0.5"}, 2), Catch::Contains("--shape"));
  CHECK_THAT(error({"bench", bundled_model(), "--shape", "64x64"}, 2), Catch::Contains("--shape"));
  CHECK_THAT(error({"bench", "--vs", bundled_model()}, 2), Catch::Contains("--vs"));
  CHECK_THAT(error({"bench", "--shape", "63x63", "--storage", "2:4", "--repeat", "1", "--quiet"}, 2),
             Catch::Contains("2:4 must divide the"));
  CHECK_THAT(error({"bench", "nowhere", "--quiet"}, 3), Catch::Contains("[nowhere]"));
}
