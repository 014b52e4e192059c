// Sparsity shared out over the model: the survey before the block loop, and what it decides.
#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "lcomp/core/error.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

Json allocated(const std::string& method, const std::string& allocation, const Json& more = Json::object()) {
  Json pass = {{"method", method}, {"allocation", allocation}, {"sparsity", 0.6}};
  pass.update(more);
  return pass;
}

Json allocated_job(const fs::path& output, const std::string& method, const std::string& allocation,
                   const Json& more = Json::object()) {
  return test::job_with(output, Json::array({allocated(method, allocation, more)}));
}

struct Zeros {
  int64_t removed = 0;
  int64_t weights = 0;
  double share() const { return static_cast<double>(removed) / static_cast<double>(weights); }
};

/// Zeros by operator, from the written checkpoint.
std::map<std::string, Zeros> zeros_of(const fs::path& output) {
  const auto model = model::Model::open(output);
  std::map<std::string, Zeros> zeros;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const auto& op : model.architecture().operators(block)) {
      const at::Tensor w = model.load_weight(op)->dense();
      zeros[op.name] = {w.eq(0).sum().item<int64_t>(), w.numel()};
    }
  }
  return zeros;
}

int64_t total(const std::map<std::string, Zeros>& zeros) {
  int64_t sum = 0;
  for (const auto& [name, z] : zeros) sum += z.removed;
  return sum;
}

double spread(const std::map<std::string, Zeros>& zeros) {
  const auto [least, most] =
      std::minmax_element(zeros.begin(), zeros.end(),
                          [](const auto& a, const auto& b) { return a.second.share() < b.second.share(); });
  return most->second.share() - least->second.share();
}

}  // namespace

TEST_CASE("an allocation removes as many weights as uniform sparsity does, from other places",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  const std::vector<std::pair<const char*, const char*>> cases = {
      {"wanda", "owl"},        {"wanda", "budget"},    {"magnitude", "owl"}, {"magnitude", "budget"},
      {"magnitude", "global"}, {"ria", "budget"},      {"obd", "global"},    {"obd", "budget"},
      {"sparsegpt", "owl"},    {"sparsegpt", "budget"}};
  int64_t widest = 0;
  for (const auto& [method, allocation] : cases) {
    CAPTURE(method, allocation);
    const Json scope = std::string(allocation) == "global" ? Json{{"scope", "tensor"}} : Json::object();
    const fs::path even = dir / (std::string(method) + "_uniform_" + scope.dump().substr(0, 5));
    if (!fs::exists(even)) test::run(allocated_job(even, method, "uniform", scope));
    const fs::path output = dir / (std::string(method) + "_" + allocation);
    const auto report = test::run(allocated_job(output, method, allocation));
    const auto zeros = zeros_of(output);
    for (const auto& row : report.operators) widest = std::max(widest, row.out_features);
    const int64_t off = std::abs(total(zeros) - total(zeros_of(even)));
    REQUIRE(off <= (std::string(allocation) == "global" ? 0 : widest));
    REQUIRE(spread(zeros) > 0.05);
    // The most by default, and a weight of each row for rounding.
    for (const auto& [name, z] : zeros) REQUIRE(z.share() <= 0.75 + 1.0 / 192);
    REQUIRE(report.passes[0].summary.find(" % zeros: ") != std::string::npos);
  }
}

TEST_CASE("OWL gives all operators of a block one sparsity, within twice its spread",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  test::run(allocated_job(dir / "out", "wanda", "owl", {{"owl_spread", 0.1}}));
  const auto zeros = zeros_of(dir / "out");
  // Each is off by one weight of a row at most; the narrowest matrices have 192 columns.
  REQUIRE(spread(zeros) == Approx(0.2).margin(2.1 / 192));
  for (int block = 0; block < 4; ++block) {
    const std::string prefix = "model.layers." + std::to_string(block) + ".";
    REQUIRE(zeros.at(prefix + "self_attn.q_proj").share() ==
            Approx(zeros.at(prefix + "mlp.down_proj").share()).margin(2.0 / 192));
  }
}

TEST_CASE("a global allocation is one threshold over the whole model", "[pipeline][allocation]") {
  const test::TempDir dir;
  test::run(allocated_job(dir / "out", "magnitude", "global", {{"max_sparsity", 1}}));
  const auto before = model::Model::open(test::bundled_model()), after = model::Model::open(dir / "out");
  std::vector<at::Tensor> removed, kept;
  for (int64_t block = 0; block < before.size(); ++block) {
    for (const auto& op : before.architecture().operators(block)) {
      const at::Tensor w = before.load_weight(op)->dense().abs(), gone = after.load_weight(op)->dense().eq(0);
      removed.push_back(w.masked_select(gone));
      kept.push_back(w.masked_select(gone.logical_not()));
    }
  }
  const at::Tensor all_removed = at::cat(removed), all_kept = at::cat(kept);
  // Scores are told apart to 16 bits, as the weights are stored.
  REQUIRE(all_removed.max().item<double>() <= all_kept.min().item<double>());
  // As many as each operator would lose by itself.
  const auto weights = static_cast<double>(all_removed.numel() + all_kept.numel());
  REQUIRE(static_cast<double>(all_removed.numel()) == Approx(0.6 * weights).margin(28));
}

TEST_CASE("the less estimates are trusted, the nearer to each other are the sparsities",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  std::vector<double> spreads;
  for (const double trust : {0.0, 0.5, 1.0}) {
    const fs::path output = dir / std::to_string(trust);
    test::run(allocated_job(output, "wanda", "budget", {{"trust", trust}}));
    spreads.push_back(spread(zeros_of(output)));
  }
  REQUIRE(spreads[0] < spreads[1]);
  REQUIRE(spreads[1] < spreads[2]);
}

TEST_CASE("without a choice every allocation is the uniform one", "[pipeline][allocation]") {
  const test::TempDir dir;
  const Json fixed = {{"min_sparsity", 0.6}, {"max_sparsity", 0.6}};
  test::run(allocated_job(dir / "uniform", "sparsegpt", "uniform"));
  for (const char* allocation : {"owl", "budget"}) {
    test::run(allocated_job(dir / allocation, "sparsegpt", allocation, fixed));
    REQUIRE(test::weights_hash(dir / allocation) == test::weights_hash(dir / "uniform"));
  }
}

TEST_CASE("overrides bound the choice and say what counts for the budget; ignored operators stay",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  for (const char* allocation : {"owl", "budget"}) {
    CAPTURE(allocation);
    const Json more = {
        {"ignore", {"k_proj"}},
        {"overrides", Json::array({{{"match", "down_proj"}, {"max_sparsity", 0.6}},
                                   {{"match", "up_proj"}, {"sparsity", 0.3}, {"max_sparsity", 0.4}}})}};
    test::run(allocated_job(dir / allocation, "wanda", allocation, more));
    double budget = 0, removed = 0;
    for (const auto& [name, z] : zeros_of(dir / allocation)) {
      CAPTURE(name);
      if (name.ends_with("k_proj")) {
        REQUIRE(z.share() < 0.01);
        continue;
      }
      if (name.ends_with("down_proj")) REQUIRE(z.share() <= 0.6 + 0.01);
      if (name.ends_with("up_proj")) REQUIRE(z.share() <= 0.4 + 0.01);
      budget += (name.ends_with("up_proj") ? 0.3 : 0.6) * static_cast<double>(z.weights);
      removed += static_cast<double>(z.removed);
    }
    REQUIRE(removed == Approx(budget).epsilon(0.01));
  }
}

TEST_CASE("an operator may be bound below the pass's sparsity: the others lose what it keeps",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  const Json protect = {{"overrides", Json::array({{{"match", "down_proj"}, {"max_sparsity", 0.4}}})}};
  for (const auto& [method, allocation] :
       {std::pair{"wanda", "owl"}, std::pair{"ria", "budget"}, std::pair{"magnitude", "global"}}) {
    CAPTURE(method, allocation);
    test::run(allocated_job(dir / allocation, method, allocation, protect));
    Zeros all;
    for (const auto& [name, z] : zeros_of(dir / allocation)) {
      CAPTURE(name);
      if (name.ends_with("down_proj")) REQUIRE(z.share() <= 0.4 + 0.01);
      all.removed += z.removed;
      all.weights += z.weights;
    }
    REQUIRE(all.share() == Approx(0.6).epsilon(0.01));
  }
}

TEST_CASE("the shares and the bytes do not depend on threads or on where activations are kept",
          "[pipeline][allocation][determinism]") {
  const test::TempDir dir;
  for (const auto& [method, allocation] :
       {std::pair{"sparsegpt", "budget"}, {"wanda", "owl"}, {"obd", "global"}}) {
    CAPTURE(method, allocation);
    const std::string name = std::string(method) + allocation;
    Json job = allocated_job(dir / (name + "one"), method, allocation);
    test::run(job);
    for (const char* cache : {"memory", "disk"}) {
      job["output"] = (dir / (name + cache)).string();
      job["threads"] = 2;
      job["calibration"]["cache"] = cache;
      test::run(job);
      REQUIRE(test::weights_hash(dir / (name + cache)) == test::weights_hash(dir / (name + "one")));
    }
  }
}

TEST_CASE("a run killed while it surveys or prunes by an allocation ends in the same bytes",
          "[pipeline][allocation][resume]") {
  const test::TempDir dir;
  for (const auto& [method, allocation] : {std::pair{"wanda", "budget"}, {"magnitude", "global"}}) {
    CAPTURE(method, allocation);
    const std::string name = std::string(method) + allocation;
    test::Watcher watcher;
    test::run(allocated_job(dir / name, method, allocation), watcher);
    const std::string expected = test::weights_hash(dir / name);
    for (int sign = 3; sign < watcher.signs; sign += 9) {
      CAPTURE(sign);
      const fs::path output = dir / (name + std::to_string(sign));
      REQUIRE(test::run_in_child(allocated_job(output, method, allocation), sign).killed);
      REQUIRE_FALSE(fs::exists(output));
      test::run(allocated_job(output, method, allocation));
      REQUIRE(test::weights_hash(output) == expected);
    }
  }
}

TEST_CASE("what an allocation leaves open is settled and spelled out", "[pipeline][allocation]") {
  const auto settled = [](const Json& pass) {
    const auto job = test::parse(test::job_with("out", Json::array({pass})));
    return Json::parse(pipeline::to_json(job)).at("passes").at(0);
  };
  const Json global = settled(allocated("obd", "global"));
  REQUIRE(global["scope"] == "tensor");
  REQUIRE(global["max_sparsity"].get<double>() == Approx(0.75));
  REQUIRE(settled(allocated("obd", "budget", {{"max_sparsity", 0.9}}))["max_sparsity"] == 0.9);
  const Json bounded = settled(
      allocated("wanda", "owl", {{"overrides", Json::array({{{"match", "down_proj"}, {"sparsity", 0.2}}})}}));
  REQUIRE(bounded["scope"] == "row");
  REQUIRE(bounded["overrides"][0]["max_sparsity"].get<double>() == Approx(0.35));
  REQUIRE(settled(allocated("wanda", "uniform"))["max_sparsity"] == 1.0);
}

TEST_CASE("a plan counts the sizes of a uniform allocation and says that they move",
          "[pipeline][allocation]") {
  const test::TempDir dir;
  const auto plan = [&](const char* allocation) {
    return pipeline::plan(test::parse(allocated_job(dir / "out", "wanda", allocation)),
                          pipeline::builtin_methods());
  };
  const auto even = plan("uniform"), shared = plan("budget");
  REQUIRE(shared.bytes_after == even.bytes_after);
  REQUIRE(even.operators[0].scheme == "60 % zeros, bitmask");
  REQUIRE(shared.operators[0].scheme == "about 60 % zeros, bitmask, by budget");
  REQUIRE(shared.needs_gradients);
  REQUIRE_FALSE(plan("owl").needs_gradients);
}

TEST_CASE("allocations that cannot be are refused before anything is read", "[pipeline][allocation]") {
  const test::TempDir dir;
  const auto error = [&](const Json& pass, const char* text = nullptr) {
    Json job = test::job_with(dir / "out", Json::array({pass}));
    if (text != nullptr) job["calibration"]["text"] = text;
    return test::error_text([&] { test::run(job); });
  };
  REQUIRE_THAT(
      error(allocated("wanda", "owl", {{"pattern", "2:4"}, {"sparsity", 0.5}})),
      Catch::Contains("[job: /passes/0] [wanda] pattern must be unstructured for allocation owl: every "
                      "operator has as many zeros in a pattern; it is 2:4"));
  for (const char* method : {"wanda", "ria", "sparsegpt"}) {
    REQUIRE_THAT(error(allocated(method, "global")),
                 Catch::Contains("allocation must not be global: the scores of the method do not compare "
                                 "between operators; magnitude and obd have some that do"));
  }
  REQUIRE_THAT(error(allocated("magnitude", "global", {{"scope", "row"}})),
               Catch::Contains("scope must be tensor for allocation global; it is row"));
  REQUIRE_THAT(
      error(allocated("wanda", "budget", {{"max_sparsity", 0.5}})),
      Catch::Contains("the zeros asked for must fit between min_sparsity and max_sparsity of the operators; "
                      "they are 59.") &&
          Catch::Contains("and the bounds allow 0 to 50 %"));
  REQUIRE_THAT(error(allocated("wanda", "budget", {{"min_sparsity", 0.5}, {"max_sparsity", 0.4}})),
               Catch::Contains("min_sparsity must be at most max_sparsity; they are 0.5 and 0.4"));
  REQUIRE_THAT(error(allocated("wanda", "budget",
                               {{"overrides", Json::array({{{"match", "mlp.*"}, {"max_sparsity", 0.3}}})}})),
               Catch::Contains("the zeros asked for must fit"));
  REQUIRE_THAT(
      error(allocated("magnitude", "owl"), ""),
      Catch::Contains("[job: /calibration/text] must name a text, which the method magnitude takes its "
                      "statistics from with these settings"));
  REQUIRE_THAT(
      error(allocated("wanda", "owl",
                      {{"overrides", Json::array({{{"match", "q_proj"}, {"allocation", "budget"}}})}})),
      Catch::Contains("allocation] must be as in the pass, since it holds for all of its operators: "
                      "\"owl\"; it is \"budget\""));
  REQUIRE_FALSE(fs::exists(dir / "out"));
}
