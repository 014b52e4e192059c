// What the methods are worth, on the bundled model.
#include "lcomp/eval/evaluate.h"
#include "lcomp/model/model.h"
#include "pipeline/job_runs.h"

using namespace lcomp;
using test::Json;

namespace {

pipeline::RunReport scored_run(const test::TempDir& dir, const std::string& method, int64_t bits) {
  Json job = test::job_with(dir / (method + std::to_string(bits)),
                            Json::array({test::pass(method, {{"bits", bits}})}));
  job["threads"] = 0;
  job["calibration"] = {
      {"text", test::calibration_text().string()}, {"samples", 16}, {"length", 256}, {"starts", 64}};
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 40}, {"reference", true}};
  return test::run(job);
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
  REQUIRE(scores.perplexity == Approx(35.4342).epsilon(1e-3));
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
    REQUIRE(*gptq_row.perplexity > *dense_row.perplexity);
    REQUIRE(*gptq_row.top1_agreement > *rtn_row.top1_agreement);
    // The errors of the blocks add up.
    REQUIRE(*gptq.blocks.front().output_drift > 0);
    REQUIRE(*gptq.blocks.back().output_drift > *gptq.blocks.front().output_drift);
    REQUIRE(*gptq.blocks.back().output_drift < *nearest.blocks.back().output_drift);
    // The same weights, the same size.
    REQUIRE(gptq.totals.bytes_after == nearest.totals.bytes_after);
  }
}
