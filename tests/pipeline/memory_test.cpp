// Peak memory is bounded: it does not grow with the depth of the model, and a budget is kept or refused.
#include <ATen/ATen.h>

#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"
#include "lcomp/io/safetensors_writer.h"
#include "lcomp/model/model.h"
#include "lcomp/pipeline/planner.h"
#include "pipeline/child_runs.h"
#include "support/error_text.h"

namespace fs = std::filesystem;
using namespace lcomp;
using test::Json;

namespace {

constexpr int64_t kHidden = 256;
constexpr int64_t kInner = 768;
constexpr int64_t kVocabulary = 2048;  // that of the bundled tokenizer

/// A llama of random float32 weights with `layers` blocks of 3.4 MB each, and the bundled tokenizer.
fs::path write_llama(const fs::path& dir, int64_t layers) {
  fs::create_directories(dir);
  const Json config = {{"model_type", "llama"},          {"hidden_size", kHidden},
                       {"intermediate_size", kInner},    {"num_hidden_layers", layers},
                       {"num_attention_heads", 4},       {"vocab_size", kVocabulary},
                       {"max_position_embeddings", 512}, {"tie_word_embeddings", true}};
  test::write_text(dir / "config.json", config.dump());
  fs::copy(test::bundled_model() / "tokenizer.json", dir / "tokenizer.json");
  Rng rng(7, "llama");
  const auto random = [&](at::IntArrayRef shape) {
    at::Tensor out = at::empty(shape, at::kFloat);
    float* values = out.data_ptr<float>();
    for (int64_t i = 0; i < out.numel(); ++i) values[i] = static_cast<float>(rng.uniform() - 0.5) * 0.1F;
    return out;
  };
  io::NamedTensors tensors{{"model.embed_tokens.weight", random({kVocabulary, kHidden})},
                           {"model.norm.weight", at::ones({kHidden})}};
  for (int64_t i = 0; i < layers; ++i) {
    const std::string prefix = "model.layers." + std::to_string(i) + ".";
    for (const char* name : {"q_proj", "k_proj", "v_proj", "o_proj"})
      tensors.emplace_back(prefix + "self_attn." + name + ".weight", random({kHidden, kHidden}));
    tensors.emplace_back(prefix + "mlp.gate_proj.weight", random({kInner, kHidden}));
    tensors.emplace_back(prefix + "mlp.up_proj.weight", random({kInner, kHidden}));
    tensors.emplace_back(prefix + "mlp.down_proj.weight", random({kHidden, kInner}));
    for (const char* name : {"input_layernorm", "post_attention_layernorm"})
      tensors.emplace_back(prefix + name + ".weight", at::ones({kHidden}));
  }
  io::write_safetensors(dir / "model.safetensors", tensors);
  return dir;
}

int64_t peak_with(const test::TempDir& dir, int64_t layers, const Json& pass) {
  const std::string name = std::to_string(layers);
  Json job = test::job_with(dir / ("out" + name), Json::array({pass}));
  job["model"] = write_llama(dir / ("model" + name), layers).string();
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 64}, {"max_windows", 2}, {"reference", true}};
  const auto child = test::run_in_child(job);
  REQUIRE(child.finished);
  REQUIRE(child.peak_bytes > 0);
  return child.peak_bytes;
}

void require_flat_memory(const Json& pass) {
  const test::TempDir dir;
  const int64_t shallow = peak_with(dir, 8, pass);
  const int64_t deep = peak_with(dir, 64, pass);
  INFO("8 blocks: " << shallow / 1'000'000 << " MB, 64 blocks: " << deep / 1'000'000 << " MB");
  // The other 56 blocks are 190 MB as stored. 20 MB is for names, hashes, report rows and the allocator.
  REQUIRE(deep - shallow < 20'000'000);
}

}  // namespace

TEST_CASE("the peak memory of 64 blocks is that of 8 blocks", "[pipeline][memory][slow]") {
  require_flat_memory(test::pass("gptq"));
}

TEST_CASE("the peak memory of 64 blocks is that of 8 blocks where gradients are made",
          "[pipeline][memory][gradients][slow]") {
  require_flat_memory({{"method", "squeezellm"}});
}

TEST_CASE("the peak memory of 64 blocks is that of 8 blocks where matrices are factored",
          "[pipeline][memory][lowrank][slow]") {
  require_flat_memory({{"method", "svd_llm"}});
}

TEST_CASE("a run stays below a budget that is little above its estimate", "[pipeline][memory][slow]") {
  const test::TempDir dir;
  const fs::path model = write_llama(dir / "model", 4);
  const std::string cache = GENERATE("memory", "disk");
  const Json pass = GENERATE(test::pass("gptq"), test::pass("gptq", {{"mismatch", "split"}}),
                             test::pass("awq"), Json{{"method", "squeezellm"}});
  Json job = test::job_with(dir / "out", Json::array({pass}));
  job["model"] = model.string();
  // 67 MB of hidden states and widest inputs.
  job["calibration"].update({{"samples", 32}, {"length", 512}, {"cache", cache}});
  job["evaluate"] = {
      {"text", test::evaluation_text().string()}, {"window", 256}, {"max_windows", 8}, {"reference", true}};
  const auto estimate = pipeline::plan(test::parse(job), pipeline::builtin_methods()).memory.peak();
  const auto budget = static_cast<int64_t>(estimate + estimate / 50);
  job["max_memory"] = budget;
  const auto child = test::run_in_child(job);
  INFO(pass << ", cache " << cache << ": " << child.peak_bytes / 1'000'000 << " of " << budget / 1'000'000
            << " MB");
  REQUIRE(child.finished);
  REQUIRE(child.peak_bytes <= budget);
}

TEST_CASE("a budget that cannot be kept is refused before anything is made", "[pipeline][memory]") {
  const test::TempDir dir;
  Json job = test::gptq_job(dir / "deep" / "out");
  job["max_memory"] = "1MB";
  REQUIRE_THROWS_AS(test::run(job), ResourceError);
  const std::string text = test::error_text([&] { test::run(job); });
  REQUIRE_THAT(text, Catch::StartsWith("[job: /max_memory] the budget must cover the estimated peak of ") &&
                         Catch::Contains("program 200") && Catch::Contains("; it is 1 MB."));
  REQUIRE(io::list_directory(dir.path()).empty());
}

TEST_CASE("a budget between the two puts the activations on disk, and the run there gives the same bytes",
          "[pipeline][memory]") {
  const test::TempDir dir;
  const auto methods = pipeline::builtin_methods();
  const auto peak = [&](Json job, const char* cache) {
    job["calibration"]["cache"] = cache;
    return pipeline::plan(test::parse(job), methods).memory.peak();
  };
  Json job = test::gptq_job(dir / "out");
  const uint64_t in_memory = peak(job, "memory");
  const uint64_t on_disk = peak(job, "disk");
  REQUIRE(on_disk < in_memory);
  REQUIRE_FALSE(pipeline::plan(test::parse(job), methods).activations_on_disk);

  job["max_memory"] = (on_disk + in_memory) / 2;
  REQUIRE(pipeline::plan(test::parse(job), methods).activations_on_disk);
  test::Watcher watcher;
  bool seen = false;
  watcher.at_sign = [&](int) { seen = seen || fs::exists(test::work_dir_of(dir / "out") / "hidden.cache"); };
  test::run(job, watcher);
  REQUIRE(seen);
  REQUIRE_FALSE(fs::exists(dir / "out" / "hidden.cache"));

  job.erase("max_memory");
  job["output"] = (dir / "memory").string();
  test::run(job);
  REQUIRE(test::weights_hash(dir / "memory") == test::weights_hash(dir / "out"));

  // The job that insists on memory is refused instead.
  job["output"] = (dir / "refused").string();
  job["max_memory"] = (on_disk + in_memory) / 2;
  job["calibration"]["cache"] = "memory";
  REQUIRE_THROWS_AS(test::run(job), ResourceError);
}
