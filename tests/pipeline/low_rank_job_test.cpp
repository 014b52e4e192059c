// Factors as a job: what is stored and read back, how ranks are shared out, and what may follow.
#include <ATen/ATen.h>

#include <map>

#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/quant/quantized_weight.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

const std::vector<const char*> kFamily = {"svd", "fwsvd", "asvd", "svd_llm", "pca"};

Json factor(const std::string& method, const Json& more = Json::object()) {
  Json entry = {{"method", method}};
  entry.update(more);
  return entry;
}

Json factor_job(const fs::path& output, const std::string& method, const Json& more = Json::object()) {
  return test::job_with(output, Json::array({factor(method, more)}));
}

std::map<std::string, WeightPtr> read_back(const fs::path& output) {
  const auto model = model::Model::open(output);
  std::map<std::string, WeightPtr> weights;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const auto& op : model.architecture().operators(block)) weights[op.name] = model.load_weight(op);
  }
  return weights;
}

double total_loss(const pipeline::RunReport& report) {
  double sum = 0;
  for (const auto& row : report.operators) sum += row.loss.value();
  return sum;
}

}  // namespace

TEST_CASE("every method of the family writes smaller factors that are read back exactly",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto dense_size = fs::file_size(test::bundled_model() / "model.safetensors");
  for (const char* method : kFamily) {
    for (const char* form : {"pair", "pivoted"}) {
      CAPTURE(method, form);
      const fs::path output = dir / (std::string(method) + form);
      const Json job = factor_job(output, method, {{"removed", 0.3}, {"form", form}});
      const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
      const auto report = test::run(job);
      REQUIRE(fs::file_size(output / "model.safetensors") < dense_size);
      const auto weights = read_back(output);
      int64_t parameters = 0, elements = 0;
      for (const auto& row : report.operators) {
        const auto& weight = dynamic_cast<const ProductWeight&>(*weights.at(row.name));
        const bool pivoted = dynamic_cast<const lowrank::IdentityRowsWeight*>(weight.factors()[0].get());
        REQUIRE(pivoted == (std::string(form) == "pivoted"));
        REQUIRE(row.parameters == weight.parameters());
        REQUIRE(row.macs == weight.macs_per_token());
        REQUIRE(row.bytes_after == weight.bytes());
        parameters += weight.parameters();
        elements += row.out_features * row.in_features;
      }
      REQUIRE(static_cast<double>(parameters) <= 0.7 * static_cast<double>(elements));
      REQUIRE(static_cast<double>(parameters) > 0.68 * static_cast<double>(elements));
      REQUIRE(report.totals.parameters_after == report.totals.parameters);
      REQUIRE(report.totals.numbers_after == report.totals.parameters - elements + parameters);
      REQUIRE(report.totals.macs_before == elements);
      REQUIRE(report.totals.macs_after == parameters);
      for (const auto& op : plan.operators) REQUIRE(op.bytes_after == weights.at(op.name)->bytes());
      Observer silent;
      REQUIRE(pipeline::verify(output, silent).passed);
    }
  }
}

TEST_CASE("factors: the optimum loses least, the pivoted form less than a pair, the update less than none",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto loss = [&](const std::string& name, const std::string& method, const Json& more) {
    Json job = factor_job(dir / name, method, more);
    job["calibration"]["samples"] = 16;
    return total_loss(test::run(job));
  };
  const Json pair = {{"form", "pair"}, {"removed", 0.4}};
  const Json plain = {{"form", "pair"}, {"removed", 0.4}, {"mismatch", "none"}};
  const double best = loss("svd_llm", "svd_llm", plain);
  REQUIRE(loss("pivoted", "svd_llm", {{"removed", 0.4}, {"mismatch", "none"}}) < 0.8 * best);
  Json updated = pair;
  updated["update"] = true;
  const double svd = loss("svd", "svd", updated), asvd = loss("asvd", "asvd", updated);
  REQUIRE(best < asvd);
  REQUIRE(asvd < svd);
}

TEST_CASE("factors of few bits are stored packed, and lose little", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const Json more = {{"removed", 0.3}, {"mismatch", "none"}};
  Json coded = more;
  coded["factor_bits"] = 8;
  const auto report = test::run(factor_job(dir / "coded", "svd_llm", coded));
  const auto plain = test::run(factor_job(dir / "plain", "svd_llm", more));
  REQUIRE(report.totals.bytes_after < 0.75 * static_cast<double>(plain.totals.bytes_after));
  REQUIRE(total_loss(report) < 1.1 * total_loss(plain));
  for (const auto& [name, weight] : read_back(dir / "coded")) {
    const auto& product = dynamic_cast<const ProductWeight&>(*weight);
    REQUIRE(dynamic_cast<const quant::QuantizedWeight*>(product.factors()[1].get()) != nullptr);
  }
}

TEST_CASE("ranks that are shared out remove what was asked for, and say so", "[pipeline][lowrank]") {
  const test::TempDir dir;
  for (const char* allocation : {"energy", "sensitivity", "budget"}) {
    CAPTURE(allocation);
    const auto report =
        test::run(factor_job(dir / allocation, "svd_llm", {{"removed", 0.3}, {"allocation", allocation}}));
    int64_t left = 0, all = 0;
    for (const auto& row : report.operators) {
      left += row.parameters.value_or(row.out_features * row.in_features);
      all += row.out_features * row.in_features;
    }
    const double removed = 1 - static_cast<double>(left) / static_cast<double>(all);
    REQUIRE(removed > 0.29);
    REQUIRE(removed < 0.32);
    REQUIRE_THAT(report.passes[0].summary, Catch::Contains("% removed: "));
  }
}

TEST_CASE("an operator stays dense where its factors would not be smaller", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto report = test::run(factor_job(dir / "out", "svd", {{"rank", 120}, {"form", "pair"}}));
  for (const auto& row : report.operators) {
    const bool smaller = 120 * (row.out_features + row.in_features) < row.out_features * row.in_features &&
                         120 <= std::min(row.out_features, row.in_features);
    REQUIRE(row.parameters.has_value() == smaller);
    if (!smaller) REQUIRE(row.weight_error == 0.0);
  }
}

TEST_CASE("sums of a quantized or sparse and a low-rank part", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto run = [&](const std::string& name, const std::string& method, const Json& more) {
    Json job = factor_job(dir / name, method, more);
    job["calibration"]["samples"] = 16;
    const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
    auto report = test::run(job);
    const auto weights = read_back(dir / name);
    for (const auto& op : plan.operators) REQUIRE(op.bytes_after == weights.at(op.name)->bytes());
    return report;
  };
  for (const char* solver : {"rtn", "gptq"}) {
    CAPTURE(solver);
    const Json scheme = {{"bits", 3}, {"group_size", 64}, {"solver", solver}, {"mismatch", "none"}};
    const auto with = [&](const Json& more) {
      Json all = scheme;
      all.update(more);
      return all;
    };
    const std::string name = solver;
    const double without = total_loss(run(name + "0", "lqer", with({{"rank", 0}})));
    const double once = total_loss(run(name + "1", "lqer", with({{"rank", 16}})));
    const double many = total_loss(run(name + "8", "lqer", with({{"rank", 16}, {"iterations", 8}})));
    REQUIRE(once < without);
    REQUIRE(many < once);
  }
  const auto oats = run("oats", "oats", {{"removed", 0.5}, {"iterations", 20}, {"refit", false}});
  const auto wanda = run("wanda", "oats", {{"removed", 0.5}, {"rank_share", 0}, {"refit", false}});
  REQUIRE(total_loss(oats) < total_loss(wanda));
  int64_t left = 0, all = 0;
  for (const auto& row : oats.operators) {
    left += row.parameters.value();
    all += row.out_features * row.in_features;
  }
  REQUIRE(static_cast<double>(left) <= 0.5 * static_cast<double>(all));
  const auto& sum = dynamic_cast<const SumWeight&>(*read_back(dir / "oats").begin()->second);
  REQUIRE(dynamic_cast<const ProductWeight*>(sum.parts()[1].get()) != nullptr);
}

TEST_CASE("tensor trains as a job: sizes as planned, read back, worse than the best factors",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  double before = 0;
  for (const int cores : {2, 3}) {
    CAPTURE(cores);
    const fs::path output = dir / std::to_string(cores);
    const Json job = factor_job(output, "tensor_train", {{"removed", 0.3}, {"cores", cores}});
    const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
    const auto report = test::run(job);
    const auto weights = read_back(output);
    for (const auto& op : plan.operators) REQUIRE(op.bytes_after == weights.at(op.name)->bytes());
    REQUIRE(report.totals.numbers_after < report.totals.parameters);
    const auto& train = dynamic_cast<const lowrank::TensorTrainWeight&>(*weights.begin()->second);
    REQUIRE(static_cast<int>(train.cores().size()) == cores);
    REQUIRE(total_loss(report) > before);
    before = total_loss(report);
    Observer silent;
    REQUIRE(pipeline::verify(output, silent).passed);
  }
  REQUIRE(total_loss(test::run(factor_job(dir / "svd", "svd_llm", {{"removed", 0.3}}))) < before);
}

TEST_CASE("factored jobs give the same bytes with two threads, and when they are killed and continued",
          "[pipeline][lowrank][determinism][resume]") {
  const test::TempDir dir;
  for (const auto& entry :
       {factor("svd_llm", {{"allocation", "budget"}}), factor("fwsvd"), factor("pca"), factor("tensor_train"),
        factor("oats", {{"iterations", 5}}), factor("lqer", {{"group_size", 64}, {"solver", "gptq"}})}) {
    const std::string method = entry["method"];
    CAPTURE(method);
    test::Watcher watcher;
    test::run(test::job_with(dir / method, Json::array({entry})), watcher);
    const std::string expected = test::weights_hash(dir / method);
    Json two = test::job_with(dir / (method + "-two"), Json::array({entry}));
    two["threads"] = 2;
    test::run(two);
    REQUIRE(test::weights_hash(dir / (method + "-two")) == expected);
    const Json again = test::job_with(dir / (method + "-killed"), Json::array({entry}));
    REQUIRE(test::run_in_child(again, watcher.signs * 2 / 3).killed);
    test::run(again);
    REQUIRE(test::weights_hash(dir / (method + "-killed")) == expected);
  }
}

TEST_CASE("factors: settings and orders that cannot work are refused", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto refusal = [&](const Json& passes) {
    return test::error_text([&] {
      pipeline::plan(test::parse(test::job_with(dir / "out", passes)), pipeline::builtin_methods());
    });
  };
  CHECK_THAT(refusal(Json::array({factor("svd_llm"), test::pass("rtn")})),
             Catch::Contains("must not be changed after it is factored; q_proj is factored by \"svd_llm\""));
  CHECK_THAT(refusal(Json::array({factor("wanda"), factor("svd_llm")})), Catch::Contains("keep what is 0"));
  CHECK_THAT(refusal(Json::array({factor("svd_llm", {{"allocation", "budget"}, {"rank", 8}})})),
             Catch::Contains("rank must be 0"));
  CHECK_THAT(refusal(Json::array(
                 {factor("svd_llm", {{"allocation", "energy"}, {"removed", 0.5}, {"max_removed", 0.4}})})),
             Catch::Contains("max_removed must be at least removed"));
  CHECK_THAT(refusal(Json::array({factor("svd", {{"factor_bits", 4}, {"factor_group_size", 64}})})),
             Catch::Contains("/passes/0"));
  CHECK_THAT(refusal(Json::array({factor("oats", {{"pattern", "5:4"}})})), Catch::Contains("N:M"));
}
