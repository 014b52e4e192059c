// Jobs on encoders: passes that take statistics or gradients, what stands on top, and the embeddings'
// measure.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/model/model.h"
#include "pipeline/job_runs.h"
#include "support/error_text.h"
#include "support/tiny_bert.h"
#include "support/toy_tokenizer.h"

using namespace lcomp;
using test::Json;

namespace {

/// A directory with a tiny BERT under a task, its tokenizer, sentences and a text to calibrate on.
class EncoderFiles {
 public:
  EncoderFiles() {
    io::make_directories(dir_ / "model/1_Pooling");
    test::TinyBert bert("bert.");
    bert.tensors["bert.pooler.dense.weight"] = at::ones({16, 16});
    bert.tensors["classifier.bias"] = at::ones({3});
    io::NamedTensors tensors(bert.tensors.begin(), bert.tensors.end());
    io::write_safetensors(dir_ / "model/model.safetensors", tensors);
    test::write_text(dir_ / "model/config.json", bert.config.dump());
    test::write_text(dir_ / "model/tokenizer.json", test::word_pieces_document().dump());
    test::write_text(dir_ / "model/1_Pooling/config.json", R"({"pooling_mode_cls_token": true})");
    std::string text, sentences;
    const char* words[] = {"unaffable", "do", "not", "unable", ",", "affable", "."};
    for (int i = 0; i < 600; ++i) text += std::string(words[(i * i + i / 3) % 7]) + " ";
    for (int s = 0; s < 8; ++s) {
      for (int i = 0; i < 3 + s; ++i) sentences += std::string(words[(i * s + i) % 7]) + " ";
      sentences += "\n";
    }
    test::write_text(dir_ / "text.txt", text);
    test::write_text(dir_ / "sentences.txt", sentences);
  }

  std::filesystem::path operator/(const std::string& name) const { return dir_ / name; }

  Json job(const std::string& output, const Json& pass) const {
    return {{"model", (dir_ / "model").string()},
            {"output", (dir_ / output).string()},
            {"compute", "f32"},
            {"threads", 1},
            {"calibration", {{"text", (dir_ / "text.txt").string()}, {"samples", 6}, {"length", 24}}},
            {"passes", Json::array({pass})},
            {"evaluate", {{"text", (dir_ / "sentences.txt").string()}, {"reference", true}}}};
  }

 private:
  test::TempDir dir_;
};

const std::vector<Json> kPasses = {
    {{"method", "rtn"}, {"bits", 4}, {"group_size", 16}},
    {{"method", "gptq"}, {"bits", 4}, {"group_size", 16}},
    {{"method", "awq"}, {"bits", 4}, {"group_size", 16}},
    {{"method", "squeezellm"}, {"bits", 4}},
    {{"method", "magnitude"}, {"sparsity", 0.3}},
    {{"method", "wanda"}, {"sparsity", 0.3}},
    {{"method", "sparsegpt"}, {"sparsity", 0.3}},
    {{"method", "fisher_mask"}, {"ratio", 0.2}, {"channel_step", 1}},
    {{"method", "fisher_mask"}, {"ratio", 0.2}, {"channel_step", 1}, {"uniform", true}},
    {{"method", "fisher_mask"},
     {"ratio", 0.2},
     {"channel_step", 1},
     {"uniform", true},
     {"targets", {"intermediate.dense", "re:layer\\.\\d+\\.output\\.dense"}}},
    {{"method", "llm_pruner"}, {"ratio", 0.2}, {"channel_step", 1}}};

}  // namespace

TEST_CASE("passes run over an encoder, and its embeddings are measured beside the dense model's",
          "[pipeline][encoder]") {
  const EncoderFiles files;
  const auto dense = model::Model::open(files / "model");
  REQUIRE(dense.pooling() == model::Pooling::kCls);
  for (size_t p = 0; p < kPasses.size(); ++p) {
    CAPTURE(kPasses[p].dump());
    const std::string output = "out" + std::to_string(p);
    const auto report = test::run(files.job(output, kPasses[p]));
    REQUIRE(report.verification->passed);
    const auto& row = report.evaluation.back();
    REQUIRE_FALSE(row.perplexity);
    CHECK(*row.embedding_cosine > 0.5);
    CHECK(*row.embedding_cosine < 1 - 1e-7);
    CHECK(*row.embedding_cosine_min <= *row.embedding_cosine);
    CHECK(row.rank_correlation);
    CHECK(row.windows == 8);
    CHECK(report.blocks.back().output_drift > 0);
    const auto model = model::Model::open(files / output);
    CHECK(model.pooling() == model::Pooling::kCls);
    for (const char* name :
         {"bert.pooler.dense.weight", "classifier.bias", "bert.embeddings.position_embeddings.weight"})
      CHECK(model.checkpoint().hash_of_tensor(name) == dense.checkpoint().hash_of_tensor(name));
  }
}

TEST_CASE("what stands on top of a quantized encoder is said to be dense", "[pipeline][encoder]") {
  const EncoderFiles files;
  test::run(files.job("out", kPasses[0]));
  const Json config = test::read_json(files / "out/config.json");
  const Json ignore = config.at("quantization_config").at("ignore");
  CHECK(std::count(ignore.begin(), ignore.end(), "re:(.*[.])?pooler([.].*)?$") == 1);
  CHECK(std::count(ignore.begin(), ignore.end(), "lm_head") == 0);
}

TEST_CASE("gradients of an encoder depend on the seed, and not on the threads", "[pipeline][encoder]") {
  const EncoderFiles files;
  const auto hash = [&](const std::string& output, int threads, int seed) {
    Json job = files.job(output, {{"method", "squeezellm"}, {"bits", 2}});
    job["threads"] = threads;
    job["seed"] = seed;
    test::run(job);
    return test::weights_hash(files / output);
  };
  const std::string one = hash("one", 1, 0);
  CHECK(hash("three", 3, 0) == one);
  CHECK(hash("other", 1, 1) != one);
}

TEST_CASE("jobs that an encoder cannot do are refused before its weights are read", "[pipeline][encoder]") {
  const EncoderFiles files;
  const auto error = [&](const std::string& pointer, const Json& value) {
    Json job = files.job("out", kPasses[1]);
    job[Json::json_pointer(pointer)] = value;
    REQUIRE_THROWS_AS(test::run(job), ConfigError);
    return test::error_text([&] { test::run(job); });
  };
  CHECK(error("/calibration/length", 65) ==
        "[job: /calibration/length] sequences must have at most the 64 tokens that the model has position "
        "embeddings for; they have 65");
  CHECK_THAT(
      error("/evaluate/reference", false),
      Catch::StartsWith("[job: /evaluate/reference] must be true: an encoder is measured by its embeddings"));
  CHECK_THAT(error("/evaluate/stride", 4),
             Catch::StartsWith("[job: /evaluate/stride] must be 0 for an encoder"));
  CHECK_FALSE(std::filesystem::exists(files / "out"));
}
