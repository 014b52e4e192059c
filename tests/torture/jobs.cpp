#include "torture/jobs.h"

#include <ATen/ATen.h>

#include "lcomp/core/rng.h"
#include "lcomp/io/safetensors_writer.h"
#include "pipeline/job_runs.h"

namespace lcomp::test {
namespace {

Json with(Json entry, const Json& more) {
  entry.update(more);
  return entry;
}

Json method(const std::string& name, const Json& more = Json::object()) {
  return with({{"method", name}}, more);
}

NamedJob job_of(const std::string& name, const Json& pass, const Json& more = Json::object()) {
  Json job = job_with("", Json::array({pass}));
  job.merge_patch(more);
  return {name, job, false};
}

}  // namespace

std::vector<NamedJob> torture_jobs() {
  const Json evaluated = {{"evaluate", {{"window", 64}, {"max_windows", 2}, {"reference", true}}}};
  const Json sharded = {{"write", {{"shard_size", 300'000}}}};
  const Json on_disk = {{"calibration", {{"cache", "disk"}}}};
  const Json two_threads = {{"threads", 2}};
  const Json fifth = {{"removed", 0.2}};
  const Json no_passes = {{"passes", nullptr}};
  const auto embedding = [&](const Json& more) {
    return with(no_passes, {{"embedding", with({{"ratio", 4}, {"exceptions", 20}}, more)}});
  };
  return {
      job_of("rtn", pass("rtn"), evaluated),
      job_of("rtn in shards", pass("rtn"), sharded),
      job_of("gptq", pass("gptq"), evaluated),
      job_of("gptq in two streams", pass("gptq", {{"mismatch", "split"}, {"sweeps", 1}, {"refit", true}}),
             two_threads),
      job_of("gptq on disk in shards", pass("gptq", {{"mismatch", "fixed"}}), with(on_disk, sharded)),
      job_of("awq", pass("awq"), two_threads),
      job_of("awq then gptq", pass("awq", {{"solver", "gptq"}})),
      job_of("smoothquant then gptq", method("smoothquant", {{"solver", "gptq"}}), evaluated),
      job_of("int8", method("int8"), on_disk),
      job_of("llm_int8", method("llm_int8")),
      job_of("squeezellm", method("squeezellm", {{"bits", 3}}), on_disk),
      job_of("mixed_precision",
             method("mixed_precision",
                    {{"bits_per_weight", 3.26}, {"min_bits", 2}, {"max_bits", 8}, {"group_size", 64}})),
      job_of("magnitude", method("magnitude")),
      job_of("wanda", method("wanda", {{"pattern", "2:4"}}), sharded),
      job_of("ria", method("ria")),
      job_of("obd", method("obd")),
      job_of("sparsegpt under a budget",
             method("sparsegpt", {{"sparsity", 0.6}, {"allocation", "budget"}, {"refit", true}}), evaluated),
      job_of("wrp", method("wrp"), two_threads),
      job_of("fisher_mask", method("fisher_mask", {{"ratio", 0.2}}), evaluated),
      job_of("llm_pruner", method("llm_pruner", {{"ratio", 0.2}, {"selection", "global"}}), on_disk),
      job_of("svd", method("svd", fifth)),
      job_of("fwsvd", method("fwsvd", fifth), two_threads),
      job_of("asvd", method("asvd", fifth)),
      job_of("svd_llm under a budget", method("svd_llm", with(fifth, {{"allocation", "budget"}})), evaluated),
      job_of("pca", method("pca", fifth)),
      job_of("lqer", method("lqer", {{"bits", 3}, {"group_size", 64}, {"rank", 8}})),
      job_of("oats", method("oats", {{"removed", 0.5}, {"iterations", 3}}), sharded),
      job_of("tensor_train", method("tensor_train", fifth)),
      job_of("tucker_heads", method("tucker_heads", {{"targets", {"self_attn.*"}}})),
      job_of("tucker_layers", method("tucker_layers", {{"removed", 0.3}})),
      job_of("embedding of low rank", Json(), with(embedding({{"method", "low_rank"}}), evaluated)),
      job_of("embedding by morphte", Json(), embedding({{"method", "morphte"}, {"sweeps", 3}})),
      tiny_job(),
      tiny_job(true),
  };
}

void write_tiny_model(const std::filesystem::path& folder) {
  constexpr int64_t kHidden = 32, kInner = 64, kBlocks = 2;
  std::filesystem::create_directories(folder);
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    std::filesystem::copy(bundled_model() / name, folder / name);
  Json config = read_json(bundled_model() / "config.json");
  config.update({{"hidden_size", kHidden},
                 {"intermediate_size", kInner},
                 {"num_hidden_layers", kBlocks},
                 {"num_attention_heads", 2},
                 {"num_key_value_heads", 1},
                 {"head_dim", kHidden / 2}});
  write_text(folder / "config.json", config.dump(2));
  Rng rng(1, "tiny model");
  io::NamedTensors tensors;
  const auto add = [&](const std::string& name, at::IntArrayRef shape) {
    at::Tensor values = at::empty(shape, at::kFloat);
    const double center = shape.size() == 1 ? 1 : 0;
    for (int64_t i = 0; i < values.numel(); ++i)
      values.data_ptr<float>()[i] = static_cast<float>(center + 0.1 * rng.normal());
    tensors.emplace_back(name, values.to(at::kBFloat16));
  };
  add("model.embed_tokens.weight", {config["vocab_size"].get<int64_t>(), kHidden});
  add("model.norm.weight", {kHidden});
  for (int64_t block = 0; block < kBlocks; ++block) {
    const std::string prefix = "model.layers." + std::to_string(block) + ".";
    add(prefix + "input_layernorm.weight", {kHidden});
    add(prefix + "post_attention_layernorm.weight", {kHidden});
    add(prefix + "self_attn.q_proj.weight", {kHidden, kHidden});
    add(prefix + "self_attn.k_proj.weight", {kHidden / 2, kHidden});
    add(prefix + "self_attn.v_proj.weight", {kHidden / 2, kHidden});
    add(prefix + "self_attn.o_proj.weight", {kHidden, kHidden});
    add(prefix + "mlp.gate_proj.weight", {kInner, kHidden});
    add(prefix + "mlp.up_proj.weight", {kInner, kHidden});
    add(prefix + "mlp.down_proj.weight", {kHidden, kInner});
  }
  io::write_safetensors(folder / "model.safetensors", tensors);
}

NamedJob tiny_job(bool surveyed) {
  const Json plain = pass("gptq", {{"group_size", 16}, {"mismatch", "fixed"}});
  const Json pruned = method("fisher_mask", {{"ratio", 0.2}});
  Json job = job_with("", Json::array({surveyed ? pruned : plain}));
  job["calibration"].update({{"samples", 2}, {"length", 16}, {"cache", "disk"}});
  job["write"] = {{"shard_size", 150'000}};
  job["evaluate"] = {{"window", 16}, {"max_windows", 1}};
  return {surveyed ? "tiny fisher_mask" : "tiny gptq", job, true};
}

}  // namespace lcomp::test
