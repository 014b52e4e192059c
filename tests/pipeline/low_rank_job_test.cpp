// Factors as a job: what is stored and read back, how ranks are shared out, and what may follow.
#include <ATen/ATen.h>

#include <map>
#include <set>

#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/export.h"
#include "lcomp/pipeline/inspect.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/quant/quantized_weight.h"
#include "pipeline/child_runs.h"
#include "pipeline/edit_model.h"
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

TEST_CASE("operators share the factor that reads their input where that loses less", "[pipeline][lowrank]") {
  const test::TempDir dir;
  for (const char* form : {"pair", "pivoted"}) {
    CAPTURE(form);
    const Json more = {{"removed", 0.5}, {"form", form}, {"mismatch", "none"}};
    Json sharing = more;
    sharing["share"] = "auto";
    const std::string name = form;
    const auto apart = test::run(factor_job(dir / (name + " apart"), "svd_llm", more));
    const auto shared = test::run(factor_job(dir / name, "svd_llm", sharing));
    REQUIRE(total_loss(shared) < total_loss(apart));
    REQUIRE(shared.totals.numbers_after <= apart.totals.numbers_after);
    int sharers = 0;
    for (const auto& [op, weight] : read_back(dir / name)) {
      const auto& product = dynamic_cast<const ProductWeight&>(*weight);
      const auto* with = dynamic_cast<const SharedWeight*>(product.factors()[1].get());
      if (with == nullptr) continue;
      ++sharers;
      REQUIRE(with->bytes() == static_cast<int64_t>(with->owner().size()));
      REQUIRE_THAT(with->owner(), Catch::EndsWith(".weight_factor1"));
    }
    REQUIRE(sharers > 0);
    Observer silent;
    REQUIRE(pipeline::verify(dir / name, silent).passed);
  }
}

TEST_CASE("heads in common bases: dense where that is no larger, smaller below, and read back",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto tucker = [](double hidden, double head) {
    return Json{{"targets", {"self_attn.*"}}, {"hidden_share", hidden}, {"head_share", head}};
  };
  const auto full = test::run(factor_job(dir / "full", "tucker_heads", tucker(1, 1)));
  // Bases as large as the matrices save nothing.
  for (const auto& row : full.operators) REQUIRE(row.weight_error.value() == 0);
  const auto report = test::run(factor_job(dir / "out", "tucker_heads", tucker(0.4, 0.75)));
  REQUIRE(report.operators.size() == 16);
  REQUIRE(report.totals.numbers_after < report.totals.parameters);
  for (const auto& row : report.operators) REQUIRE(row.activation_error.value() < 1);
  const auto weights = read_back(dir / "out");
  const auto& key = dynamic_cast<const ProductWeight&>(*weights.at("model.layers.0.self_attn.k_proj"));
  const auto& basis = dynamic_cast<const SharedWeight&>(*key.factors()[2]);
  REQUIRE(basis.owner() == "model.layers.0.self_attn.q_proj.weight_factor2");
  Observer silent;
  REQUIRE(pipeline::verify(dir / "out", silent).passed);
}

TEST_CASE("heads: without the queries, the operators that are given have bases of their own",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  for (const char* kind : {"self_attn.k_proj", "self_attn.o_proj"}) {
    const auto report =
        test::run(factor_job(dir / kind, "tucker_heads", {{"targets", {kind}}, {"hidden_share", 0.2}}));
    REQUIRE(report.operators.size() == 4);
    for (const auto& row : report.operators) REQUIRE(row.activation_error.value() < 1);
    for (const auto& [name, weight] : read_back(dir / kind))
      REQUIRE((dynamic_cast<const ProductWeight*>(weight.get()) != nullptr) == name.ends_with(kind));
  }
}

TEST_CASE("all layers in common bases: sizes as asked, shared, counted and read back",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  Json job = factor_job(dir / "out", "tucker_layers", {{"removed", 0.3}});
  job["write"] = {{"shard_size", "1 MB"}};
  const auto report = test::run(job);
  REQUIRE_THAT(report.passes[0].summary, Catch::StartsWith("cores of "));
  int64_t numbers = 0, all = 0;
  for (const auto& row : report.operators) {
    numbers += row.parameters.value();
    all += row.out_features * row.in_features;
    REQUIRE(row.activation_error.value() < 1);
  }
  REQUIRE(static_cast<double>(numbers) <= 0.7 * static_cast<double>(all));
  REQUIRE(static_cast<double>(numbers) > 0.68 * static_cast<double>(all));
  const auto weights = read_back(dir / "out");
  const auto& deep = dynamic_cast<const ProductWeight&>(*weights.at("model.layers.3.mlp.up_proj"));
  const auto& first = dynamic_cast<const ProductWeight&>(*weights.at("model.layers.0.mlp.up_proj"));
  for (const size_t basis : {0, 2}) {
    const auto& shared = dynamic_cast<const SharedWeight&>(*deep.factors()[basis]);
    REQUIRE(shared.owner() == ProductWeight::factor_name("model.layers.0.mlp.up_proj", basis));
    REQUIRE(shared.dense().equal(first.factors()[basis]->dense()));
  }
  // Every layer multiplies by the bases, whoever stores them.
  REQUIRE(deep.macs_per_token() == first.macs_per_token());
  REQUIRE(deep.parameters() < first.parameters());
  Observer silent;
  REQUIRE(pipeline::verify(dir / "out", silent).passed);
  const auto heavier = test::run(factor_job(dir / "more", "tucker_layers", {{"removed", 0.6}}));
  REQUIRE(total_loss(heavier) > total_loss(report));
}

TEST_CASE("an operator that stores a factor of others is not changed without them", "[pipeline][lowrank]") {
  const test::TempDir dir;
  test::run(factor_job(dir / "layers", "tucker_layers"));
  Json job = test::job_with(dir / "out", Json::array({test::pass("rtn", {{"targets", {"layers.0.mlp.*"}}})}));
  job["model"] = (dir / "layers").string();
  CHECK_THAT(
      test::error_text([&] { test::run(job); }),
      Catch::Contains("up_proj is stored with a factor that up_proj shares in this model; both must be "
                      "changed, or neither"));
  job["passes"][0]["targets"] = {"mlp.*"};
  test::run(job);
  // The operators that were left alone are what they were.
  const auto before = read_back(dir / "layers"), after = read_back(dir / "out");
  for (const auto& [name, weight] : after) {
    const bool kept = name.find("self_attn") != std::string::npos;
    REQUIRE(weight->dense().equal(before.at(name)->dense()) == kept);
  }
}

TEST_CASE("oats by a pattern: its mask, and the rank that follows from it", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const Json more = {{"pattern", "2:4"}, {"iterations", 3}, {"rank_share", 0.2}, {"form", "pair"}};
  test::run(factor_job(dir / "out", "oats", more));
  for (const auto& [name, weight] : read_back(dir / "out")) {
    const auto& sum = dynamic_cast<const SumWeight&>(*weight);
    const at::Tensor sparse = sum.parts()[0]->dense();
    const at::Tensor kept = (sparse != 0).reshape({sparse.size(0), -1, 4}).sum(2);
    REQUIRE(kept.max().item<int64_t>() <= 2);
    const int64_t out = sparse.size(0), in = sparse.size(1);
    // Half of the numbers are 80 % of what is kept.
    const int64_t rank = static_cast<int64_t>(0.125 * static_cast<double>(out * in)) / (out + in);
    REQUIRE(dynamic_cast<const ProductWeight&>(*sum.parts()[1]).factors()[1]->out_features() == rank);
  }
}

TEST_CASE("allocations remove what was asked, and from no operator more than max_removed",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  for (const char* allocation : {"energy", "sensitivity", "budget"}) {
    for (const int multiple : {1, 16}) {
      CAPTURE(allocation, multiple);
      const std::string name = allocation + std::to_string(multiple);
      const Json job = factor_job(
          dir / name, "svd_llm",
          {{"allocation", allocation}, {"rank_multiple", multiple}, {"removed", 0.3}, {"max_removed", 0.4}});
      const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
      const auto report = test::run(job);
      REQUIRE(static_cast<double>(plan.bytes_after) ==
              Approx(static_cast<double>(report.totals.bytes_after)).epsilon(0.02));
      double all = 0, removed = 0, step = 0;
      for (const auto& row : report.operators) {
        const auto size = static_cast<double>(row.out_features * row.in_features);
        const double gone =
            size - static_cast<double>(row.parameters.value_or(row.out_features * row.in_features));
        REQUIRE(gone <= 0.4 * size);
        all += size;
        removed += gone;
        step = std::max(step, static_cast<double>(multiple * (row.out_features + row.in_features)));
      }
      REQUIRE(removed >= 0.3 * all - 1);
      REQUIRE(removed <= 0.3 * all + step);
    }
  }
}

TEST_CASE("how the second moment was factored is in the report, and strict wants it regular",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  Json job = factor_job(dir / "few", "svd_llm", {{"targets", {"self_attn.q_proj"}}});
  job["calibration"]["samples"] = 2;
  for (const auto& row : test::run(job).operators) {
    REQUIRE(row.rung == "eigenvalues");  // of 128 tokens in 192 columns
    REQUIRE(row.rung_index == 1);
  }
  job["output"] = (dir / "strict").string();
  job["strict"] = true;
  CHECK_THAT(
      test::error_text([&] { test::run(job); }),
      Catch::Contains("in strict mode 'model.layers.0.self_attn.q_proj' must be solved the regular way; it "
                      "took \"eigenvalues\""));
  // What stays dense is not solved.
  job["passes"][0]["overrides"] = Json::array({{{"match", {"q_proj"}}, {"removed", 0}}});
  for (const auto& row : test::run(job).operators) REQUIRE(row.rung.empty());
  job["output"] = (dir / "enough").string();
  job["passes"][0].erase("overrides");
  job["calibration"]["samples"] = 16;
  for (const auto& row : test::run(job).operators) REQUIRE(row.rung == "cholesky");
}

TEST_CASE("sums tell what rounding alone would lose, and what factoring took", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const Json more = {{"bits", 3}, {"group_size", 64}, {"solver", "gptq"}, {"rank", 16}};
  for (const auto& row : test::run(factor_job(dir / "lqer", "lqer", more)).operators) {
    REQUIRE(row.loss.value() < row.rtn_loss.value());
    REQUIRE(row.damping.value() > 0);
    REQUIRE_FALSE(row.rung.empty());
  }
  for (const auto& row : test::run(factor_job(dir / "oats", "oats", {{"iterations", 2}})).operators)
    REQUIRE(row.damping.value() > 0);
}

TEST_CASE("factors written dense: plan and report count the matrices", "[pipeline][lowrank]") {
  const test::TempDir dir;
  Json job = factor_job(dir / "out", "svd_llm");
  job["embedding"] = {{"ratio", 3}};
  job["write"] = {{"format", "dense"}};
  const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
  REQUIRE(plan.bytes_after == plan.bytes_before);
  REQUIRE(plan.embedding->bytes_after == plan.embedding->bytes_before);
  REQUIRE_THAT(plan.operators[0].scheme, Catch::EndsWith("pivoted, written dense"));
  const auto report = test::run(job);
  REQUIRE(report.totals.bytes_after == report.totals.bytes_before);
  REQUIRE(report.totals.operator_bits_per_weight == 16);
  REQUIRE_FALSE(report.totals.numbers_after);
  for (const auto& row : report.operators) {
    REQUIRE(row.bytes_after == row.bytes_before);
    REQUIRE_THAT(row.scheme, Catch::EndsWith(", written dense"));
  }
}

TEST_CASE("plans warn of sums that take more than the matrices, and of too few tokens",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto warnings = [&](const Json& passes) {
    const Json job = test::job_with(dir / "out", passes);
    return pipeline::plan(test::parse(job), pipeline::builtin_methods()).warnings;
  };
  const auto few = warnings(Json::array({factor("svd_llm")}));
  REQUIRE(few.size() == 1);
  CHECK_THAT(few[0],
             Catch::StartsWith("calibration: 256 tokens are fewer than the inputs of 4 operators (512 of "
                               "model.layers.0.mlp.down_proj), whose second moments are singular"));
  CHECK(warnings(Json::array({factor("svd_llm", {{"targets", {"q_proj"}}})})).empty());
  CHECK(warnings(Json::array({test::pass("rtn", {{"targets", {"down_proj"}}}),
                              factor("svd_llm", {{"targets", {"q_proj"}}})}))
            .empty());
  const auto larger = warnings(Json::array(
      {factor("lqer", {{"bits", 8}, {"group_size", 64}, {"rank", 60}, {"targets", {"k_proj", "up_proj"}}})}));
  REQUIRE(larger.size() == 1);
  CHECK_THAT(larger[0], Catch::StartsWith("4 of 28 operators become larger than their matrices: "
                                          "model.layers.0.self_attn.k_proj, to 148"));
  // A text that holds less than was asked for: the run counts what there is.
  test::write_text(dir / "short.txt", std::string(100, 'a') + " end");
  Json job = test::job_with(dir / "short", Json::array({factor("svd_llm", {{"targets", {"q_proj"}}})}));
  job["calibration"]["text"] = (dir / "short.txt").string();
  const auto report = test::run(job);
  REQUIRE(std::any_of(report.warnings.begin(), report.warnings.end(), [](const std::string& warning) {
    return warning.find("fewer than the inputs of 4 operators (192 of") != std::string::npos;
  }));
}

TEST_CASE("ranks that cannot be reached are the least there are", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto ranks = [&](const Json& more) {
    std::set<int64_t> found;
    const std::string name = "out" + std::to_string(std::hash<std::string>{}(more.dump()));
    test::run(factor_job(dir / name, "svd", more));
    for (const auto& [op, weight] : read_back(dir / name)) {
      if (const auto* product = dynamic_cast<const ProductWeight*>(weight.get()))
        found.insert(product->factors()[1]->out_features());
    }
    return found;
  };
  CHECK(ranks({{"removed", 1}, {"form", "pair"}}) == std::set<int64_t>{1});
  CHECK(ranks({{"rank", 30}, {"rank_multiple", 8}, {"form", "pair"}}) == std::set<int64_t>{24});
  CHECK(ranks({{"removed", 0.9}, {"rank_multiple", 16}, {"form", "pair"}}) == std::set<int64_t>{16});
}

TEST_CASE("tensor trains of operators with inputs that are always 0 lose no more for it",
          "[pipeline][lowrank]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  test::edit_tensors(model, [](io::NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) {
      if (name == "model.layers.0.input_layernorm.weight") tensor.narrow(0, 0, 8).zero_();
    }
  });
  Json job = factor_job(dir / "out", "tensor_train", {{"targets", {"layers.0.self_attn.*_proj"}}});
  const auto usual =
      test::run(factor_job(dir / "usual", "tensor_train", {{"targets", {"layers.0.self_attn.*_proj"}}}));
  job["model"] = model.string();
  const auto report = test::run(job);
  for (size_t i = 0; i < report.operators.size(); ++i) {
    CAPTURE(report.operators[i].name);
    REQUIRE(report.operators[i].weight_error.value() < 3 * usual.operators[i].weight_error.value());
  }
}

TEST_CASE("an embedding is compressed with its tied head, calibrated on, verified, exported and continued",
          "[pipeline][lowrank][embedding]") {
  const test::TempDir dir;
  for (const char* method : {"low_rank", "tensor_train", "word2ketxs", "morphte"}) {
    CAPTURE(method);
    const std::string name = method;
    Json job = test::job_with(dir / name, Json::array({factor("svd_llm", {{"removed", 0.1}})}));
    job["embedding"] = {{"method", method}, {"ratio", 4}, {"exceptions", 20}};
    if (name == "word2ketxs" || name == "morphte") job["embedding"]["sweeps"] = 3;
    test::Watcher watcher;
    const auto report = test::run(job, watcher);
    const auto model = model::Model::open(dir / name);
    REQUIRE(model.compressed_embedding() != nullptr);
    const int64_t elements = model.architecture().vocab_size * model.architecture().hidden_size;
    REQUIRE(4 * model.compressed_embedding()->parameters() <= elements);
    REQUIRE(report.operators.front().name == "model.embed_tokens");
    REQUIRE(report.operators.front().bytes_after == model.compressed_embedding()->bytes());
    // Embedding and head are the same table.
    const at::Tensor rows = model.compressed_embedding()->rows(at::tensor({7, 0, 7}, at::kLong));
    REQUIRE(model.embed(std::vector<int64_t>{7, 0, 7}).equal(rows));
    REQUIRE(model.head_rows(7, 1)[0].equal(rows[0]));
    REQUIRE(model.warnings().empty());
    Observer silent;
    REQUIRE(pipeline::verify(dir / name, silent).passed);
    Json again = job;
    again["output"] = (dir / (name + "-killed")).string();
    REQUIRE(test::run_in_child(again, watcher.signs / 2).killed);
    test::run(again);
    REQUIRE(test::weights_hash(dir / (name + "-killed")) == test::weights_hash(dir / name));
    pipeline::export_model(dir / name, dir / (name + "-dense"), {}, silent);
    const auto dense = model::Model::open(dir / (name + "-dense"));
    REQUIRE(dense.compressed_embedding() == nullptr);
    const at::Tensor plain = dense.embed(std::vector<int64_t>{7, 0, 7});
    REQUIRE((plain - rows).abs().max().item<float>() <= 0.01 * rows.abs().max().item<float>());
  }
}

TEST_CASE("embeddings: morphemes come from a file, which plan reads too", "[pipeline][lowrank][embedding]") {
  const test::TempDir dir;
  test::write_text(dir / "segments.json",
                   Json{{"mor_set", {"the", "re", "for", "e"}},
                        {"word2mor", {{"there", {"the", "re"}}, {"therefore", {"the", "re", "for", "e"}}}}}
                       .dump());
  Json job = test::job_with(dir / "out", Json::array());
  job.erase("passes");
  job["embedding"] = {
      {"method", "morphte"}, {"ratio", 4}, {"sweeps", 2}, {"segments", (dir / "segments.json").string()}};
  const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
  REQUIRE(plan.embedding->scheme == "morphte, 4 times smaller");
  const auto report = test::run(job);
  REQUIRE(static_cast<double>(plan.embedding->bytes_after) ==
          Approx(static_cast<double>(report.operators[0].bytes_after)).epsilon(0.1));
  job["output"] = (dir / "affixes").string();
  job["embedding"].erase("segments");
  test::run(job);
  REQUIRE(test::weights_hash(dir / "out") != test::weights_hash(dir / "affixes"));
  Observer silent;
  REQUIRE_THAT(pipeline::inspect(dir / "out", true, silent).model->embedding, Catch::Contains("lcomp-morph"));
}

TEST_CASE("embeddings: what cannot work is refused, by plan as by run", "[pipeline][lowrank][embedding]") {
  const test::TempDir dir;
  const auto refusal = [&](const Json& embedding) {
    Json job = test::job_with(dir / "out", Json::array());
    job.erase("passes");
    job["embedding"] = embedding;
    const std::string text = test::error_text([&] { test::run(job); });
    CHECK(test::error_text([&] { pipeline::plan(test::parse(job), pipeline::builtin_methods()); }) == text);
    return text;
  };
  CHECK_THAT(refusal({{"ratio", 0.5}}), Catch::Contains("/embedding/ratio"));
  CHECK_THAT(refusal({{"method", "tt"}}), Catch::Contains("must be one of low_rank, tensor_train"));
  CHECK_THAT(refusal({{"ratio", 100000}}),
             Catch::StartsWith("[job: /embedding] ratio and exceptions must leave 2240 numbers at least for "
                               "low_rank; they leave"));
  CHECK_THAT(refusal({{"order", 3}, {"segments", "x"}, {"sweeps", 3}}),
             Catch::Contains("/embedding/order] acts only with a method other than low_rank") &&
                 Catch::Contains("/embedding/segments] acts only with method morphte") &&
                 Catch::Contains("/embedding/sweeps] acts only with method word2ketxs or morphte"));
  CHECK_THAT(refusal({{"method", "tensor_train"}, {"frequency_power", 0.1}}),
             Catch::Contains("/embedding/frequency_power] acts only with a method other than tensor_train"));
  CHECK_THAT(refusal({{"order", 1}}), Catch::Contains("/embedding/order] must be 0 or from 2 up; got 1"));
  CHECK_THAT(refusal({{"exceptions", 1 << 20}}), Catch::Contains("must be fewer than the"));
  CHECK_THAT(refusal({{"method", "morphte"}, {"segments", "/nowhere.json"}}),
             Catch::Contains("/nowhere.json"));
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
          "[pipeline][lowrank][determinism][resume][slow]") {
  const test::TempDir dir;
  for (const auto& entry :
       {factor("svd_llm", {{"allocation", "budget"}}), factor("fwsvd"), factor("pca"), factor("tensor_train"),
        factor("oats", {{"iterations", 5}}), factor("lqer", {{"group_size", 64}, {"solver", "gptq"}}),
        factor("svd"), factor("asvd", {{"factor_bits", 8}}), factor("svd_llm", {{"share", "auto"}}),
        factor("tucker_heads", {{"targets", {"self_attn.*"}}}), factor("tucker_layers")}) {
    const std::string method =
        entry["method"].get<std::string>() + (entry.contains("share") ? " shared" : "");
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

TEST_CASE("settings that cannot act are refused where a job changes them", "[pipeline][lowrank]") {
  const test::TempDir dir;
  const auto refusal = [&](const std::string& method, const Json& more) {
    return test::error_text([&] { test::parse(factor_job(dir / "out", method, more)); });
  };
  CHECK_THAT(refusal("svd_llm", {{"trust", 0.3}}),
             Catch::Contains(
                 "/passes/0/trust] acts only with allocation budget, and must be left out here; got 0.3"));
  const std::vector<std::pair<std::string, Json>> idle = {
      {"svd_llm", {{"max_removed", 0.4}}},
      {"svd_llm", {{"allocation", "energy"}, {"sensitivity", "outputs"}}},
      {"svd_llm", {{"rank", 8}, {"removed", 0.3}}},
      {"svd_llm", {{"factor_group_size", 8}}},
      {"svd_llm", {{"mismatch_weight", 0.2}}},
      {"svd_llm", {{"overrides", Json::array({{{"match", {"q_proj"}}, {"sampled_rows", 3}}})}}},
      {"lqer", {{"sweeps", 3}}},
      {"lqer", {{"rank", 0}, {"weighing", "none"}}},
      {"oats", {{"refit", false}, {"damping", 0.1}}},
      {"tensor_train", {{"rank", 2}, {"removed", 0.4}}},
  };
  for (const auto& [method, more] : idle) {
    CAPTURE(method, more);
    CHECK_THAT(refusal(method, more), Catch::Contains("] acts only with "));
  }
  // As they are by default, so in every job that lcomp writes, they may stand.
  const auto methods = pipeline::builtin_methods();
  for (const auto& [method, more] : idle) {
    const auto job = test::parse(factor_job(dir / "out", method));
    CHECK(pipeline::to_json(pipeline::parse_job(pipeline::to_json(job), "job", methods)) ==
          pipeline::to_json(job));
  }
  // What acts in an override may be set for the whole pass.
  CHECK(refusal("lqer",
                {{"sweeps", 3}, {"overrides", Json::array({{{"match", {"q_proj"}}, {"solver", "gptq"}}})}}) ==
        "nothing was thrown");
  CHECK_THAT(refusal("smoothquant", {{"solver", "none"}, {"sweeps", 3}}),
             Catch::Contains("/passes/0/sweeps] acts only with solver gptq"));
  // What an override takes from its pass is not its own doing.
  CHECK(refusal("lqer",
                {{"solver", "gptq"},
                 {"sweeps", 3},
                 {"overrides", Json::array({{{"match", {"q_proj"}}, {"solver", "rtn"}, {"sweeps", 3}}})}}) ==
        "nothing was thrown");
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
             Catch::Contains("[job: /passes/0] [svd] factor_group_size must divide the rank of "
                             "'model.layers.0.self_attn.q_proj', 106, and its 192 inputs; it is 64"));
  CHECK_THAT(
      refusal(Json::array({factor(
          "svd_llm",
          {{"allocation", "budget"}, {"removed", 0.2}, {"max_removed", 0.2}, {"rank_multiple", 32}})})),
      Catch::Contains("max_removed 0.2 and rank_multiple 32 must leave room for what is to be removed, ") &&
          Catch::Contains("; they allow "));
  CHECK_THAT(refusal(Json::array({factor("oats", {{"pattern", "5:4"}})})), Catch::Contains("N:M"));
  CHECK_THAT(refusal(Json::array({factor("oats", {{"pattern", "2:4"}, {"removed", 0.6}})})),
             Catch::Contains("removed must be left out with pattern 2:4"));
  CHECK_THAT(refusal(Json::array({factor("lqer", {{"range", "hessian"}, {"solver", "rtn"}})})),
             Catch::Contains("range hessian needs the solver gptq; the solver is rtn"));
  CHECK_THAT(refusal(Json::array({factor("tucker_heads", {{"targets", {"q_proj", "mlp.*"}}})})),
             Catch::Contains("targets must be operators of the attention (q, k, v, o); "
                             "'model.layers.0.mlp.gate_proj' is none"));
  CHECK_THAT(
      refusal(Json::array({factor("svd", {{"share", "auto"}})})),
      Catch::Contains("share must be none, because operators differ in what inputs count for; it is auto"));
  CHECK_THAT(refusal(Json::array({factor("lqer", {{"group_size", 64}, {"rank", 100000}})})),
             Catch::Contains("rank must be at most that of the matrix"));
  CHECK_THAT(refusal(Json::array({test::pass("smoothquant", {{"alpha", 0.5}}), factor("tucker_layers")})),
             Catch::Contains("transformed by \"smoothquant\""));
  const Json overrides = Json::array({{{"match", "layers.1.*"}, {"removed", 0.5}}});
  CHECK_THAT(refusal(Json::array({factor("tucker_layers", {{"overrides", overrides}})})),
             Catch::Contains("removed must be the same for 'model.layers.1.self_attn.q_proj' in all layers"));
}
