// Jobs that quantize activations.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/eval/evaluate.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/export.h"
#include "lcomp/quant/llm_int8.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/rtn.h"
#include "pipeline/job_runs.h"
#include "pipeline/output_record.h"
#include "pipeline/passes/passes.h"
#include "support/error_text.h"

using namespace lcomp;
using model::Model;
using test::Json;

namespace {

Json job(const std::filesystem::path& output, const std::string& method, const Json& more = Json::object()) {
  Json entry = {{"method", method}};
  entry.update(more);
  return test::job_with(output, Json::array({entry}));
}

double perplexity(const std::filesystem::path& model) {
  const auto tokenizer = io::Tokenizer::from_file(test::bundled_model() / "tokenizer.json");
  const auto text =
      eval::read_evaluation_text(test::evaluation_text(), tokenizer, {.window = 128, .max_windows = 4});
  ThreadPool pool(1);
  Observer silent;
  return *eval::evaluate(Model::open(model), nullptr, text, linalg::Precision::kF32, pool, silent).perplexity;
}

const Json kStatic = {{"activation_granularity", "tensor"}, {"activation_dynamic", false}};

}  // namespace

TEST_CASE("int8 writes int-quantized weights with input_activations and reads them back",
          "[pipeline][int8]") {
  const test::TempDir dir;
  const auto report = test::run(job(dir / "out", "int8"));
  REQUIRE(report.verification->passed);
  for (const auto& row : report.operators) {
    REQUIRE(row.product == "int8 product");
    REQUIRE(row.scheme == "int8 symmetric, per channel; int8 symmetric activations, per token");
  }
  const Json config = test::read_json(dir / "out" / "config.json")["quantization_config"];
  REQUIRE(config["format"] == "int-quantized");
  const Json inputs = config["config_groups"]["group_0"]["input_activations"];
  REQUIRE(inputs["strategy"] == "token");
  REQUIRE(inputs["dynamic"] == true);
  const Model written = Model::open(dir / "out"), dense = Model::open(test::bundled_model());
  for (const auto& op : dense.architecture().operators(2)) {
    const WeightPtr weight = written.load_weight(op);
    REQUIRE(weight->quantizes_input());
    const auto direct = quant::rtn(dense.checkpoint().read(op.name + ".weight"),
                                   {.bits = 8,
                                    .granularity = quant::Granularity::kChannel,
                                    .symmetric_convention = quant::SymmetricConvention::kMidRange});
    REQUIRE(weight->dense().equal(direct.dense()));
  }
  const double before = perplexity(test::bundled_model()), after = perplexity(dir / "out");
  REQUIRE(after != before);
  REQUIRE(after < before * 1.01);
  Observer silent;
  const auto exported = [&] { pipeline::export_model(dir / "out", dir / "dense", {}, silent); };
  REQUIRE_THROWS_AS(exported(), Unsupported);
  REQUIRE(test::error_text(exported) ==
          "[model.layers.0.self_attn.q_proj] the operator must not round its inputs to be written dense; it "
          "does");
}

TEST_CASE("static ranges are calibrated, stored and verified", "[pipeline][int8]") {
  const test::TempDir dir;
  Json options = kStatic;
  options["activation_symmetric"] = false;
  const auto report = test::run(job(dir / "out", "int8", options));
  REQUIRE(report.verification->passed);
  REQUIRE(report.operators.front().tokens == 4 * 64);
  const Model written = Model::open(dir / "out");
  for (const auto& row : report.operators) {
    REQUIRE(written.checkpoint().contains(row.name + ".input_scale"));
    REQUIRE(written.checkpoint().contains(row.name + ".input_zero_point"));
  }
  REQUIRE(static_cast<int64_t>(written.stored_bytes()) == report.totals.bytes_after);
  // q, k and v read one input.
  const auto scale = [&](const char* op) {
    return written.checkpoint()
        .read(std::string("model.layers.1.self_attn.") + op + ".input_scale")
        .item<double>();
  };
  REQUIRE(scale("q_proj") == scale("v_proj"));
  REQUIRE(perplexity(dir / "out") < perplexity(test::bundled_model()) * 1.1);
}

TEST_CASE("the ways to quantize weights and activations combine, the same at any number of threads",
          "[pipeline][int8][determinism]") {
  const test::TempDir dir;
  int count = 0;
  for (Json options :
       {Json{{"solver", "gptq"}}, Json{{"granularity", "tensor"}, {"activation_granularity", "tensor"}},
        Json{{"symmetric", false}, {"activation_symmetric", false}}, kStatic,
        Json{{"bits", 4}, {"granularity", "group"}, {"group_size", 64}},
        Json{{"activation_granularity", "tensor"},
             {"activation_dynamic", false},
             {"activation_percentile", 0.99},
             {"activation_percentile_of", "values"},
             {"solver", "gptq"}}}) {
    CAPTURE(options.dump());
    std::string expected;
    for (const int threads : {1, 2}) {
      Json one = job(dir / std::to_string(count++), "int8", options);
      one["threads"] = threads;
      const auto report = test::run(one);
      REQUIRE(report.verification->passed);
      REQUIRE(report.operators.front().product == (options.contains("bits") ? "simulation" : "int8 product"));
      const std::string hash = test::weights_hash(one["output"].get<std::string>());
      if (expected.empty()) expected = hash;
      REQUIRE(hash == expected);
    }
    Model::open(dir / std::to_string(count - 1)).load_block(0);
  }
}

TEST_CASE("later blocks are calibrated on what rounded inputs give", "[pipeline][int8]") {
  const test::TempDir dir;
  Json coarse = kStatic;
  coarse["activation_bits"] = 3;
  test::run(job(dir / "fine", "int8", kStatic));
  test::run(job(dir / "coarse", "int8", coarse));
  const auto hash = [&](const char* output, const char* tensor) {
    return Model::open(dir / output).checkpoint().hash_of_tensor(tensor);
  };
  // The first input is the same, its scale not; what comes behind it differs by more than the number of bits.
  const auto scale = [&](const char* output, const char* op) {
    return Model::open(dir / output)
        .checkpoint()
        .read(std::string("model.layers.") + op + ".input_scale")
        .item<double>();
  };
  REQUIRE(scale("coarse", "0.self_attn.q_proj") / scale("fine", "0.self_attn.q_proj") ==
          Approx(255.0 / 7).epsilon(0.01));
  REQUIRE(scale("coarse", "1.mlp.up_proj") / scale("fine", "1.mlp.up_proj") !=
          Approx(255.0 / 7).epsilon(0.01));
  REQUIRE(hash("coarse", "model.layers.3.mlp.up_proj.weight") ==
          hash("fine", "model.layers.3.mlp.up_proj.weight"));
}

TEST_CASE("llm_int8 keeps outlier columns and reports the features", "[pipeline][llm_int8]") {
  const test::TempDir dir;
  const double dense = perplexity(test::bundled_model());
  int count = 0;
  for (const char* weights : {"calibrated", "original", "dequantized"}) {
    CAPTURE(weights);
    std::string expected;
    for (const int threads : {1, 2}) {
      const auto output = dir / std::to_string(count++);
      Json one = job(output, "llm_int8", {{"threshold", 3.0}, {"outlier_weights", weights}});
      one["threads"] = threads;
      const auto report = test::run(one);
      REQUIRE(report.verification->passed);
      REQUIRE_FALSE(report.outliers.empty());
      if (expected.empty()) expected = test::weights_hash(output);
      REQUIRE(test::weights_hash(output) == expected);
      REQUIRE(static_cast<int64_t>(Model::open(output).stored_bytes()) == report.totals.bytes_after);
    }
    const auto output = dir / std::to_string(count - 1);
    REQUIRE(test::read_json(output / "config.json")["quantization_config"]["quant_method"] == "lcomp");
    REQUIRE(perplexity(output) < dense * 1.01);
    REQUIRE(test::read_json(output / "report.json")["outliers"][0]["tokens"] > 0);
  }
}

TEST_CASE("static ranges without a text to calibrate on are refused before anything runs",
          "[pipeline][int8]") {
  const test::TempDir dir;
  Json one = job(dir / "out", "int8", kStatic);
  one.erase("calibration");
  REQUIRE(
      test::error_text([&] { test::run(one); }) ==
      "[job: /calibration/text] must name a text, which the method int8 takes its statistics from with these "
      "settings; it is missing or empty");
}

TEST_CASE("verification sees a static range that was changed", "[pipeline][int8][verify]") {
  const test::TempDir dir;
  test::run(job(dir / "out", "int8", kStatic));
  const Model written = Model::open(dir / "out");
  const model::OperatorInfo op = written.architecture().operators(0).at(0);
  std::map<std::string, at::Tensor> tensors;
  for (const std::string& name : written.checkpoint().names())
    tensors[name] = written.checkpoint().read(name);
  tensors.at(op.name + ".input_scale").mul_(2);
  const Model damaged(written.config_json(), std::make_shared<io::MemoryCheckpoint>(tensors), "damaged");
  const auto record = pipeline::OutputRecord::from_json(
      io::read_file(dir / "out" / pipeline::OutputRecord::kFileName), "lcomp.json");
  pipeline::Verification result;
  REQUIRE(pipeline::compare_tensors(written, record, result).empty());
  REQUIRE(pipeline::compare_tensors(damaged, record, result) ==
          "'" + op.name + "' decodes to other values than were computed");
}

TEST_CASE("settings of rounded inputs that do not fit are errors of the job", "[pipeline][int8]") {
  const test::TempDir dir;
  const auto refusal = [&](const Json& options) {
    return test::error_text([&] { test::run(job(dir / "out", "int8", options)); });
  };
  REQUIRE_THAT(refusal({{"activation_dynamic", false}}),
               Catch::Contains("activations per token must be dynamic"));
  REQUIRE_THAT(
      refusal({{"activation_convention", "restricted"}}),
      Catch::Contains("activation_convention must be mid_range for dynamic activations, because readers of "
                      "compressed-tensors apply that one; received restricted"));
}

TEST_CASE("codes that are no numbers of 8 bits have no place beside rounded inputs", "[pipeline][int8]") {
  pipeline::PassOptionsOf<quant::QuantScheme, quant::ActivationScheme> options;
  options.get<quant::QuantScheme>().format = quant::NumberFormat::kNf4;
  REQUIRE(test::error_text([&] {
            pipeline::plan_quantized_input(options, "int8", {"op", 4, 128, at::kFloat});
          }) == "[int8] format must be int or fp8_e4m3 beside quantized activations; received nf4");
}

TEST_CASE("rounded inputs have no place in a dense checkpoint", "[pipeline][int8]") {
  Json job = test::job_with("nowhere", Json::array({{{"method", "int8"}}}));
  job["write"] = {{"format", "dense"}};
  CHECK_THAT(
      test::error_text([&] { test::run(job); }),
      Catch::Matchers::Contains("[job: /passes/0] [int8] write.format must be compressed-tensors where "
                                "inputs are rounded, which dense files cannot say; received dense"));
}

TEST_CASE("jobs with rounded inputs continue where they were stopped, with two threads, to the same bytes",
          "[pipeline][rounded_inputs][resume][determinism]") {
  const test::TempDir dir;
  const std::vector<Json> passes = {
      {{"method", "int8"},
       {"solver", "gptq"},
       {"activation_granularity", "tensor"},
       {"activation_dynamic", false}},
      {{"method", "llm_int8"}, {"threshold", 2}},
      {{"method", "smoothquant"}, {"search_alpha", true}, {"level", "o3"}, {"activation_percentile", 0.98}}};
  for (const Json& pass : passes) {
    const std::string name = pass["method"];
    CAPTURE(name);
    test::Watcher counts;
    const auto whole = test::run(test::job_with(dir / name, Json::array({pass})), counts);
    Json job = test::job_with(dir / (name + "-continued"), Json::array({pass}));
    job["threads"] = 2;
    test::Watcher stops;
    stops.stops = [&](int sign) { return sign >= counts.signs * 2 / 3; };
    REQUIRE_THROWS_AS(test::run(job, stops), Interrupted);
    const auto continued = test::run(job);
    REQUIRE(continued.blocks.front().resumed);
    REQUIRE(test::weights_hash(dir / name) == test::weights_hash(dir / (name + "-continued")));
    for (size_t i = 0; i < whole.operators.size(); ++i) {
      REQUIRE(whole.operators[i].product == continued.operators[i].product);
      REQUIRE((whole.operators[i].outliers == continued.operators[i].outliers));
    }
  }
}

TEST_CASE("overrides leave alone what holds for the whole pass", "[pipeline][rounded_inputs]") {
  const test::TempDir dir;
  const auto error = [&](const Json& pass, const Json& change) {
    Json entry = pass, override = change;
    override["match"] = "down_proj";
    entry["overrides"] = Json::array({override});
    return test::error_text([&] { test::run(test::job_with(dir / "out", Json::array({entry}))); });
  };
  REQUIRE(error({{"method", "awq"}, {"group_size", 64}}, {{"solver", "none"}}) ==
          "[job: /passes/0/overrides/0/solver] must be as in the pass, since it holds for all of its "
          "operators: \"rtn\"; "
          "it is \"none\"");
  REQUIRE_THAT(error({{"method", "llm_int8"}}, {{"threshold", 3}}),
               Catch::Contains("/overrides/0/threshold]"));
  REQUIRE_THAT(
      error({{"method", "int8"}, {"activation_granularity", "tensor"}}, {{"activation_dynamic", false}}),
      Catch::Contains("/overrides/0/activation_dynamic]"));
  REQUIRE_THAT(error({{"method", "wanda"}}, {{"refit", true}}), !Catch::Contains("override"));
  REQUIRE_THAT(error({{"method", "magnitude"}}, {{"refit", true}}),
               Catch::Contains("the settings must not need statistics that those of the pass do not"));
  REQUIRE_THAT(
      error({{"method", "smoothquant"}, {"solver", "gptq"}, {"range", "hessian"}, {"search_alpha", true}},
            {{"alpha", 0.5}}),
      Catch::Contains("range must be min_max or mse with search_alpha"));
  REQUIRE_THAT(
      error({{"method", "mixed_precision"}, {"format", "nf4"}, {"group_size", 64}}, {{"min_bits", 3}}),
      Catch::Contains("format must be int, which alone has a choice of bits; it is nf4"));
  REQUIRE_THAT(error({{"method", "mixed_precision"}, {"granularity", "tensor"}}, {{"min_bits", 3}}),
               Catch::Contains("granularity must be channel or group"));
}
