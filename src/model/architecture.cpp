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
    {"llama", read_llama}, {"mistral", read_mistral}, {"qwen2", read_qwen2},
    {"qwen3", read_qwen3}, {"bert", read_bert},       {"distilbert", read_distilbert},
};

/// `lcomp.block_widths` of config.json, where the blocks have widths of their own: an object per block, whose
/// fields mean what those of the same name mean for all blocks.
std::vector<BlockWidths> read_widths(const io::OrderedJsonView& config, const Architecture& a) {
  const BlockWidths whole{a.heads, a.kv_heads, a.intermediate_size};
  std::vector<BlockWidths> widths(static_cast<size_t>(a.layers), whole);
  const auto own = config.find("lcomp");
  const auto listed = own ? own->find("block_widths") : std::nullopt;
  if (!listed) return widths;
  const auto blocks = listed->elements();
  if (static_cast<int64_t>(blocks.size()) != a.layers) {
    listed->fail(fmt::format("must have an entry for each of the {} layers (num_hidden_layers); it has {}",
                             a.layers, blocks.size()));
  }
  const int64_t shared = a.heads / a.kv_heads;
  for (size_t i = 0; i < blocks.size(); ++i) {
    widths[i] = {blocks[i].at("num_attention_heads").integer(1),
                 blocks[i].at("num_key_value_heads").integer(1, whole.kv_heads),
                 blocks[i].at("intermediate_size").integer(1)};
    const BlockWidths& w = widths[i];
    if (w.heads > whole.heads || w.intermediate > whole.intermediate || w.heads != w.kv_heads * shared) {
      blocks[i].fail(
          fmt::format("must not be wider than the model ({} heads, {} channels) and must have {} query heads "
                      "to a key-value head; it has {} and {} heads, and {} channels",
                      whole.heads, whole.intermediate, shared, w.heads, w.kv_heads, w.intermediate));
    }
  }
  return widths;
}

}  // namespace

std::vector<std::string> known_families() {
  std::vector<std::string> names;
  for (const Family& family : kFamilies) names.emplace_back(family.model_type);
  return names;
}

Architecture read_architecture(std::string_view config_json, const std::string& where) {
  const io::OrderedJson json = io::parse_ordered_json(config_json, where, {.error = ErrorKind::kConfig});
  const io::OrderedJsonView root(json, where, ErrorKind::kConfig);
  const ConfigView config(root);
  const std::string type = config.string("model_type").value_or("");
  for (const Family& family : kFamilies) {
    if (type != family.model_type) continue;
    Architecture architecture = family.read(config);
    architecture.widths = read_widths(root, architecture);
    return architecture;
  }
  throw Unsupported(config.place("model_type"), fmt::format("the model family must be one of {}; it is '{}'",
                                                            fmt::join(known_families(), ", "), type));
}

std::vector<OperatorInfo> Architecture::operators(int64_t block) const {
  const std::string prefix = block_prefix(block);
  const BlockWidths& w = block_widths(block);
  const int64_t q = w.heads * head_dim;
  const int64_t kv = w.kv_heads * head_dim;
  std::vector<OperatorInfo> out;
  const auto add = [&](OperatorRole role, int64_t rows, int64_t cols, bool bias) {
    const OperatorName& name = names.operators[static_cast<size_t>(role)];
    out.push_back({prefix + name.path, name.kind, rows, cols, bias, role});
  };
  add(OperatorRole::kQuery, q, hidden_size, qkv_bias);
  add(OperatorRole::kKey, kv, hidden_size, qkv_bias);
  add(OperatorRole::kValue, kv, hidden_size, qkv_bias);
  add(OperatorRole::kOutput, hidden_size, q, output_bias);
  if (gated) add(OperatorRole::kGate, w.intermediate, hidden_size, mlp_bias);
  add(OperatorRole::kUp, w.intermediate, hidden_size, mlp_bias);
  add(OperatorRole::kDown, hidden_size, w.intermediate, mlp_bias);
  return out;
}

std::vector<GroupInfo> Architecture::groups(int64_t block) const {
  const std::string prefix = block_prefix(block);
  const BlockWidths& w = block_widths(block);
  const auto named = [&](OperatorRole role) {
    return prefix + names.operators[static_cast<size_t>(role)].path;
  };
  // What a norm behind the sum makes is read by the next sum too, so it can take no scale of one reader.
  const auto norm_in_front = [&](const std::string& name) { return norm_first ? prefix + name : ""; };
  // act(gate) * up is linear in up; relu(up / s) = relu(up) / s.
  const bool up_absorbs = gated || activation == Activation::kRelu;
  const size_t up = position(OperatorRole::kUp);
  const std::vector<size_t> mlp_input =
      gated ? std::vector{position(OperatorRole::kGate), up} : std::vector{up};
  return {{"attention_input", {0, 1, 2}, norm_in_front(names.attention_norm), false},
          {"attention_output", {3}, named(OperatorRole::kValue), true, head_dim, w.heads / w.kv_heads},
          {"mlp_input", mlp_input, norm_in_front(names.mlp_norm), false},
          {"mlp_output", {up + 1}, up_absorbs ? named(OperatorRole::kUp) : "", true}};
}

std::vector<std::string> Architecture::norm_tensors(const std::string& name) const {
  if (norm == NormKind::kRms) return {name + names.norm_weight};
  return {name + names.norm_weight, name + names.norm_bias};
}

std::map<std::string, int64_t> Architecture::block_norms(int64_t block) const {
  const std::string prefix = block_prefix(block);
  std::map<std::string, int64_t> norms;
  for (const std::string& of_half : {names.attention_norm, names.mlp_norm}) {
    for (const std::string& name : norm_tensors(prefix + of_half)) norms[name] = hidden_size;
  }
  for (const char* suffix : {"self_attn.q_norm.weight", "self_attn.k_norm.weight"}) {
    if (qk_norm) norms[prefix + suffix] = head_dim;
  }
  return norms;
}

std::vector<DependencyGroup> Architecture::dependency_groups(int64_t block) const {
  return dependency_groups(block_widths(block));
}

std::vector<DependencyGroup> Architecture::dependency_groups(const BlockWidths& of) const {
  const int64_t queries = of.heads / of.kv_heads * head_dim;
  const DependencyGroup attention{
      UnitKind::kAttention,
      "attention",
      of.kv_heads,
      {{0, true, queries}, {1, true, head_dim}, {2, true, head_dim}, {3, false, queries}},
      1};
  DependencyGroup mlp{UnitKind::kChannel, "mlp", of.intermediate, {}, 3};
  if (gated) mlp.slices.push_back({position(OperatorRole::kGate), true, 1});
  mlp.slices.push_back({position(OperatorRole::kUp), true, 1});
  mlp.slices.push_back({position(OperatorRole::kDown), false, 1});
  return {attention, mlp};
}

BlockWidths Architecture::widest() const {
  BlockWidths all;
  for (const BlockWidths& w : widths) {
    all.heads = std::max(all.heads, w.heads);
    all.kv_heads = std::max(all.kv_heads, w.kv_heads);
    all.intermediate = std::max(all.intermediate, w.intermediate);
  }
  return all;
}

BlockWidths Architecture::common_widths() const {
  BlockWidths common = widest();
  const int64_t shared = common.heads / common.kv_heads;
  if (width_fields.kv_heads.empty()) common.kv_heads = kv_heads;  // a head's width follows from their number
  while (common.kv_heads < kv_heads && hidden_size % (common.kv_heads * shared) != 0) ++common.kv_heads;
  common.heads = common.kv_heads * shared;
  return common;
}

std::vector<std::pair<std::string, std::string>> width_entries(const Architecture& architecture,
                                                               const std::vector<BlockWidths>& widths) {
  Architecture after = architecture;
  after.widths = widths;
  const BlockWidths widest = after.widest();
  const WidthFields& fields = architecture.width_fields;
  std::vector<std::pair<std::string, std::string>> entries = {
      {fields.heads, std::to_string(widest.heads)},
      {fields.intermediate, std::to_string(widest.intermediate)}};
  if (!fields.kv_heads.empty()) entries.emplace_back(fields.kv_heads, std::to_string(widest.kv_heads));
  entries.emplace_back("head_dim", std::to_string(architecture.head_dim));
  entries.emplace_back("lcomp", "");
  const bool uniform = std::all_of(widths.begin(), widths.end(), [&](const auto& w) { return w == widest; });
  if (uniform) return entries;
  io::OrderedJson list = io::OrderedJson::array();
  for (const BlockWidths& w : widths) {
    list.push_back({{"num_attention_heads", w.heads},
                    {"num_key_value_heads", w.kv_heads},
                    {"intermediate_size", w.intermediate}});
  }
  entries.back().second = io::OrderedJson{{"block_widths", list}}.dump();
  return entries;
}

double Architecture::linear_flops_per_token() const {
  double sum = 0;
  for (int64_t block = 0; block < layers; ++block) {
    for (const OperatorInfo& op : operators(block))
      sum += 2.0 * static_cast<double>(op.out_features) * static_cast<double>(op.in_features);
  }
  return sum;
}

double Architecture::attention_flops(int64_t length) const {
  double sum = 0;
  const auto n = static_cast<double>(length);
  for (size_t block = 0; block < windows.size(); ++block) {
    const int64_t window = windows[block];
    const double w = window > 0 ? std::min(static_cast<double>(window), n) : n;
    const double pairs = causal ? n * w - w * (w - 1.0) / 2.0 : n * n;  // of queries and keys they see
    sum += 4.0 * pairs * static_cast<double>(widths[block].heads * head_dim);
  }
  return sum;
}

std::string beyond_positions(const Architecture& architecture, int64_t length) {
  if (architecture.max_positions <= 0 || length <= architecture.max_positions) return "";
  return fmt::format("sequences of {} tokens go beyond the model's max_position_embeddings = {}", length,
                     architecture.max_positions);
}

void require_positions(const Architecture& architecture, int64_t length, const std::string& where) {
  if (architecture.names.positions.empty() || length <= architecture.max_positions) return;
  throw ConfigError(where,
                    fmt::format("sequences must have at most the {} tokens that the model has position "
                                "embeddings for; they have {}",
                                architecture.max_positions, length));
}

}  // namespace lcomp::model
