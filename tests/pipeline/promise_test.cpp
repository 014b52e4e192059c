// The no-pipeline promise: what a job writes for an operator is what a direct call on the same inputs gives,
// bit for bit.
#include <ATen/ATen.h>

#include "lcomp/calib/sample_runner.h"
#include "lcomp/calib/token_samples.h"
#include "lcomp/core/error.h"
#include "lcomp/lowrank/low_rank.h"
#include "lcomp/model/model.h"
#include "lcomp/quant/gptq.h"
#include "lcomp/quant/rtn.h"
#include "pipeline/edit_model.h"
#include "pipeline/job_runs.h"

namespace fs = std::filesystem;
using namespace lcomp;
using quant::ActOrder;
using quant::QuantizedWeight;
using quant::QuantScheme;
using test::Json;

namespace {

constexpr quant::QuantScheme kScheme{.bits = 4, .group_size = 64};
constexpr quant::QuantScheme kGptqScheme{.bits = 4, .group_size = 64, .range = quant::RangeRule::kHessian};

struct Written {
  explicit Written(const std::filesystem::path& output) : model(model::Model::open(output)) {}

  void require_equal(const model::OperatorInfo& op, const QuantizedWeight& direct) const {
    const WeightPtr loaded = model.load_weight(op);
    const auto& stored = dynamic_cast<const QuantizedWeight&>(*loaded);
    CAPTURE(op.name);
    REQUIRE(stored.codes().equal(direct.codes()));
    REQUIRE(stored.scale().equal(direct.scale()));
    REQUIRE(stored.scale().scalar_type() == direct.scale().scalar_type());
    REQUIRE(stored.zero().defined() == direct.zero().defined());
    if (direct.zero().defined()) REQUIRE(stored.zero().equal(direct.zero()));
  }

  model::Model model;
};

/// The samples of `gptq_job`, taken through the dense model by hand.
struct Calibration {
  explicit Calibration(const model::Model& model)
      : samples(calib::read_samples(test::calibration_text(),
                                    io::Tokenizer::from_file(test::bundled_model() / "tokenizer.json"),
                                    {.samples = 4, .length = 64})),
        hidden(samples.lengths(), model.architecture().hidden_size, calib::ActivationCache::Storage::kMemory),
        work(samples.lengths(), model.architecture().intermediate_size,
             calib::ActivationCache::Storage::kMemory),
        runner(pool, model.architecture(), hidden, &work, 2048) {
    for (size_t i = 0; i < samples.sequences.size(); ++i)
      hidden.store(static_cast<int64_t>(i), model.embed(samples.sequences[i]));
  }

  ThreadPool pool{1};
  calib::TokenSamples samples;
  calib::ActivationCache hidden;
  calib::ActivationCache work;
  calib::SampleRunner runner;
};

void prepare_all(model::Block& block) {
  for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, linalg::Precision::kF32);
}

/// Calls gptq on each operator of the dense model by hand, with the weight as stored, and compares.
void check_gptq(const Json& settings, const QuantScheme& scheme, const quant::GptqOptions& options,
                bool sequential = true) {
  const test::TempDir dir;
  test::run(test::gptq_job(dir / "out", settings));
  const Written written(dir / "out");
  const auto dense = model::Model::open(test::bundled_model());
  Calibration calibration(dense);
  const calib::Needs needs{.second_moment = true};
  for (int64_t b = 0; b < dense.size(); ++b) {
    model::Block block = dense.load_block(b);
    std::vector<calib::InputStats> stats(block.groups().size());
    if (!sequential) {
      prepare_all(block);
      stats = calibration.runner.observe(block, needs);
    }
    for (size_t g = 0; g < block.groups().size(); ++g) {
      if (sequential) {
        if (g > 0) block.prepare(g - 1, linalg::Precision::kF32);
        stats[g] = calibration.runner.advance(block, g, needs);
      }
      for (const size_t op : block.groups()[g].operators) {
        const auto& info = block.ops()[op].info;
        auto direct = quant::gptq(dense.checkpoint().read(info.name + ".weight"), stats[g].second_moment,
                                  scheme, options);
        written.require_equal(info, direct.weight);
        block.replace(op, std::make_shared<QuantizedWeight>(std::move(direct.weight)));
      }
    }
    prepare_all(block);
    if (sequential) {
      calibration.runner.finish(block);
    } else {
      calibration.runner.forward(block);
    }
  }
}

}  // namespace

TEST_CASE("gptq in a job gives every operator the bits of the direct call", "[pipeline][promise]") {
  check_gptq(Json::object(), kGptqScheme, {});
}

TEST_CASE("the promise holds for asymmetric grids with searched ranges", "[pipeline][promise]") {
  QuantScheme scheme = kScheme;
  scheme.bits = 3;
  scheme.symmetric = false;
  scheme.range = quant::RangeRule::kMse;
  scheme.mse_steps = 10;
  check_gptq({{"bits", 3}, {"symmetric", false}, {"range", "mse"}, {"mse_steps", 10}}, scheme, {});
}

TEST_CASE("the promise holds for act-order with static groups", "[pipeline][promise]") {
  check_gptq({{"act_order", "static_groups"}}, kGptqScheme, {.act_order = ActOrder::kStaticGroups});
}

TEST_CASE("the promise holds for the group-aware order", "[pipeline][promise]") {
  check_gptq({{"act_order", "group_aware"}}, kGptqScheme, {.act_order = ActOrder::kGroupAware});
}

TEST_CASE("the promise holds for sweeps and refits, and for the published ranges", "[pipeline][promise]") {
  check_gptq({{"sweeps", 1}, {"refit", true}, {"range", "min_max"}}, kScheme, {.sweeps = 1, .refit = true});
}

TEST_CASE("with true_sequential off the statistics of all groups are those of the dense block",
          "[pipeline][promise]") {
  check_gptq({{"true_sequential", false}}, kGptqScheme, {}, false);
}

TEST_CASE("svd_llm in a job gives every operator the factors of the direct call",
          "[pipeline][promise][lowrank]") {
  const test::TempDir dir;
  test::run(test::job_with(dir / "out",
                           Json::array({{{"method", "svd_llm"}, {"removed", 0.3}, {"mismatch", "none"}}})));
  const Written written(dir / "out");
  const auto dense = model::Model::open(test::bundled_model());
  Calibration calibration(dense);
  model::Block block = dense.load_block(0);
  for (size_t g = 0; g < block.groups().size(); ++g) {
    if (g > 0) block.prepare(g - 1, linalg::Precision::kF32);
    const auto stats = calibration.runner.advance(block, g, {.second_moment = true});
    const auto metric = lowrank::InputMetric::moment(stats.second_moment);
    for (const size_t op : block.groups()[g].operators) {
      const auto& info = block.ops()[op].info;
      const int64_t out = info.out_features, in = info.in_features;
      const auto size = static_cast<int64_t>(0.7 * static_cast<double>(out * in) + 1e-6);
      const at::Tensor weight = block.ops()[op].weight->dense().to(at::kDouble);
      const auto form = lowrank::Form::kPivoted;
      const auto factors = lowrank::low_rank(weight, metric, lowrank::largest_rank(form, out, in, size));
      const auto store = [&](const at::Tensor& values, const Weight*) {
        return std::make_shared<DenseWeight>(values.to(dense.dtype()));
      };
      const WeightPtr direct = lowrank::factored_weight(factors, form, store, weight, &metric);
      CAPTURE(info.name);
      REQUIRE(written.model.load_weight(info)->dense().equal(direct->dense()));
      block.replace(op, direct);
    }
  }
}

TEST_CASE("pca moves what the mean loses into the bias", "[pipeline][promise][lowrank]") {
  const test::TempDir dir;
  const fs::path biased = test::copy_of_model(dir);
  Json config = Json::parse(io::read_file(biased / "config.json"));
  config["model_type"] = "qwen2";
  config["architectures"] = {"Qwen2ForCausalLM"};
  test::write_text(biased / "config.json", config.dump());
  const auto names = {"q_proj", "k_proj", "v_proj"};
  test::edit_tensors(biased, [&](io::NamedTensors& tensors) {
    for (int64_t block = 0; block < 4; ++block) {
      for (const char* name : names) {
        const std::string op = fmt::format("model.layers.{}.self_attn.{}", block, name);
        tensors.emplace_back(op + ".bias", at::ones({name[0] == 'q' ? 192 : 64}, at::kBFloat16));
      }
    }
  });
  Json job = test::job_with(
      dir / "out",
      Json::array({{{"method", "pca"}, {"removed", 0.5}, {"targets", {"layers.0.self_attn.q_proj"}}}}));
  job["model"] = biased.string();
  test::run(job);
  const auto dense = model::Model::open(biased), written = model::Model::open(dir / "out");
  Calibration calibration(dense);
  model::Block block = dense.load_block(0);
  const auto stats = calibration.runner.advance(block, 0, {.mean = true});
  const model::OperatorInfo& info = block.ops()[0].info;
  const at::Tensor lost = block.ops()[0].weight->dense() - written.load_weight(info)->dense();
  const at::Tensor expected = 1 + lost.mv(stats.mean.to(at::kFloat));
  const at::Tensor bias = written.checkpoint().read(info.name + ".bias").to(at::kFloat);
  REQUIRE((expected - 1).abs().max().item<float>() > 0.05F);
  REQUIRE(bias.equal(expected.to(at::kBFloat16).to(at::kFloat)));
}

TEST_CASE("rtn in a job gives every operator the bits of the direct call", "[pipeline][promise]") {
  const test::TempDir dir;
  test::run(test::rtn_job(dir / "out"));
  const Written written(dir / "out");
  const auto dense = model::Model::open(test::bundled_model());
  for (int64_t b = 0; b < dense.size(); ++b) {
    for (const auto& op : dense.architecture().operators(b))
      written.require_equal(op, quant::rtn(dense.checkpoint().read(op.name + ".weight"), kScheme));
  }
}

TEST_CASE("the options of a pass matter: each gives other bytes", "[pipeline][promise]") {
  const test::TempDir dir;
  std::map<std::string, std::string> seen;
  for (const Json& settings :
       {Json::object(), Json{{"act_order", "static_groups"}}, Json{{"act_order", "group_aware"}},
        Json{{"true_sequential", false}}, Json{{"damping", 0.1}}, Json{{"symmetric", false}},
        Json{{"range", "min_max"}}, Json{{"range", "mse"}}, Json{{"sweeps", 1}}, Json{{"refit", true}}}) {
    const auto output = dir / ("out" + std::to_string(seen.size()));
    test::run(test::gptq_job(output, settings));
    const auto [same, is_new] = seen.emplace(test::weights_hash(output), settings.dump());
    INFO(settings.dump() << " gives the bytes of " << same->second);
    REQUIRE(is_new);
  }
}

TEST_CASE("passes share the operators of a block, and the report has a row for each", "[pipeline][promise]") {
  const test::TempDir dir;
  const auto report = test::run(
      test::job_with(dir / "out", Json::array({test::pass("rtn", {{"bits", 8}, {"ignore", {"*.up_proj"}}}),
                                               test::pass("gptq", {{"targets", {"*.up_proj"}}})})));
  const Written written(dir / "out");
  const auto dense = model::Model::open(test::bundled_model());
  const auto ops = dense.architecture().operators(0);
  const QuantScheme eight{.bits = 8, .group_size = 64};
  written.require_equal(ops[0], quant::rtn(dense.checkpoint().read(ops[0].name + ".weight"), eight));
  REQUIRE(written.model.quantization()->scheme_for(ops[5].name)->bits == 4);

  std::vector<std::pair<int64_t, std::string>> rows;
  for (const auto& row : report.operators) {
    if (row.name == ops[5].name) rows.emplace_back(row.pass, row.method);
  }
  REQUIRE(rows == std::vector<std::pair<int64_t, std::string>>{{1, "gptq"}});
  REQUIRE(report.operators.size() == static_cast<size_t>(dense.size()) * ops.size());
  int64_t parameters = 0;
  for (const auto& op : ops) parameters += op.out_features * op.in_features;
  REQUIRE(report.totals.compressed_parameters == dense.size() * parameters);
  REQUIRE(report.totals.operator_bits_per_weight);
  REQUIRE(*report.totals.operator_bits_per_weight > 4.0);
  REQUIRE(*report.totals.operator_bits_per_weight < 8.5);
}

TEST_CASE("a strict job fails where the second moment needs more damping than asked for",
          "[pipeline][strict]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "out", {{"damping", 0}});
  job["calibration"]["samples"] = 1;
  job["calibration"]["length"] = 16;
  job["strict"] = true;
  try {
    test::run(job);
    FAIL("nothing was thrown");
  } catch (const NumericalError& error) {
    REQUIRE_THAT(error.what(),
                 Catch::Contains("[gptq] strict mode must factor with the damping asked for; it took"));
  }
  REQUIRE_FALSE(std::filesystem::exists(dir / "out"));
  const Json report = test::read_json(test::work_dir_of(dir / "out") / "report.json");
  REQUIRE(report["status"] == "failed");
  REQUIRE_THAT(report["message"].get<std::string>(), Catch::Contains("strict mode must"));

  job["strict"] = false;
  const auto relaxed = test::run(job);
  REQUIRE(relaxed.operators[0].rung_index > 0);
  REQUIRE(relaxed.operators[0].rung != "cholesky");
}
