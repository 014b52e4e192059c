#include "lcomp/model/architecture.h"

#include <fmt/format.h>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "model/families/family.h"

namespace lcomp::model {
namespace {

struct Family {
  const char* model_type;
  Architecture (*read)(const ConfigView&);
};

/// Every family this version reads. A new one is a file under families/ and a line here.
constexpr Family kFamilies[] = {
    {"llama", read_llama},
    {"mistral", read_mistral},
    {"qwen2", read_qwen2},
    {"qwen3", read_qwen3},
};

}  // namespace

std::vector<std::string> known_families() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) names.emplace_back(family.model_type);
  return names;
}

Architecture read_architecture(std::string_view config_json, const std::string& where) {
  const io::OrderedJson json = io::parse_ordered_json(config_json, where, {.error = ErrorKind::kConfig});
  const ConfigView config(io::OrderedJsonView(json, where, ErrorKind::kConfig));
  const std::string type = config.string("model_type").value_or("");
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return family.read(config);
  }
  throw Unsupported(config.place("model_type"), fmt::format("the model family must be one of {}; it is '{}'",
                                                            fmt::join(known_families(), ", "), type));
}

std::vector<OperatorInfo> Architecture::operators(int64_t block) const {
  const std::string prefix = block_prefix(block);
  const int64_t q = heads * head_dim;
  const int64_t kv = kv_heads * head_dim;
  std::vector<OperatorInfo> out;
  const auto add = [&](const char* folder, const char* kind, int64_t rows, int64_t cols, bool bias) {
    out.push_back({prefix + folder + kind, kind, rows, cols, bias});
  };
  add("self_attn.", "q_proj", q, hidden_size, qkv_bias);
  add("self_attn.", "k_proj", kv, hidden_size, qkv_bias);
  add("self_attn.", "v_proj", kv, hidden_size, qkv_bias);
  add("self_attn.", "o_proj", hidden_size, q, output_bias);
  add("mlp.", "gate_proj", intermediate_size, hidden_size, mlp_bias);
  add("mlp.", "up_proj", intermediate_size, hidden_size, mlp_bias);
  add("mlp.", "down_proj", hidden_size, intermediate_size, mlp_bias);
  return out;
}

std::vector<GroupInfo> Architecture::groups(int64_t block) const {
  const std::string prefix = block_prefix(block);
  return {{"attention_input", {0, 1, 2}, prefix + "input_layernorm", false},
          {"attention_output", {3}, prefix + "self_attn.v_proj", true, head_dim, heads / kv_heads},
          {"mlp_input", {4, 5}, prefix + "post_attention_layernorm", false},
          {"mlp_output", {6}, prefix + "mlp.up_proj", true}};
}

double Architecture::linear_flops_per_token() const {
  double sum = 0;
  for (const OperatorInfo& op : operators(0)) {
    sum += 2.0 * static_cast<double>(op.out_features) * static_cast<double>(op.in_features);
  }
  return sum * static_cast<double>(layers);
}

double Architecture::attention_flops(int64_t length) const {
  double sum = 0;
  const auto n = static_cast<double>(length);
  for (const int64_t window : windows) {
    const double w = window > 0 ? std::min(static_cast<double>(window), n) : n;
    const double pairs = n * w - w * (w - 1.0) / 2.0;  // query-key pairs inside the causal window
    sum += 4.0 * pairs * static_cast<double>(heads * head_dim);
  }
  return sum;
}

std::string beyond_positions(const Architecture& architecture, int64_t length) {
  if (architecture.max_positions <= 0 || length <= architecture.max_positions) return "";
  return fmt::format("sequences of {} tokens go beyond the model's max_position_embeddings = {}", length,
                     architecture.max_positions);
}

}  // namespace lcomp::model
