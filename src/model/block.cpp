#include "lcomp/model/block.h"

#include <ATen/ATen.h>

#include <mutex>

#include "lcomp/core/error.h"
#include "model/factor_steps.h"
#include "model/kernels.h"
#include "model/rotary.h"

namespace lcomp::model {
namespace {

enum Group : size_t { kAttentionInput, kAttentionOutput, kMlpInput, kMlpOutput };

// Slots of the caller's Scratch.
enum Slot : size_t { kNormalized = linalg::kFirstFreeSlot, kProjected, kScores, kWholeInput };

constexpr int64_t kChunk = linalg::PackedMatrix::kRowChunk;

/// `work` of the wanted shape, in the memory it has when that is large enough.
float* work_buffer(SampleState& state, int64_t rows, int64_t cols) {
  const auto bytes = static_cast<size_t>(rows * cols) * sizeof(float);
  if (!state.work.defined() || state.work.storage().nbytes() < bytes)
    state.work = at::empty({rows * cols}, at::kFloat);
  state.work = state.work.as_strided({rows, cols}, {cols, 1});
  return state.work.data_ptr<float>();
}

/// How one operator is run: by steps, or, without any, by `Weight::apply`.
struct OperatorKernel {
  OperatorKernel(const Weight& weight, linalg::Precision precision, const std::vector<OperatorKernel>& others)
      : steps(factor_steps(weight, precision)) {
    for (const FactorStep& step : steps) {
      matrices.emplace_back();
      if (step.is_applied) continue;
      const at::Tensor matrix = step.matrix->dense();
      if (&step == &steps.front() && share_first(matrix, others)) continue;
      matrices.back() = std::make_shared<linalg::PackedMatrix>(std::vector{matrix}, precision);
      if (&step == &steps.front()) first_matrix = matrix;
    }
  }

  /// y = x W^T. `first_products`: what the first steps of the operators of the group gave, so far.
  void run(const Weight& weight, const at::Tensor& x, const OutputRows& y, linalg::Scratch& scratch,
           std::vector<at::Tensor>& first_products) const {
    if (steps.empty()) {
      FactorStep().put(x, weight.apply(x), y);
      first_products.emplace_back();
      return;
    }
    const auto multiply = [&](size_t i, const at::Tensor& input) {
      if (steps[i].is_applied) return steps[i].matrix->apply(input);
      at::Tensor product = at::empty({x.size(0), matrices[i]->out_features()}, at::kFloat);
      matrices[i]->multiply(input.data_ptr<float>(), x.size(0), product.data_ptr<float>(), false, scratch);
      return product;
    };
    first_products.push_back(like ? first_products.at(*like) : at::Tensor());
    at::Tensor input = x;
    for (size_t i = 0; i < steps.size(); ++i) {
      const FactorStep& step = steps[i];
      const bool is_last = i + 1 == steps.size();
      const bool is_plain = !step.is_pivoted() && !step.is_applied && y.stride == step.out_features();
      if (is_last && is_plain) {
        matrices[i]->multiply(input.data_ptr<float>(), x.size(0), y.data, y.accumulate, scratch);
        return;
      }
      at::Tensor product = i == 0 ? first_products.back() : at::Tensor();
      if (!product.defined()) product = multiply(i, input);
      if (i == 0) first_products.back() = product;
      if (is_last) {
        step.put(input, product, y);
      } else {
        input = step.output(input, product);
      }
    }
  }

  std::vector<FactorStep> steps;
  std::vector<std::shared_ptr<linalg::PackedMatrix>> matrices;  // null for steps that are applied
  at::Tensor first_matrix;
  std::optional<size_t> like;  // the operator of the group before it whose first product is that of this one

 private:
  /// Whether another operator multiplies by this matrix first. Names in files are no proof of it.
  bool share_first(const at::Tensor& matrix, const std::vector<OperatorKernel>& others) {
    if (!steps.front().is_shared) return false;
    for (size_t other = 0; other < others.size(); ++other) {
      if (!others[other].first_matrix.defined() || !others[other].first_matrix.equal(matrix)) continue;
      like = other;
      matrices.back() = others[other].matrices.front();
      return true;
    }
    return false;
  }
};

}  // namespace

struct Block::Kernels {
  explicit Kernels(const RopeSpec& rope) : rotary(rope) {}

  std::vector<std::unique_ptr<linalg::PackedMatrix>> packed;  // per group
  /// Per group whose weights are not all laid out as one matrix: one by one.
  std::vector<std::vector<OperatorKernel>> apart;
  RotaryTables rotary;

  void release(size_t group) {
    packed.at(group).reset();
    apart.at(group).clear();
  }
};

Block::Block(const Architecture& architecture, int64_t index, std::vector<LinearOp> ops,
             std::map<std::string, at::Tensor> norms, std::map<std::string, at::ScalarType> stored_types)
    : architecture_(&architecture),
      index_(index),
      ops_(std::move(ops)),
      groups_(architecture.groups(index)),
      norms_(std::move(norms)),
      stored_types_(std::move(stored_types)),
      replaced_(ops_.size(), false),
      input_scales_(groups_.size()),
      kept_inputs_(groups_.size()),
      kernels_(std::make_unique<Kernels>(architecture.rope)) {
  kernels_->packed.resize(groups_.size());
  kernels_->apart.resize(groups_.size());
  measure();
}

/// The widths, from the shapes of the operators.
void Block::measure() {
  const auto rows = [&](OperatorRole role) { return ops_[architecture_->position(role)].info.out_features; };
  widths_ = {rows(OperatorRole::kQuery) / architecture_->head_dim,
             rows(OperatorRole::kKey) / architecture_->head_dim, rows(OperatorRole::kUp)};
}

Block::~Block() = default;
Block::Block(Block&&) noexcept = default;

void Block::replace(size_t op, WeightPtr weight) {
  const OperatorInfo& info = ops_.at(op).info;
  if (weight->out_features() != info.out_features || weight->in_features() != info.in_features) {
    throw InvalidArgument(
        "Block::replace",
        fmt::format("the weight of '{}' must be [{}, {}]; received [{}, {}]", info.name, info.out_features,
                    info.in_features, weight->out_features(), weight->in_features()));
  }
  ops_[op].weight = std::move(weight);
  replaced_[op] = true;
  for (size_t g = 0; g < groups_.size(); ++g) {
    const auto& members = groups_[g].operators;
    if (std::find(members.begin(), members.end(), op) != members.end()) kernels_->release(g);
  }
}

void Block::keep_units(const DependencyGroup& units, const std::vector<int64_t>& kept) {
  const bool ascending = std::adjacent_find(kept.begin(), kept.end(), std::greater_equal<>()) == kept.end();
  if (kept.empty() || !ascending || kept.front() < 0 || kept.back() >= units.units) {
    throw InvalidArgument("Block::keep_units",
                          fmt::format("the kept units of '{}' must ascend, lie below {} and be at least one; "
                                      "received {}",
                                      units.name, units.units, kept));
  }
  const auto size_of = [&](const UnitSlice& slice) -> int64_t& {
    OperatorInfo& info = ops_.at(slice.op).info;
    return slice.rows ? info.out_features : info.in_features;
  };
  for (const UnitSlice& slice : units.slices) {
    if (size_of(slice) == units.units * slice.per_unit) continue;
    throw InvalidArgument("Block::keep_units",
                          fmt::format("'{}' must have {} units of {} in '{}'; it has {} in all", units.name,
                                      units.units, slice.per_unit, ops_[slice.op].info.name, size_of(slice)));
  }
  for (const UnitSlice& slice : units.slices) {
    LinearOp& op = ops_[slice.op];
    const at::Tensor first = at::tensor(kept, at::kLong).unsqueeze(1) * slice.per_unit;
    const at::Tensor places = (first + at::arange(slice.per_unit, at::kLong)).flatten();
    op.weight = std::make_shared<DenseWeight>(op.weight->dense().index_select(slice.rows ? 0 : 1, places));
    size_of(slice) = places.numel();
    replaced_[slice.op] = true;
    if (slice.rows && op.bias.defined()) {
      op.bias = op.bias.index_select(0, places);
      changed_vectors_.insert(op.info.name + ".bias");
    }
    if (slice.rows) continue;
    at::Tensor& left = kept_inputs_.at(units.input_group);
    left = left.defined() ? left.index_select(0, places) : places;
    at::Tensor& scale = input_scales_.at(units.input_group);
    if (scale.defined()) scale = scale.index_select(0, places);
  }
  release();
  measure();
}

at::Tensor Block::vector(const std::string& name) const {
  const auto norm = norms_.find(name);
  if (norm != norms_.end()) return norm->second;
  for (const LinearOp& op : ops_) {
    if (name == op.info.name + ".bias") return op.bias;
  }
  return {};
}

at::ScalarType Block::stored_type(const std::string& name) const {
  const auto type = stored_types_.find(name);
  return type == stored_types_.end() ? at::kFloat : type->second;
}

void Block::set_vector(const std::string& name, const at::Tensor& values) {
  const at::Tensor before = vector(name);
  if (!before.defined() || values.sizes() != before.sizes()) {
    throw InvalidArgument("Block::set_vector",
                          fmt::format("the name must be that of a norm or bias of {} values; received '{}'",
                                      values.numel(), name));
  }
  const at::Tensor after = values.to(at::kFloat).contiguous();
  const auto norm = norms_.find(name);
  if (norm != norms_.end()) norm->second = after;
  for (LinearOp& op : ops_) {
    if (name == op.info.name + ".bias") op.bias = after;
  }
  changed_vectors_.insert(name);
}

void Block::multiply_input_scale(size_t group, const at::Tensor& scale) {
  at::Tensor& product = input_scales_.at(group);
  product = product.defined() ? product * scale : scale;
}

void Block::prepare(size_t group, linalg::Precision precision) {
  if (kernels_->packed.at(group) || !kernels_->apart[group].empty()) return;
  const auto& members = groups_[group].operators;
  if (std::any_of(members.begin(), members.end(),
                  [&](size_t op) { return runs_by_itself(*ops_[op].weight, precision); })) {
    std::vector<OperatorKernel>& kernels = kernels_->apart[group];
    kernels.reserve(members.size());
    for (const size_t op : members) kernels.emplace_back(*ops_[op].weight, precision, kernels);
    for (OperatorKernel& kernel : kernels) kernel.first_matrix.reset();
    return;
  }
  std::vector<at::Tensor> weights;
  weights.reserve(members.size());
  for (const size_t op : members) weights.push_back(ops_[op].weight->dense());
  kernels_->packed[group] = std::make_unique<linalg::PackedMatrix>(weights, precision);
}

void Block::release(size_t group) {
  kernels_->release(group);
}

void Block::release() {
  for (size_t g = 0; g < groups_.size(); ++g) kernels_->release(g);
}

const float* Block::norm_values(const std::string& suffix) const {
  return norms_.at(architecture_->block_prefix(index_) + suffix).data_ptr<float>();
}

void Block::normalize(const float* x, const std::string& norm, int64_t rows, float* y) const {
  const Architecture& a = *architecture_;
  const float* weight = norm_values(norm + a.names.norm_weight);
  if (a.norm == NormKind::kRms) {
    kernels::rms_norm(x, weight, a.norm_eps, rows, a.hidden_size, y);
  } else {
    kernels::layer_norm(x, weight, norm_values(norm + a.names.norm_bias), a.norm_eps, rows, a.hidden_size, y);
  }
}

/// What the first operators of a half of the block read: its norm of `hidden`, put into `room`, or, where the
/// norm stands behind the sum, `hidden` itself.
const float* Block::read_by_half(const float* hidden, const std::string& norm, int64_t rows,
                                 float* room) const {
  if (!architecture_->norm_first) return hidden;
  normalize(hidden, norm, rows, room);
  return room;
}

at::Tensor Block::input_of_half(const at::Tensor& hidden, const std::string& norm, float* out) const {
  const float* input = read_by_half(hidden.data_ptr<float>(), norm, hidden.size(0), out);
  if (input != out) std::copy_n(input, hidden.numel(), out);
  return at::from_blob(out, hidden.sizes(), at::kFloat);
}

at::Tensor Block::advance(size_t group, SampleState& state, linalg::Scratch& scratch, float* input) const {
  switch (group) {
    case kAttentionInput:
      return input_of_half(state.hidden, architecture_->names.attention_norm, input);
    case kAttentionOutput:
      project_and_attend(state, scratch);
      return state.work;
    case kMlpInput:
      finish_half(kAttentionOutput, state, scratch);
      return input_of_half(state.hidden, architecture_->names.mlp_norm, input);
    case kMlpOutput:
      expand(state, scratch);
      return state.work;
    default:
      throw InvalidArgument("Block::advance",
                            fmt::format("group must be below {}; received {}", groups_.size(), group));
  }
}

void Block::finish(SampleState& state, linalg::Scratch& scratch) const {
  finish_half(kMlpOutput, state, scratch);
}

void Block::forward(SampleState& state, linalg::Scratch& scratch, const Tap& tap) const {
  for (size_t g = 0; g < groups_.size(); ++g) {
    // Without a tap nobody looks at the inputs of the halves as a whole; the projections make them in chunks.
    if (!tap && g == kAttentionInput) continue;
    if (!tap && g == kMlpInput) {
      finish_half(kAttentionOutput, state, scratch);
      continue;
    }
    float* input = groups_[g].input_in_work ? nullptr : scratch.floats(kWholeInput, state.hidden.numel());
    const at::Tensor seen = advance(g, state, scratch, input);
    if (tap) tap(g, seen);
  }
  finish(state, scratch);
}

/// y `[tokens, outputs of all operators]` = x W^T for a group that is not packed as one. On all tokens of a
/// sample at once, because the range of a rounded input may be that of all of them.
void Block::multiply_apart(size_t group, const at::Tensor& x, float* y, linalg::Scratch& scratch) const {
  const auto& members = groups_[group].operators;
  int64_t width = 0;
  for (const size_t op : members) width += ops_[op].info.out_features;
  std::vector<at::Tensor> first_products;
  for (size_t i = 0; i < members.size(); ++i) {
    const LinearOp& op = ops_[members[i]];
    kernels_->apart[group][i].run(*op.weight, x, {y, width, false}, scratch, first_products);
    y += op.info.out_features;
  }
}

/// hidden -> q, k, v -> rotated heads -> attention context in `work`.
void Block::project_and_attend(SampleState& state, linalg::Scratch& scratch) const {
  const Architecture& a = *architecture_;
  const int64_t tokens = state.hidden.size(0);
  const auto [heads, kv_heads, intermediate] = widths_;
  const int64_t q_width = heads * a.head_dim;
  const int64_t kv_width = kv_heads * a.head_dim;
  const int64_t width = q_width + 2 * kv_width;
  float* qkv = scratch.floats(kProjected, tokens * width);
  float* input = scratch.floats(kNormalized, kChunk * a.hidden_size);
  const std::string& norm = a.names.attention_norm;
  const linalg::PackedMatrix* packed = kernels_->packed[kAttentionInput].get();
  if (packed == nullptr) {
    float* whole = scratch.floats(kWholeInput, state.hidden.numel());
    multiply_apart(kAttentionInput, input_of_half(state.hidden, norm, whole), qkv, scratch);
  }
  for (int64_t begin = 0; packed != nullptr && begin < tokens; begin += kChunk) {
    const int64_t rows = std::min(kChunk, tokens - begin);
    const float* hidden = state.hidden.data_ptr<float>() + begin * a.hidden_size;
    packed->multiply(read_by_half(hidden, norm, rows, input), rows, qkv + begin * width, false, scratch);
  }

  const float scale = 1.0F / std::sqrt(static_cast<float>(a.head_dim));
  const auto tables = kernels_->rotary.tables_for(tokens);
  const float* q_norm = a.qk_norm ? norm_values("self_attn.q_norm.weight") : nullptr;
  const float* k_norm = a.qk_norm ? norm_values("self_attn.k_norm.weight") : nullptr;
  for (int64_t t = 0; t < tokens; ++t) {
    float* row = qkv + t * width;
    if (a.qkv_bias) {
      float* at = row;
      for (const size_t op : groups_[kAttentionInput].operators) {
        kernels::add(ops_[op].bias.data_ptr<float>(), ops_[op].info.out_features, at);
        at += ops_[op].info.out_features;
      }
    }
    const int64_t half = a.rope.dims / 2;
    const float* cosines = tables->cosines.data() + t * half;
    const float* sines = tables->sines.data() + t * half;
    for (int64_t h = 0; h < heads + kv_heads; ++h) {
      float* head = row + h * a.head_dim;
      const bool is_query = h < heads;
      if (a.qk_norm) kernels::rms_norm(head, is_query ? q_norm : k_norm, a.norm_eps, 1, a.head_dim, head);
      kernels::rotate_half(head, cosines, sines, a.rope.dims, a.head_dim, is_query ? scale : 1.0F);
    }
  }

  kernels::AttentionShape shape;
  shape.tokens = tokens;
  shape.heads = heads;
  shape.kv_heads = kv_heads;
  shape.head_dim = a.head_dim;
  shape.window = a.windows[static_cast<size_t>(index_)];
  shape.causal = a.causal;
  shape.q_stride = width;
  shape.kv_stride = width;
  float* context = work_buffer(state, tokens, q_width);
  kernels::attention(shape, qkv, qkv + q_width, qkv + q_width + kv_width, context, scratch, kScores);
}

/// hidden += work W^T (+ bias), W being the only operator of `group`.
void Block::add_projection(size_t group, SampleState& state, linalg::Scratch& scratch) const {
  const int64_t tokens = state.hidden.size(0);
  float* hidden = state.hidden.data_ptr<float>();
  const LinearOp& op = ops_[groups_[group].operators[0]];
  if (const linalg::PackedMatrix* packed = kernels_->packed[group].get()) {
    packed->multiply(state.work.data_ptr<float>(), tokens, hidden, true, scratch);
  } else {
    std::vector<at::Tensor> first_products;
    kernels_->apart[group][0].run(*op.weight, state.work, {hidden, op.info.out_features, true}, scratch,
                                  first_products);
  }
  if (op.bias.defined()) kernels::add_bias(op.bias.data_ptr<float>(), tokens, op.info.out_features, hidden);
}

/// The end of a half: its output joins `hidden`, which is then normalized where the norm stands behind the
/// sum.
void Block::finish_half(size_t group, SampleState& state, linalg::Scratch& scratch) const {
  const Architecture& a = *architecture_;
  add_projection(group, state, scratch);
  if (a.norm_first) return;
  float* hidden = state.hidden.data_ptr<float>();
  normalize(hidden, group == kMlpOutput ? a.names.mlp_norm : a.names.attention_norm, state.hidden.size(0),
            hidden);
}

/// hidden -> act(gate) * up, or act(up), in `work`, in chunks of rows that stay in cache.
void Block::expand(SampleState& state, linalg::Scratch& scratch) const {
  const Architecture& a = *architecture_;
  const int64_t tokens = state.hidden.size(0);
  const int64_t inner = widths_.intermediate;
  const int64_t width = a.gated ? 2 * inner : inner;  // of what the products give for a token
  float* work = work_buffer(state, tokens, inner);
  float* input = scratch.floats(kNormalized, kChunk * a.hidden_size);
  const linalg::PackedMatrix* packed = kernels_->packed[kMlpInput].get();
  float* products = scratch.floats(kProjected, (packed == nullptr ? tokens : kChunk) * width);
  const std::string& norm = a.names.mlp_norm;
  if (packed == nullptr) {
    float* whole = scratch.floats(kWholeInput, state.hidden.numel());
    multiply_apart(kMlpInput, input_of_half(state.hidden, norm, whole), products, scratch);
  }
  for (int64_t begin = 0; begin < tokens; begin += kChunk) {
    const int64_t rows = std::min(kChunk, tokens - begin);
    const float* hidden = state.hidden.data_ptr<float>() + begin * a.hidden_size;
    if (packed != nullptr) {
      packed->multiply(read_by_half(hidden, norm, rows, input), rows, products, false, scratch);
    } else if (begin > 0) {
      products += kChunk * width;
    }
    if (a.mlp_bias) {
      float* part = products;
      for (const size_t op : groups_[kMlpInput].operators) {
        for (int64_t r = 0; r < rows; ++r)
          kernels::add(ops_[op].bias.data_ptr<float>(), inner, part + r * width);
        part += inner;
      }
    }
    if (a.gated) {
      kernels::gate(a.activation, products, rows, inner, work + begin * inner);
    } else {
      kernels::activate(a.activation, products, rows * inner, work + begin * inner);
    }
  }
}

}  // namespace lcomp::model
