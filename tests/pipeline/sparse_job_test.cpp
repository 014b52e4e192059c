// Pruning as a job: patterns in what was written, storage that reads back, and what may follow.
#include <ATen/ATen.h>

#include <map>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/inspect.h"
#include "lcomp/pipeline/planner.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lcomp/sparse/sparsity.h"
#include "pipeline/child_runs.h"
#include "pipeline/edit_model.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

const std::vector<const char*> kMethods = {"magnitude", "wanda", "ria", "obd", "sparsegpt"};

Json prune(const std::string& method, const Json& more = Json::object()) {
  Json entry = {{"method", method}};
  entry.update(more);
  return entry;
}

Json prune_job(const fs::path& output, const std::string& method, const Json& more = Json::object()) {
  return test::job_with(output, Json::array({prune(method, more)}));
}

/// The written matrices of a model by operator.
std::map<std::string, WeightPtr> weights_of(const fs::path& output) {
  const auto model = model::Model::open(output);
  std::map<std::string, WeightPtr> weights;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const auto& op : model.architecture().operators(block)) weights[op.name] = model.load_weight(op);
  }
  return weights;
}

bool is_two_of_four(const at::Tensor& w) {
  return !(w.ne(0).reshape({-1, 4}).sum(1) > 2).any().item<bool>();
}

}  // namespace

TEST_CASE("every method removes its share of every row, in a smaller file that is read back",
          "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto dense_size = fs::file_size(test::bundled_model() / "model.safetensors");
  for (const char* method : kMethods) {
    CAPTURE(method);
    const auto report = test::run(prune_job(dir / method, method, {{"sparsity", 0.7}}));
    REQUIRE(fs::file_size(dir / method / "model.safetensors") < dense_size);
    for (const auto& [name, weight] : weights_of(dir / method)) {
      const at::Tensor zeros = weight->dense().eq(0).sum(1);
      REQUIRE((zeros >= sparse::share_of(0.7, weight->in_features())).all().item<bool>());
      REQUIRE(dynamic_cast<const sparse::SparseWeight&>(*weight).format() == sparse::SparseFormat::kBitmask);
    }
    for (const auto& row : report.operators) {
      REQUIRE(row.bits_per_weight < 0.4 * 16);
      REQUIRE_FALSE(row.fell_back);
    }
    Observer silent;
    REQUIRE(pipeline::verify(dir / method, silent).passed);
  }
}

TEST_CASE("a checkpoint with 70 % zeros has the size of the formula in every storage, and reads back exactly",
          "[pipeline][sparse]") {
  const test::TempDir dir;
  test::run(prune_job(dir / "plain", "sparsegpt", {{"sparsity", 0.7}, {"storage", "dense"}}));
  const auto expected = weights_of(dir / "plain");
  for (const char* storage : {"bitmask", "csr", "tiled_csl"}) {
    CAPTURE(storage);
    test::run(prune_job(dir / storage, "sparsegpt", {{"sparsity", 0.7}, {"storage", storage}}));
    const auto model = model::Model::open(dir / storage);
    for (const auto& [name, weight] : weights_of(dir / storage)) {
      CAPTURE(name);
      const int64_t out = weight->out_features(), in = weight->in_features();
      REQUIRE(weight->dense().equal(expected.at(name)->dense()));
      // Every row keeps as many.
      const int64_t zeros = sparse::share_of(0.7, in), kept = out * (in - zeros);
      REQUIRE(weight->dense().eq(0).sum(1).eq(zeros).all().item<bool>());
      int64_t stored = 0;
      for (const std::string& tensor : model.checkpoint().names()) {
        if (tensor.starts_with(name + ".weight_"))
          stored += static_cast<int64_t>(model.checkpoint().info(tensor).bytes());
      }
      const auto format = dynamic_cast<const sparse::SparseWeight&>(*weight).format();
      if (format == sparse::SparseFormat::kTiledCsl) {
        // What a tile has is padded to four words.
        REQUIRE(stored >= 4 * kept + 4 * (ceil_div(out, 128) * ceil_div(in, 64) + 2) + 16);
        REQUIRE(stored <= sparse::sparse_bytes(format, out, in, kept, 2));
      } else {
        // docs/sparsity.md, Storage: (1 - s) + 1/16, and 3 (1 - s), with offsets of rows and the shape.
        const int64_t formula = format == sparse::SparseFormat::kBitmask
                                    ? 2 * kept + out * ceil_div(in, 8) + 8 * out + 16
                                    : 6 * kept + 4 * (out + 1) + 16;
        REQUIRE(stored == formula);
      }
      REQUIRE(weight->bytes() == stored);
    }
    Observer silent;
    REQUIRE(pipeline::verify(dir / storage, silent).passed);
  }
}

TEST_CASE("every storage holds the same matrices, and dense loads as any model", "[pipeline][sparse]") {
  const test::TempDir dir;
  std::map<std::string, WeightPtr> expected;
  for (const char* storage : {"auto", "dense", "bitmask", "csr", "2:4", "blocked_ell", "tiled_csl"}) {
    CAPTURE(storage);
    const fs::path output = dir / (std::string("out ") + storage[0] + storage[1] + storage[2]);
    test::run(prune_job(output, "wanda", {{"pattern", "2:4"}, {"storage", storage}}));
    const auto weights = weights_of(output);
    if (expected.empty()) expected = weights;
    for (const auto& [name, weight] : weights) {
      REQUIRE(is_two_of_four(weight->dense()));
      REQUIRE(weight->dense().equal(expected.at(name)->dense()));
    }
    const Json config = test::read_json(output / "config.json");
    REQUIRE(config.contains("quantization_config") == (std::string(storage) != "dense"));
  }
  Json job = prune_job(dir / "plain", "wanda", {{"pattern", "2:4"}});
  job["write"] = {{"format", "dense"}};
  test::run(job);
  REQUIRE(weights_of(dir / "plain").begin()->second->dense().equal(expected.begin()->second->dense()));
}

TEST_CASE("SparseGPT loses less of the outputs than Wanda, a refit less than SparseGPT",
          "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto loss = [&](const std::string& name, const std::string& method, const Json& more) {
    Json job = prune_job(dir / name, method, more);
    job["calibration"]["samples"] = 16;
    double sum = 0;
    for (const auto& row : test::run(job).operators) sum += *row.activation_error;
    return sum;
  };
  for (const char* pattern : {"unstructured", "2:4"}) {
    CAPTURE(pattern);
    const std::string p(1, pattern[0]);
    const double wanda = loss("w" + p, "wanda", {{"pattern", pattern}});
    const double walk = loss("s" + p, "sparsegpt", {{"pattern", pattern}});
    const double fitted = loss("r" + p, "sparsegpt", {{"pattern", pattern}, {"refit", true}});
    REQUIRE(walk < 0.95 * wanda);
    REQUIRE(fitted < walk);
    REQUIRE(loss("f" + p, "wanda", {{"pattern", pattern}, {"refit", true}}) < wanda);
  }
}

TEST_CASE("recovered weights stand beside the pattern, and survive with it", "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto beside_of = [](const Weight& weight) {
    return dynamic_cast<const sparse::SparseWeight&>(*dynamic_cast<const SumWeight&>(weight).parts().at(1))
        .format();
  };
  for (const char* as : {"rows", "blocks"}) {
    CAPTURE(as);
    const Json more = {{"recover", 0.25}, {"recover_as", as}, {"blocks_per_row", 1}};
    const auto report = test::run(prune_job(dir / as, "wrp", more));
    for (const auto& [name, weight] : weights_of(dir / as)) {
      REQUIRE(beside_of(*weight) ==
              (*as == 'r' ? sparse::SparseFormat::kCsr : sparse::SparseFormat::kBlockedEll));
      REQUIRE_FALSE(is_two_of_four(weight->dense()));
      const at::Tensor x = at::ones({3, weight->in_features()});
      REQUIRE(at::allclose(weight->apply(x), at::matmul(x, weight->dense().t()), 1e-4, 1e-4));
    }
    Observer silent;
    REQUIRE(pipeline::verify(dir / as, silent).passed);
  }
  const auto zeros = [&](const std::string& name, const Json& passes) {
    test::run(test::job_with(dir / name, passes));
    return weights_of(dir / name).at("model.layers.0.mlp.up_proj")->dense().eq(0);
  };
  const at::Tensor first = zeros("alone", Json::array({prune("wrp")}));
  const at::Tensor then = zeros("then", Json::array({prune("wrp"), test::pass("gptq")}));
  REQUIRE(then.logical_and(first).equal(first));
  zeros("scaled", Json::array({prune("wrp"), {{"method", "awq"}, {"solver", "none"}, {"group_size", 64}}}));
  for (const auto& [name, weight] : weights_of(dir / "scaled"))
    REQUIRE(beside_of(*weight) == sparse::SparseFormat::kCsr);
}

TEST_CASE("the pattern survives what follows: scales, rounding, compensation, rounded inputs",
          "[pipeline][sparse]") {
  const test::TempDir dir;
  const Json grid = {{"bits", 4}, {"group_size", 64}};
  const std::vector<std::pair<std::string, Json>> followers = {
      {"rtn", grid},
      {"gptq", grid},
      {"gptq", {{"bits", 3}, {"group_size", 64}, {"sweeps", 2}, {"refit", true}}},
      {"gptq", {{"bits", 4}, {"group_size", 64}, {"symmetric", false}, {"act_order", "group_aware"}}},
      {"gptq", {{"format", "nf4"}, {"group_size", 64}}},
      {"awq", grid},
      {"awq", {{"bits", 4}, {"group_size", 64}, {"solver", "gptq"}}},
      {"awq", {{"bits", 4}, {"group_size", 64}, {"solver", "none"}}},
      {"smoothquant", Json::object()},
      {"smoothquant", {{"solver", "gptq"}}},
      {"int8", Json::object()},
      {"mixed_precision", {{"bits_per_weight", 4.5}, {"group_size", 64}}}};
  int count = 0;
  for (const auto& [method, more] : followers) {
    for (const char* first : {"magnitude", "sparsegpt"}) {
      CAPTURE(first, method, more.dump());
      const auto output = dir / std::to_string(count++);
      Json then = {{"method", method}};
      then.update(more);
      test::run(test::job_with(output, Json::array({prune(first, {{"pattern", "2:4"}}), then})));
      for (const auto& [name, weight] : weights_of(output)) REQUIRE(is_two_of_four(weight->dense()));
    }
  }
}

TEST_CASE("scales before pruning are kept, and sparse and 4 bit in one sweep", "[pipeline][sparse]") {
  const test::TempDir dir;
  test::run(
      test::job_with(dir / "scaled", Json::array({{{"method", "awq"}, {"solver", "none"}, {"group_size", 64}},
                                                  prune("wanda", {{"pattern", "2:4"}})})));
  for (const auto& [name, weight] : weights_of(dir / "scaled")) REQUIRE(is_two_of_four(weight->dense()));
  const Json joint = {{"pattern", "2:4"}, {"quantize", true}, {"bits", 4}, {"group_size", 64}};
  test::run(prune_job(dir / "joint", "sparsegpt", joint));
  for (const auto& [name, weight] : weights_of(dir / "joint")) {
    REQUIRE(is_two_of_four(weight->dense()));
    REQUIRE(dynamic_cast<const quant::QuantizedWeight*>(weight.get()) != nullptr);
  }
}

TEST_CASE("the bytes of pruning do not depend on threads or on where activations are kept, nor on a kill",
          "[pipeline][sparse][determinism][resume]") {
  const test::TempDir dir;
  for (const char* method : kMethods) {
    CAPTURE(method);
    const std::string name(method);
    Json job = prune_job(dir / name, method, {{"pattern", "2:4"}});
    test::Watcher watcher;
    test::run(job, watcher);
    const std::string expected = test::weights_hash(dir / name);
    job["threads"] = 3;
    job["calibration"]["cache"] = "disk";
    job["output"] = (dir / (name + "3")).string();
    test::run(job);
    REQUIRE(test::weights_hash(dir / (name + "3")) == expected);
    const fs::path killed = dir / (name + "-killed");
    const Json again = prune_job(killed, method, {{"pattern", "2:4"}});
    REQUIRE(test::run_in_child(again, watcher.signs * 2 / 3).killed);
    test::run(again);
    REQUIRE(test::weights_hash(killed) == expected);
  }
}

TEST_CASE("orders and patterns that cannot work are refused with the reason", "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto error = [&](const Json& passes) {
    return test::error_text([&] { test::run(test::job_with(dir / "out", passes)); });
  };
  REQUIRE_THAT(error(Json::array({test::pass("rtn"), prune("wanda")})),
               Catch::Contains("an operator must not be changed after it is quantized"));
  REQUIRE_THAT(error(Json::array({prune("wanda"), {{"method", "squeezellm"}}})),
               Catch::Contains(
                   "must keep what is 0 after \"wanda\" (/passes/0) has pruned it; \"squeezellm\" with these "
                   "settings does not"));
  REQUIRE_THAT(error(Json::array({prune("wanda"), test::pass("rtn", {{"symmetric", false},
                                                                     {"asymmetric_convention", "raw"}})})),
               Catch::Contains("must keep what is 0 after \"wanda\""));
  REQUIRE_THAT(error(Json::array({prune("wanda", {{"pattern", "2-4"}})})),
               Catch::Contains("pattern must be unstructured, or N:M with 1 <= N < M <= 64; received '2-4'"));
  REQUIRE_THAT(error(Json::array({prune("wanda", {{"pattern", "2:5"}})})),
               Catch::Contains("pattern 2:5 must divide the"));
  REQUIRE_THAT(error(Json::array({prune("wanda", {{"storage", "2:4"}})})),
               Catch::Contains("pattern must be 2:4 or 1:4 for storage 2:4; it is unstructured"));
  REQUIRE_THAT(error(Json::array({prune("sparsegpt", {{"quantize", true}, {"refit", true}})})),
               Catch::Contains("refit must be off where the kept weights are quantized"));
  REQUIRE_THAT(error(Json::array({prune("wrp", {{"pattern", "unstructured"}})})),
               Catch::Contains("[wrp] pattern must be N:M, such as 2:4; it is unstructured"));
  REQUIRE_THAT(error(Json::array({prune("wrp", {{"recover_as", "blocks"}, {"block_edge", 32}})})),
               Catch::Contains("[wrp] block_edge must be 64, that of the stored blocks; it is 32"));
}

TEST_CASE("a storage of 16 bits is refused to a model of float32", "[pipeline][sparse]") {
  const test::TempDir dir;
  const fs::path model = test::copy_of_model(dir);
  test::edit_tensors(model, [](io::NamedTensors& tensors) {
    for (auto& [name, tensor] : tensors) tensor = tensor.to(at::kFloat);
  });
  Json job = prune_job(dir / "out", "wanda", {{"storage", "tiled_csl"}});
  job["model"] = model.string();
  REQUIRE_THAT(test::error_text([&] { test::run(job); }),
               Catch::Contains("the model must be bfloat16 or float16 for storage tiled_csl; it is float32"));
}

TEST_CASE("an inspection says of pruned operators how they are stored, and no grid that they do not have",
          "[pipeline][sparse][inspect]") {
  const test::TempDir dir;
  const auto stored = [&](const Json& passes) {
    test::run(test::job_with(dir / "out", passes));
    Observer silent;
    std::vector<std::string> kinds;
    const pipeline::Inspection found = pipeline::inspect(dir / "out", false, silent);
    for (const auto& kind : found.model->storage)
      kinds.push_back(fmt::format("{}: {}", kind.operators, kind.description));
    fs::remove_all(dir / "out");
    return kinds;
  };
  using Kinds = std::vector<std::string>;
  CHECK(stored(Json::array({prune("magnitude", {{"sparsity", 0.7}, {"ignore", {"q_proj"}}})})) ==
        Kinds{"4: dense", "24: lcomp-bitmask"});
  CHECK(stored(Json::array({prune("wrp")})) == Kinds{"28: lcomp-sum of (lcomp-2-of-4) + (lcomp-csr)"});
  CHECK(stored(Json::array({prune("magnitude", {{"targets", {"down_proj"}}}),
                            test::pass("rtn", {{"targets", {"up_proj"}}, {"group_size", 64}}),
                            prune("squeezellm", {{"targets", {"o_proj"}}, {"bits", 3}})})) ==
        Kinds{"16: dense", "4: lcomp-codebook, 3 bits", "4: pack-quantized, int4 symmetric, groups of 64",
              "4: lcomp-bitmask"});
}

TEST_CASE("a report says of each pass what that pass makes, and of how many operators",
          "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto summaries = [&](const Json& passes) {
    const auto report = test::run(test::job_with(dir / "out", passes));
    fs::remove_all(dir / "out");
    std::vector<std::string> of_passes;
    for (const auto& pass : report.passes) of_passes.push_back(pass.summary);
    return of_passes;
  };
  CHECK(summaries(Json::array({prune("wanda"), test::pass("rtn", {{"group_size", 64}})})) ==
        std::vector<std::string>{"50 % zeros, bitmask", "int4 symmetric, groups of 64"});
  CHECK(summaries(Json::array(
            {prune("smoothquant", {{"solver", "none"}, {"targets", {"q_proj", "k_proj", "v_proj"}}}),
             prune("magnitude")})) == std::vector<std::string>{"bfloat16, scaled", "50 % zeros, bitmask"});
  CHECK(summaries(Json::array({prune(
            "ria", {{"sparsity", 0.6}, {"overrides", {{{"match", "q_proj"}, {"sparsity", 0.0}}}}})})) ==
        std::vector<std::string>{"60 % zeros, bitmask (24 of 28 operators, others differ)"});
}

TEST_CASE("what a model was pruned of stays 0 in a later job as well", "[pipeline][sparse]") {
  const test::TempDir dir;
  test::run(prune_job(dir / "pruned", "magnitude"));
  const auto job_on = [&](const Json& passes) {
    Json job = test::job_with(dir / "out", passes);
    job["model"] = (dir / "pruned").string();
    return test::error_text([&] { test::run(job); });
  };
  CHECK_THAT(job_on(Json::array({{{"method", "squeezellm"}}})),
             Catch::Contains("q_proj must keep what is 0 in the model, which was pruned and is stored "
                             "lcomp-bitmask; \"squeezellm\" with these settings does not"));
  CHECK_THAT(
      job_on(Json::array({test::pass("rtn", {{"symmetric", false}, {"asymmetric_convention", "raw"}})})),
      Catch::Contains("must keep what is 0 in the model"));
  CHECK(job_on(Json::array({test::pass("rtn")})) == "nothing was thrown");
}

TEST_CASE("a plan has the size of whole blocks, which masks without a pattern leave", "[pipeline][sparse]") {
  const test::TempDir dir;
  const Json job = prune_job(dir / "out", "wanda", {{"storage", "blocked_ell"}});
  const auto plan = pipeline::plan(test::parse(job), pipeline::builtin_methods());
  CHECK(plan.operators[0].scheme == "50 % zeros, blocked_ell (at most all blocks)");
  const auto report = test::run(job);
  CHECK(static_cast<double>(plan.bytes_after) == Approx(report.totals.bytes_after).epsilon(0.001));
}

TEST_CASE("settings of sparsity that cannot act are refused", "[pipeline][sparse]") {
  const test::TempDir dir;
  const auto error = [&](const Json& more) {
    return test::error_text([&] { test::run(prune_job(dir / "out", "wanda", more)); });
  };
  CHECK_THAT(error({{"pattern", "2:4"}, {"sparsity", 0.7}}),
             Catch::Contains("sparsity must be left out with pattern 2:4, which removes 0.5; it is 0.7"));
  CHECK_THAT(error({{"sparsity", 1}}),
             Catch::Contains("sparsity must be below 1, at which no weight is left; it is 1"));
  CHECK_THAT(error({{"min_sparsity", 0.2}}),
             Catch::Contains("min_sparsity and max_sparsity must be 0 and 1 for allocation uniform"));
  CHECK_THAT(error({{"owl_spread", 0.1}, {"allocation", "budget"}}),
             Catch::Contains("owl_spread must be left out unless allocation is owl"));
  CHECK(error({{"pattern", "1:4"}, {"sparsity", 0.75}}) == "nothing was thrown");
}
