// Bits chosen for the whole model under a budget: the survey before the block loop, and what it decides.
#include <algorithm>
#include <map>

#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

Json mixed_job(const fs::path& output, const Json& more = Json::object()) {
  Json pass = {{"method", "mixed_precision"}, {"group_size", 64}, {"bits_per_weight", 4.5}};
  pass.update(more);
  return test::job_with(output, Json::array({pass}));
}

/// Bits by operator, from the written checkpoint.
std::map<std::string, int64_t> bits_of(const fs::path& output) {
  const auto model = model::Model::open(output);
  std::map<std::string, int64_t> bits;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const auto& op : model.architecture().operators(block))
      bits[op.name] = model.quantization()->scheme_for(op.name)->bits;
  }
  return bits;
}

}  // namespace

TEST_CASE("the budget is kept, and operators that read one input have the same bits",
          "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  for (const char* sensitivity : {"model_loss", "outputs"}) {
    CAPTURE(sensitivity);
    const auto output = dir / sensitivity;
    const auto report = test::run(mixed_job(output, {{"sensitivity", sensitivity}}));
    REQUIRE(*report.totals.operator_bits_per_weight <= 4.5);
    REQUIRE(*report.totals.operator_bits_per_weight > 4.3);
    const auto bits = bits_of(output);
    std::map<int64_t, int> used;
    for (const auto& [name, width] : bits) ++used[width];
    REQUIRE(used.size() > 1);
    for (int block = 0; block < 4; ++block) {
      const std::string prefix = "model.layers." + std::to_string(block) + ".";
      REQUIRE(bits.at(prefix + "self_attn.q_proj") == bits.at(prefix + "self_attn.k_proj"));
      REQUIRE(bits.at(prefix + "self_attn.q_proj") == bits.at(prefix + "self_attn.v_proj"));
      REQUIRE(bits.at(prefix + "mlp.gate_proj") == bits.at(prefix + "mlp.up_proj"));
    }
    REQUIRE(report.passes[0].summary.find(" bits per weight: int") != std::string::npos);
  }
}

TEST_CASE("the less estimates are trusted, the nearer to each other are the widths",
          "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  std::vector<int64_t> spread;
  for (const double trust : {0.0, 1.0}) {
    const auto output = dir / std::to_string(trust);
    test::run(mixed_job(output, {{"trust", trust}}));
    const auto bits = bits_of(output);
    const auto [least, most] = std::minmax_element(
        bits.begin(), bits.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    spread.push_back(most->second - least->second);
  }
  REQUIRE(spread[0] <= 1);
  REQUIRE(spread[1] > 1);
}

TEST_CASE("without a choice mixed precision is gptq", "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  test::run(mixed_job(dir / "mixed", {{"min_bits", 4}, {"max_bits", 4}}));
  test::run(
      test::job_with(dir / "gptq", Json::array({{{"method", "gptq"}, {"bits", 4}, {"group_size", 64}}})));
  REQUIRE(test::weights_hash(dir / "mixed") == test::weights_hash(dir / "gptq"));
}

TEST_CASE("an override narrows the choice for its operators", "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  test::run(
      mixed_job(dir / "out", {{"overrides", Json::array({{{"match", "down_proj"}, {"min_bits", 6}}})}}));
  for (const auto& [name, bits] : bits_of(dir / "out")) {
    if (name.ends_with("down_proj")) REQUIRE(bits >= 6);
  }
}

TEST_CASE("the choice and the bytes do not depend on threads or on where activations are kept",
          "[pipeline][mixed_precision][determinism]") {
  const test::TempDir dir;
  Json job = mixed_job(dir / "one");
  test::run(job);
  for (const char* cache : {"memory", "disk"}) {
    job["output"] = (dir / cache).string();
    job["threads"] = 2;
    job["calibration"]["cache"] = cache;
    test::run(job);
    REQUIRE(test::weights_hash(dir / cache) == test::weights_hash(dir / "one"));
  }
}

TEST_CASE("a run killed in its survey continues and ends in the same bytes",
          "[pipeline][mixed_precision][resume]") {
  const test::TempDir dir;
  test::Watcher watcher;
  test::run(mixed_job(dir / "whole"), watcher);
  const std::string expected = test::weights_hash(dir / "whole");
  for (int sign = 3; sign < watcher.signs; sign += 7) {
    CAPTURE(sign);
    const fs::path output = dir / ("killed" + std::to_string(sign));
    REQUIRE(test::run_in_child(mixed_job(output), sign).killed);
    REQUIRE_FALSE(fs::exists(output));
    test::run(mixed_job(output));
    REQUIRE(test::weights_hash(output) == expected);
  }
}

TEST_CASE("a survey that is finished is not made again", "[pipeline][mixed_precision][resume]") {
  const test::TempDir dir;
  test::Watcher first;
  first.stops = [&](int) { return !first.steps.empty() && first.steps.back().phase == "compress"; };
  REQUIRE_THROWS_AS(test::run(mixed_job(dir / "out"), first), Interrupted);
  test::Watcher second;
  test::run(mixed_job(dir / "out"), second);
  for (const auto& step : second.steps) REQUIRE(step.phase != "survey");
}

TEST_CASE("budgets and widths that cannot be met are refused before anything is read",
          "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  const auto error = [&](const Json& more) {
    return test::error_text([&] { test::run(mixed_job(dir / "out", more)); });
  };
  REQUIRE_THAT(error({{"min_bits", 4}, {"bits_per_weight", 4}}),
               Catch::Contains("[job: /passes/0] [mixed_precision] bits_per_weight must allow min_bits "
                               "everywhere, which takes 4.25") &&
                   Catch::Contains("with the scales; it is 4"));
  REQUIRE_THAT(error({{"min_bits", 5}, {"max_bits", 4}}),
               Catch::Contains("min_bits must not exceed max_bits; they are 5 and 4"));
  REQUIRE_THAT(error({{"overrides", Json::array({{{"match", "q_proj"}, {"max_bits", 3}},
                                                 {{"match", "k_proj"}, {"min_bits", 4}}})}}),
               Catch::Contains("min_bits must not exceed max_bits for operators that read one input; for "
                               "'model.layers.0.self_attn.q_proj' and those beside it they are 4 and 3"));
  REQUIRE_THAT(error({{"bits", 3}}),
               Catch::Contains("bits is what the method chooses, between min_bits and max_bits; set those "
                               "instead of bits, which is 3"));
  REQUIRE_FALSE(fs::exists(dir / "out"));
}

TEST_CASE("what a job leaves open is settled by its place and its other settings, and spelled out",
          "[pipeline][mixed_precision]") {
  const test::TempDir dir;
  const auto settled = [&](const Json& passes, size_t p) {
    const auto job = test::parse(test::job_with(dir / "out", passes));
    return Json::parse(pipeline::to_json(job)).at("passes").at(p);
  };
  const Json last = settled(Json::array({{{"method", "gptq"}}}), 0);
  REQUIRE(last["mismatch"] == "split");
  REQUIRE(last["sweeps"] == 2);
  REQUIRE(last["refit"] == true);
  const Json first =
      settled(Json::array({{{"method", "gptq"}, {"targets", {"*_proj"}}}, {{"method", "rtn"}}}), 0);
  REQUIRE(first["mismatch"] == "none");
  REQUIRE(settled(Json::array({{{"method", "gptq"}, {"true_sequential", false}}}), 0)["mismatch"] == "none");
  REQUIRE(settled(Json::array({{{"method", "gptq"}, {"sweeps", 0}}}), 0)["sweeps"] == 0);
  const Json nf4 = settled(Json::array({{{"method", "gptq"}, {"format", "nf4"}}}), 0);
  REQUIRE(nf4["sweeps"] == 0);
  REQUIRE(nf4["refit"] == false);
  const Json mixed = settled(Json::array({{{"method", "mixed_precision"}}}), 0);
  REQUIRE(mixed["mismatch"] == "split");
  const Json override = settled(
      Json::array(
          {{{"method", "gptq"}, {"overrides", Json::array({{{"match", "down_proj"}, {"format", "nf4"}}})}}}),
      0);
  REQUIRE(override["overrides"][0]["sweeps"] == 0);
  REQUIRE(override["sweeps"] == 2);
}
