#include "lcomp/calib/differentiable_block.h"

#include <ATen/ATen.h>

#include <limits>

#include "lcomp/core/error.h"
#include "model/rotary.h"

namespace lcomp::calib {
namespace {

using model::OperatorRole;

constexpr int64_t kQueryTile = 256;

at::Tensor activated(model::Activation activation, const at::Tensor& x) {
  switch (activation) {
    case model::Activation::kSilu:
      return at::silu(x);
    case model::Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case model::Activation::kGelu:
      return at::gelu(x);
    case model::Activation::kRelu:
      return at::relu(x);
  }
  throw InternalError("DifferentiableBlock", "the activation must be one of its kinds");
}

/// 0 where query `begin + r` sees key `key_begin + c`, -infinity elsewhere; [rows, keys].
at::Tensor visibility(int64_t begin, int64_t rows, int64_t key_begin, int64_t keys, int64_t window,
                      const at::Tensor& like) {
  const at::Tensor query = at::arange(begin, begin + rows, at::kLong).unsqueeze(1);
  const at::Tensor key = at::arange(key_begin, key_begin + keys, at::kLong).unsqueeze(0);
  at::Tensor hidden = key > query;
  if (window > 0) hidden = hidden | (key <= query - window);
  return at::zeros({rows, keys}, like.options())
      .masked_fill_(hidden, -std::numeric_limits<double>::infinity());
}

}  // namespace

struct DifferentiableBlock::Angles {
  explicit Angles(const model::RopeSpec& rope) : tables(rope), pairs(rope.dims / 2) {}

  /// Cosines or sines of the first `tokens` positions, [tokens, 1, pairs].
  at::Tensor take(const std::vector<float>& from, int64_t tokens, at::ScalarType type) const {
    const at::Tensor all = at::from_blob(const_cast<float*>(from.data()), {tokens, 1, pairs}, at::kFloat);
    return all.to(type, /*non_blocking=*/false, /*copy=*/true);
  }

  model::RotaryTables tables;
  int64_t pairs;
};

BlockValues values_of(const model::Block& block, at::ScalarType type) {
  BlockValues values;
  for (const model::LinearOp& op : block.ops()) {
    values.weights.push_back(op.weight->dense().to(type));
    values.biases.push_back(op.bias.defined() ? op.bias.to(type) : at::Tensor());
  }
  for (const auto& [name, weight] : block.norms()) values.norms[name] = weight.to(type);
  return values;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * at::rsqrt((x * x).mean(-1, /*keepdim=*/true) + eps) * weight;
}

DifferentiableBlock::DifferentiableBlock(const model::Architecture& architecture, int64_t index)
    : architecture_(&architecture), index_(index), angles_(std::make_unique<Angles>(architecture.rope)) {}
DifferentiableBlock::~DifferentiableBlock() = default;
DifferentiableBlock::DifferentiableBlock(DifferentiableBlock&&) noexcept = default;

const at::Tensor& DifferentiableBlock::norm(const BlockValues& values, const std::string& suffix) const {
  return values.norms.at(architecture_->block_prefix(index_) + suffix);
}

at::Tensor DifferentiableBlock::normalized(const BlockValues& values, const std::string& name,
                                           const at::Tensor& x) const {
  const model::Architecture& a = *architecture_;
  const at::Tensor& weight = norm(values, name + a.names.norm_weight);
  if (a.norm == model::NormKind::kRms) return rms_norm(x, weight, a.norm_eps);
  return at::layer_norm(x, weight.sizes(), weight, norm(values, name + a.names.norm_bias), a.norm_eps);
}

at::Tensor DifferentiableBlock::forward(const BlockValues& values, const at::Tensor& hidden) const {
  const std::string& first = architecture_->names.attention_norm;
  const std::string& second = architecture_->names.mlp_norm;
  if (architecture_->norm_first) {
    const at::Tensor middle = hidden + attention(values, normalized(values, first, hidden));
    return middle + feed_forward(values, normalized(values, second, middle));
  }
  const at::Tensor middle = normalized(values, first, hidden + attention(values, hidden));
  return normalized(values, second, middle + feed_forward(values, middle));
}

at::Tensor DifferentiableBlock::project(const BlockValues& values, model::OperatorRole role,
                                        const at::Tensor& input) const {
  const size_t op = architecture_->position(role);
  if (values.inputs) values.inputs->at(op) = input.detach();
  at::Tensor product = at::matmul(input, values.weights[op].t());
  if (values.biases[op].defined()) product = product + values.biases[op];
  return values.output_offsets.empty() ? product : product + values.output_offsets[op];
}

at::Tensor DifferentiableBlock::attention(const BlockValues& values, const at::Tensor& input) const {
  const model::Architecture& a = *architecture_;
  const double scale = 1.0 / std::sqrt(static_cast<double>(a.head_dim));
  const at::Tensor q =
      rotated(heads_of(values, OperatorRole::kQuery, "self_attn.q_norm.weight", input)) * scale;
  const at::Tensor k = rotated(heads_of(values, OperatorRole::kKey, "self_attn.k_norm.weight", input));
  const at::Tensor v = heads_of(values, OperatorRole::kValue, nullptr, input);
  at::Tensor context = attend(q, k, v);
  if (values.head_mask.defined()) context = context * values.head_mask.view({1, -1, 1});
  return project(values, OperatorRole::kOutput, context.flatten(1));
}

/// A projection cut into heads, [tokens, heads, head_dim]; normalized per head where the family does that.
at::Tensor DifferentiableBlock::heads_of(const BlockValues& values, OperatorRole role, const char* norm_name,
                                         const at::Tensor& input) const {
  at::Tensor all = project(values, role, input).view({input.size(0), -1, architecture_->head_dim});
  if (!architecture_->qk_norm || norm_name == nullptr) return all;
  return rms_norm(all, norm(values, norm_name), architecture_->norm_eps);
}

/// Pairs (i, i + dims/2) turned by the angles of their positions.
at::Tensor DifferentiableBlock::rotated(const at::Tensor& heads) const {
  const int64_t tokens = heads.size(0);
  const int64_t half = angles_->pairs;
  if (half == 0) return heads;
  const auto table = angles_->tables.tables_for(tokens);
  const at::Tensor cosines = angles_->take(table->cosines, tokens, heads.scalar_type());
  const at::Tensor sines = angles_->take(table->sines, tokens, heads.scalar_type());
  const at::Tensor first = heads.slice(2, 0, half);
  const at::Tensor second = heads.slice(2, half, 2 * half);
  return at::cat({first * cosines - second * sines, second * cosines + first * sines,
                  heads.slice(2, 2 * half, heads.size(2))},
                 2);
}

/// Softmax attention of rotated, scaled queries [tokens, heads, head_dim] over keys and values [tokens,
/// kv_heads, head_dim]. The query heads that share a key head stand below each other in one product.
at::Tensor DifferentiableBlock::attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const {
  const model::Architecture& a = *architecture_;
  const int64_t tokens = q.size(0);
  const int64_t heads = q.size(1), kv_heads = k.size(1);
  const int64_t shared = heads / kv_heads;
  const int64_t window = a.windows[static_cast<size_t>(index_)];
  const at::Tensor queries = q.view({tokens, kv_heads, shared, a.head_dim}).permute({1, 2, 0, 3});
  const at::Tensor keys = k.transpose(0, 1);    // [kv_heads, tokens, head_dim]
  const at::Tensor values = v.transpose(0, 1);  // as keys
  std::vector<at::Tensor> tiles;
  for (int64_t begin = 0; begin < tokens; begin += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, tokens - begin);
    const int64_t end = begin + rows;
    const int64_t key_begin = window > 0 ? std::max<int64_t>(0, begin - window + 1) : 0;
    const int64_t key_end = a.causal ? end : tokens;
    const int64_t seen = key_end - key_begin;
    const at::Tensor tile = queries.slice(2, begin, end).reshape({kv_heads, shared * rows, a.head_dim});
    at::Tensor scores =
        at::bmm(tile, keys.slice(1, key_begin, key_end).transpose(1, 2)).view({kv_heads, shared, rows, seen});
    if (a.causal) scores = scores + visibility(begin, rows, key_begin, seen, window, q);
    const at::Tensor shares = at::softmax(scores, -1).view({kv_heads, shared * rows, seen});
    tiles.push_back(
        at::bmm(shares, values.slice(1, key_begin, key_end)).view({kv_heads, shared, rows, a.head_dim}));
  }
  return at::cat(tiles, 2).permute({2, 0, 1, 3}).reshape({tokens, heads, a.head_dim});
}

at::Tensor DifferentiableBlock::feed_forward(const BlockValues& values, const at::Tensor& input) const {
  const model::Activation activation = architecture_->activation;
  const at::Tensor up = project(values, OperatorRole::kUp, input);
  at::Tensor inner = architecture_->gated
                         ? activated(activation, project(values, OperatorRole::kGate, input)) * up
                         : activated(activation, up);
  if (values.channel_mask.defined()) inner = inner * values.channel_mask;
  return project(values, OperatorRole::kDown, inner);
}

}  // namespace lcomp::calib
