#include "lcomp/pipeline/targets.h"

#include <catch2/catch.hpp>

#include "lcomp/core/error.h"
#include "support/error_text.h"
#include "unit/pipeline/toy_methods.h"

using namespace lcomp;
using namespace lcomp::pipeline;
using lcomp::test::error_text;

namespace {

const std::vector<std::string> kOperators = {
    "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj",
    "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj",
};

Job job_with(const std::string& pass_keys) {
  return parse_job(R"({"model": "m", "output": "o", "passes": [{"method": "rtn")" + pass_keys + "}]}", "job",
                   test::toy_methods());
}

/// Bits per operator; 0 where the pass leaves it alone.
std::vector<int64_t> bits(const std::string& pass_keys) {
  std::vector<int64_t> result;
  const auto settings = resolve_targets(job_with(pass_keys), "job", kOperators, {"lm_head"});
  for (const auto& options : settings.at(0)) {
    result.push_back(options ? dynamic_cast<const test::RtnToy&>(*options).get<test::ToyScheme>().bits : 0);
  }
  return result;
}

std::string error(const std::string& pass_keys) {
  return error_text([&] { bits(pass_keys); });
}

using Bits = std::vector<int64_t>;

}  // namespace

TEST_CASE("a glob matches the whole name or all of it behind a dot", "[pipeline][targets]") {
  const std::string name = "model.layers.12.mlp.down_proj";
  for (const char* yes : {"model.layers.12.mlp.down_proj", "layers.12.mlp.down_proj", "down_proj", "layers.*",
                          "*", "layers.*.mlp.down_proj", "layers.1?.mlp.*", "*.down_*", "mlp.*"}) {
    INFO(yes);
    CHECK(matches(yes, name));
  }
  for (const char* no : {"ayers.12.mlp.down_proj", "down", "own_proj", "layers.?.mlp.down_proj", "layers",
                         "mlp", "", "layers.1.*", "*.down"}) {
    INFO(no);
    CHECK_FALSE(matches(no, name));
  }
}

TEST_CASE("a regular expression matches the whole name or all of it behind a dot", "[pipeline][targets]") {
  const std::string name = "model.layers.12.mlp.down_proj";
  CHECK(matches(R"(re:layers\.1[0-9]\.mlp\.(up|down)_proj)", name));
  CHECK(matches("re:.*down.*", name));
  CHECK_FALSE(matches("re:down", name));
  CHECK_FALSE(matches(R"(re:layers\.[0-9]\.mlp.*)", name));
  CHECK_THAT(
      error_text([&] { matches("re:(", name); }),
      Catch::StartsWith("[matches] the pattern must be a regular expression after \"re:\"; got \"re:(\""));
}

TEST_CASE("without targets a pass takes every operator with its own settings", "[pipeline][targets]") {
  CHECK(bits("") == Bits{4, 4, 4, 4, 4, 4});
}

TEST_CASE("targets choose and ignore takes away", "[pipeline][targets]") {
  CHECK(bits(R"(, "targets": ["mlp.*"])") == Bits{0, 4, 4, 0, 4, 4});
  CHECK(bits(R"(, "targets": ["mlp.*"], "ignore": ["layers.0.*"])") == Bits{0, 0, 0, 0, 4, 4});
  CHECK(bits(R"(, "ignore": ["lm_head"])") == Bits{4, 4, 4, 4, 4, 4});
}

TEST_CASE("the last override that matches decides, starting from the settings of the pass",
          "[pipeline][targets]") {
  CHECK(bits(R"(, "bits": 3, "overrides": [{"match": "down_proj", "bits": 8},
                {"match": ["layers.1.*"], "group_size": 32}])") == Bits{3, 3, 8, 3, 3, 3});
}

TEST_CASE("every pattern that matches nothing is named with the nearest operator", "[pipeline][targets]") {
  CHECK(error(R"(, "targets": ["layers.*.mlp.dwon_proj", "mlp.*"], "ignore": ["lm_haed", "lm_head"])") ==
        "[job: /passes/0/targets/0] must match an operator; \"layers.*.mlp.dwon_proj\" matches none; the "
        "nearest name "
        "is \"model.layers.0.mlp.down_proj\"\n"
        "[job: /passes/0/ignore/0] must match an operator; \"lm_haed\" matches none; the nearest name is "
        "\"lm_head\"");
  CHECK(error(R"(, "targets": ["transformer.h"])") ==
        "[job: /passes/0/targets/0] must match an operator; \"transformer.h\" matches none; names look like "
        "\"model.layers.0.self_attn.q_proj\"");
  CHECK(error(R"(, "targets": ["re:nothing"])") ==
        "[job: /passes/0/targets/0] must match an operator; \"re:nothing\" matches none; names look like "
        "\"model.layers.0.self_attn.q_proj\"");
}

TEST_CASE("the head can be ignored but not targeted", "[pipeline][targets]") {
  CHECK_THAT(error(R"(, "targets": ["lm_head"])"),
             Catch::StartsWith("[job: /passes/0/targets/0] must match an operator"));
}

TEST_CASE("an override must match an operator that the pass works on", "[pipeline][targets]") {
  CHECK(error(R"(, "targets": ["mlp.*"], "overrides": [{"match": "q_proj", "bits": 8}])") ==
        "[job: /passes/0/overrides/0/match/0] must match an operator of this pass; \"q_proj\" matches none; "
        "the nearest "
        "name is \"model.layers.0.mlp.up_proj\"");
}

TEST_CASE("a pass that is left without operators is an error", "[pipeline][targets]") {
  CHECK(error(R"(, "ignore": ["*"])") ==
        "[job: /passes/0] a pass must have an operator to work on; \"ignore\" leaves none");
}

TEST_CASE("a bad regular expression is reported beside the other errors", "[pipeline][targets]") {
  const std::string text = error(R"(, "targets": ["re:[", "nothing.like.it"])");
  CHECK_THAT(text,
             Catch::StartsWith("[job: /passes/0/targets/0] must be a regular expression after \"re:\"; got "
                               "\"re:[\" ("));
  CHECK_THAT(text,
             Catch::Contains("\n[job: /passes/0/targets/1] must match an operator; \"nothing.like.it\""));
}

TEST_CASE("a model without operators is told apart from a bad pattern", "[pipeline][targets]") {
  const Job job = job_with(R"(, "targets": ["*"])");
  CHECK(error_text([&] { resolve_targets(job, "job", {}); }) ==
        "[job: /passes/0/targets/0] must match an operator; \"*\" matches none; there are no operators");
}
