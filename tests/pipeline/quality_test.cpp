// What the methods are worth, on the bundled model.
#include <fstream>

#include "lcomp/eval/evaluate.h"
#include "lcomp/model/model.h"
#include "pipeline/job_runs.h"

using namespace lcomp;
using test::Json;

namespace {

pipeline::RunReport scored_run(const std::filesystem::path& output, const Json& passes, int64_t starts = 64) {
  Json job = test::job_with(output, passes);
  job["threads"] = 0;
  job["calibration"] = {
      {"text", test::calibration_text().string()}, {"samples", 16}, {"length", 256}, {"starts", starts}};
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 40}, {"reference", true}};
  return test::run(job);
}

pipeline::RunReport scored_run(const test::TempDir& dir, const std::string& method, int64_t bits) {
  return scored_run(dir / (method + std::to_string(bits)),
                    Json::array({test::pass(method, {{"bits", bits}})}));
}

}  // namespace

TEST_CASE("the dense model has the recorded perplexity on the whole evaluation text",
          "[pipeline][quality][slow]") {
  const auto model = model::Model::open(test::bundled_model());
  const auto tokenizer = io::Tokenizer::from_file(test::bundled_model() / "tokenizer.json");
  const auto text = eval::read_evaluation_text(test::evaluation_text(), tokenizer, {.window = 256});
  ThreadPool pool;
  Observer silent;
  const auto scores = eval::evaluate(model, nullptr, text, linalg::Precision::kF32, pool, silent);
  REQUIRE(*scores.perplexity == Approx(35.4342).epsilon(1e-3));
}

TEST_CASE("gptq loses less than rounding to nearest, in perplexity and in KL, in 3 and in 4 bits",
          "[pipeline][quality][slow]") {
  const test::TempDir dir;
  for (const int64_t bits : {3, 4}) {
    const auto nearest = scored_run(dir, "rtn", bits);
    const auto gptq = scored_run(dir, "gptq", bits);
    const auto& dense_row = gptq.evaluation.at(0);
    const auto& rtn_row = nearest.evaluation.at(1);
    const auto& gptq_row = gptq.evaluation.at(1);
    CAPTURE(bits, *dense_row.perplexity, *rtn_row.perplexity, *gptq_row.perplexity, *rtn_row.kl_mean,
            *gptq_row.kl_mean);
    REQUIRE(*gptq_row.perplexity < *rtn_row.perplexity);
    REQUIRE(*gptq_row.kl_mean < *rtn_row.kl_mean);
    REQUIRE(*gptq_row.perplexity > 0.98 * *dense_row.perplexity);
    REQUIRE(*gptq_row.top1_agreement > *rtn_row.top1_agreement);
    // The errors of the blocks add up.
    REQUIRE(*gptq.blocks.front().output_drift > 0);
    REQUIRE(*gptq.blocks.back().output_drift > *gptq.blocks.front().output_drift);
    REQUIRE(*gptq.blocks.back().output_drift < *nearest.blocks.back().output_drift);
    // The same weights, the same size.
    REQUIRE(gptq.totals.bytes_after == nearest.totals.bytes_after);
  }
}

TEST_CASE("each method diverges less from the dense model than the simpler one it improves on",
          "[pipeline][quality][slow]") {
  const test::TempDir dir;
  int count = 0;
  const auto kl = [&](const Json& passes) {
    return *scored_run(dir / std::to_string(count++), passes).evaluation.at(1).kl_mean;
  };
  const auto one = [&](Json pass) { return kl(Json::array({std::move(pass)})); };
  const Json three_bits = {{"bits", 3}, {"group_size", 64}};
  const auto grouped = [&](const std::string& method, const Json& more = Json::object()) {
    Json pass = {{"method", method}};
    pass.update(three_bits);
    pass.update(more);
    return one(pass);
  };
  const Json per_tensor = {{"granularity", "tensor"}, {"activation_granularity", "tensor"}};
  const auto eight_bits = [&](const std::string& method) {
    Json pass = {{"method", method}};
    pass.update(per_tensor);
    return one(pass);
  };

  const double published =
      grouped("gptq", {{"range", "min_max"}, {"mismatch", "none"}, {"sweeps", 0}, {"refit", false}});
  const double gptq = grouped("gptq");
  CHECK(gptq < 0.85 * published);
  CHECK(published < grouped("rtn"));
  CHECK(grouped("rtn") < 0.9 * grouped("rtn", {{"symmetric_convention", "mid_range"}}));
  CHECK(grouped("awq") < grouped("rtn"));
  CHECK(one({{"method", "squeezellm"}, {"bits", 3}}) <
        one({{"method", "rtn"}, {"bits", 3}, {"granularity", "channel"}}));
  CHECK(eight_bits("smoothquant") < eight_bits("int8"));
  CHECK(one({{"method", "llm_int8"}, {"threshold", 3}}) < one({{"method", "int8"}}));

  const Json half = {{"method", "sparsegpt"}};
  // Inputs of this model are much alike, so that Wanda's mask is hardly better than that of magnitude here.
  const double walk = one(half), wanda = one({{"method", "wanda"}});
  CHECK(walk < one({{"method", "magnitude"}}));
  CHECK(walk < wanda);
  CHECK(one({{"method", "sparsegpt"}, {"refit", true}}) < walk);
  const double pattern = one({{"method", "wanda"}, {"pattern", "2:4"}});
  CHECK(one({{"method", "wrp"}}) < pattern);
  CHECK(one({{"method", "sparsegpt"}, {"pattern", "2:4"}, {"refit", true}}) < 0.9 * pattern);
}

TEST_CASE("mixed precision diverges less than uniform bits at equal bytes", "[pipeline][quality][slow]") {
  const test::TempDir dir;
  const Json uniform = {{"method", "gptq"}, {"bits", 3}, {"group_size", 64}};
  const Json mixed = {{"method", "mixed_precision"}, {"bits_per_weight", 3.25}, {"group_size", 64}};
  // Full windows: gradients in short ones are those of a model that knows little of its context.
  const auto even = scored_run(dir / "uniform", Json::array({uniform}), 0);
  const auto chosen = scored_run(dir / "mixed", Json::array({mixed}), 0);
  CHECK(*chosen.evaluation.at(1).kl_mean < *even.evaluation.at(1).kl_mean);
  CHECK(chosen.totals.bytes_after <= even.totals.bytes_after);
}

TEST_CASE("sparsity allocated by estimated losses diverges less than uniform", "[pipeline][quality][slow]") {
  const test::TempDir dir;
  for (const char* method : {"wanda", "sparsegpt"}) {
    CAPTURE(method);
    const auto pruned = [&](const char* allocation) {
      const Json pass = {{"method", method}, {"sparsity", 0.7}, {"allocation", allocation}};
      return scored_run(dir / (std::string(method) + allocation), Json::array({pass}), 0);
    };
    const auto even = pruned("uniform"), chosen = pruned("budget");
    CHECK(*chosen.evaluation.at(1).kl_mean < 0.85 * *even.evaluation.at(1).kl_mean);
    CHECK(*chosen.evaluation.at(1).perplexity < *even.evaluation.at(1).perplexity);
    CHECK(chosen.totals.bytes_after < 1.005 * even.totals.bytes_after);
  }
}

TEST_CASE("deleting a fifth of the weights by gradients costs far less than by magnitude, a refit pays",
          "[pipeline][quality][slow]") {
  const test::TempDir dir;
  const auto scores = [&](const char* name, const Json& pass) {
    const auto report = scored_run(dir / name, Json::array({pass}));
    const auto before = report.totals.parameters, after = *report.totals.parameters_after;
    REQUIRE(static_cast<double>(after) < 0.86 * static_cast<double>(before));
    return report.evaluation.at(1);
  };
  const auto fisher = scores("fisher", {{"method", "fisher_mask"}, {"ratio", 0.2}});
  const auto scaled = scores("scaled", {{"method", "fisher_mask"}, {"ratio", 0.2}, {"compensate", "scales"}});
  const auto bare = scores("bare", {{"method", "fisher_mask"}, {"ratio", 0.2}, {"compensate", "none"}});
  const auto taylor = scores("taylor", {{"method", "llm_pruner"}, {"ratio", 0.2}, {"selection", "global"}});
  const auto by_size = scores("size", {{"method", "llm_pruner"},
                                       {"ratio", 0.2},
                                       {"selection", "global"},
                                       {"importance", "l2"},
                                       {"compensate", "none"}});
  CAPTURE(*fisher.kl_mean, *scaled.kl_mean, *bare.kl_mean, *taylor.kl_mean, *by_size.kl_mean);
  CHECK(*fisher.kl_mean < 0.98 * *scaled.kl_mean);
  CHECK(*scaled.kl_mean < *bare.kl_mean);
  CHECK(*bare.kl_mean < 0.4 * *by_size.kl_mean);
  CHECK(*taylor.kl_mean < 0.3 * *by_size.kl_mean);
}

TEST_CASE("a sentence encoder with half of its operations keeps more of its order than by magnitude",
          "[pipeline][quality][slow]") {
  const auto model = test::shared_data("models/minilm-l6");
  if (!model) {
    WARN("skipped: models/minilm-l6 is not in LCOMP_TEST_DATA");
    return;
  }
  const test::TempDir dir;
  std::ifstream sentences(*model / "sentences.txt");
  std::string line, calibration, evaluation;
  for (int i = 0; std::getline(sentences, line); ++i) {
    if (i % 2 == 0) {
      calibration += Json{{"text", line}}.dump() + "\n";
    } else {
      evaluation += line + "\n";
    }
  }
  test::write_text(dir / "calibration.jsonl", calibration);
  test::write_text(dir / "sentences.txt", evaluation);
  const auto scores = [&](const char* name, const Json& pass) {
    const Json job = {{"model", model->string()},
                      {"output", (dir / name).string()},
                      {"calibration",
                       {{"text", (dir / "calibration.jsonl").string()},
                        {"samples", 300},
                        {"length", 128},
                        {"short", "keep"}}},
                      {"passes", Json::array({pass})},
                      {"evaluate", {{"text", (dir / "sentences.txt").string()}, {"reference", true}}}};
    return test::run(job).evaluation.back();
  };
  const auto fisher = scores("fisher", {{"method", "fisher_mask"},
                                        {"ratio", 0.5},
                                        {"budget", "macs"},
                                        {"tokens", 32},
                                        {"compensate", "scales"}});
  const auto by_size = scores(
      "size", {{"method", "llm_pruner"}, {"ratio", 0.5}, {"importance", "l2"}, {"compensate", "none"}});
  CAPTURE(*fisher.embedding_cosine, *fisher.rank_correlation, *by_size.embedding_cosine,
          *by_size.rank_correlation);
  CHECK(*fisher.embedding_cosine > *by_size.embedding_cosine + 0.1);
  CHECK(*fisher.rank_correlation > *by_size.rank_correlation);
}
