#include "lcomp/calib/gradients.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "calib/loss_head.h"
#include "core/stopwatch.h"
#include "lcomp/calib/differentiable_block.h"
#include "lcomp/calib/sample_runner.h"
#include "lcomp/core/error.h"

namespace lcomp::calib {
namespace {

/// What one sample's backward pass through a block gives.
struct SampleGradients {
  std::vector<at::Tensor> weights;
  at::Tensor heads;
  at::Tensor channels;
  std::vector<at::Tensor> moments;
  std::vector<at::Tensor> outputs;
};

std::vector<int64_t> lengths_of(const std::vector<std::vector<int64_t>>& sequences) {
  std::vector<int64_t> lengths;
  for (const auto& sequence : sequences) {
    if (sequence.size() < 2) {
      throw InvalidArgument(
          "GradientSweep",
          fmt::format("a sequence must have at least 2 tokens; received {}", sequence.size()));
    }
    lengths.push_back(static_cast<int64_t>(sequence.size()));
  }
  return lengths;
}

/// The lengths of all samples once per block: one cache holds the inputs of all blocks.
std::vector<int64_t> repeated(const std::vector<int64_t>& lengths, int64_t blocks) {
  std::vector<int64_t> all;
  for (int64_t i = 0; i < blocks; ++i) all.insert(all.end(), lengths.begin(), lengths.end());
  return all;
}

/// A tensor of its own on the same memory, to differentiate by. Threads do not share leaves.
at::Tensor leaf(const at::Tensor& values) {
  return values.detach().requires_grad_();
}

/// `to` += `from`, or += its squares, in pieces of a fixed size.
void accumulate(ThreadPool& pool, const at::Tensor& from, bool squares, at::Tensor& to) {
  constexpr int64_t kPiece = 1 << 16;
  const at::Tensor in = from.contiguous();
  const float* x = in.data_ptr<float>();
  float* sum = to.data_ptr<float>();
  pool.parallel_for((to.numel() + kPiece - 1) / kPiece, [&](int64_t piece, int) {
    const int64_t end = std::min(to.numel(), (piece + 1) * kPiece);
    if (squares) {
      for (int64_t i = piece * kPiece; i < end; ++i) sum[i] += x[i] * x[i];
    } else {
      for (int64_t i = piece * kPiece; i < end; ++i) sum[i] += x[i];
    }
  });
}

/// Sums over the tokens of one sample: per group the inputs' moment weighted by the squared gradients of its
/// operators, and per operator the squared gradients themselves. `gradients`: `[tokens, out]` per operator.
void sum_moments(const std::vector<model::GroupInfo>& groups, const std::vector<at::Tensor>& inputs,
                 const std::vector<at::Tensor>& gradients, SampleGradients& to) {
  to.outputs.resize(gradients.size());
  for (const model::GroupInfo& group : groups) {
    const at::Tensor& x = inputs[group.operators.front()];
    at::Tensor weights = at::zeros({x.size(0), 1}, at::kFloat);
    for (const size_t op : group.operators) {
      const at::Tensor squares = gradients[op].square();
      to.outputs[op] = squares.sum(0);
      weights += squares.sum(1, /*keepdim=*/true);
    }
    to.moments.push_back(at::matmul((x * weights).t(), x));
  }
}

/// One forward pass of all samples through all blocks.
double forward_flops(const model::Architecture& a, const std::vector<int64_t>& lengths) {
  double sum = 0;
  for (const int64_t length : lengths)
    sum += a.linear_flops_per_token() * static_cast<double>(length) + a.attention_flops(length);
  return sum;
}

double head_flops(const model::Architecture& a, const std::vector<int64_t>& lengths) {
  if (!a.is_language_model()) return 0;
  double tokens = 0;
  for (const int64_t length : lengths) tokens += static_cast<double>(length - 1);
  return 4.0 * tokens * static_cast<double>(a.vocab_size) * static_cast<double>(a.hidden_size);
}

}  // namespace

struct GradientSweep::State {
  State(const model::Model& m, const std::vector<std::vector<int64_t>>& s, const GradientOptions& o,
        ThreadPool& p)
      : model(m),
        sequences(s),
        options(o),
        pool(p),
        lengths(lengths_of(s)),
        stream(lengths, m.architecture().hidden_size, o.storage, o.directory / "gradient-stream.cache"),
        inputs(repeated(lengths, m.size()), m.architecture().hidden_size, o.storage,
               o.directory / "gradient-inputs.cache"),
        runner(p, m.architecture(), stream, nullptr, 2048) {}

  int64_t samples() const { return static_cast<int64_t>(lengths.size()); }
  int64_t input_of(int64_t block, int64_t sample) const { return block * samples() + sample; }
  double loss_scale() const;
  SampleGradients differentiate(const DifferentiableBlock& block, const BlockValues& values, int64_t index,
                                int64_t sample, const GradientNeeds& needs, bool hand_on);

  const model::Model& model;
  std::vector<std::vector<int64_t>> sequences;
  GradientOptions options;
  ThreadPool& pool;
  std::vector<int64_t> lengths;
  ActivationCache stream;  // hidden states on the way up, derivatives by them on the way down
  ActivationCache inputs;
  SampleRunner runner;
  double loss_sum = 0;
  double flops = 0;
  double cpu_seconds = 0;
};

/// One over the mean number of predicted tokens per sample; 1 where no tokens are predicted.
double GradientSweep::State::loss_scale() const {
  if (!model.architecture().is_language_model()) return 1.0;
  double sum = 0;
  for (const int64_t length : lengths) sum += static_cast<double>(length - 1);
  return static_cast<double>(samples()) / sum;
}

/// Runs one sample through the block again and back. With `hand_on` the derivative by the block's input takes
/// the place of that by its output.
SampleGradients GradientSweep::State::differentiate(const DifferentiableBlock& block,
                                                    const BlockValues& shared, int64_t index, int64_t sample,
                                                    const GradientNeeds& needs, bool hand_on) {
  const at::AutoGradMode enabled(true);
  const int64_t width = model.architecture().hidden_size;
  BlockValues values = shared;
  at::Tensor hidden = inputs.load(input_of(index, sample), width);
  std::vector<at::Tensor> by;
  if (hand_on) by.push_back(hidden = leaf(hidden));
  if (needs.squares || needs.products) {
    for (at::Tensor& weight : values.weights) by.push_back(weight = leaf(weight));
  }
  if (needs.masks) {
    by.push_back(values.head_mask =
                     at::ones({model.architecture().block_widths(index).heads}).requires_grad_());
    by.push_back(values.channel_mask =
                     at::ones({model.architecture().block_widths(index).intermediate}).requires_grad_());
  }
  if (needs.moments) {
    values.inputs = std::make_shared<std::vector<at::Tensor>>(values.weights.size());
    for (const at::Tensor& weight : values.weights) {
      values.output_offsets.push_back(at::zeros({hidden.size(0), weight.size(0)}).requires_grad_());
      by.push_back(values.output_offsets.back());
    }
  }
  if (by.empty()) return {};
  const at::Tensor output = block.forward(values, hidden);
  auto gradients = torch::autograd::grad({output}, by, {stream.load(sample, width)});
  SampleGradients result;
  size_t next = 0;
  if (hand_on) ++next;
  if (needs.squares || needs.products) {
    for (size_t op = 0; op < values.weights.size(); ++op) result.weights.push_back(gradients[next++]);
  }
  if (needs.masks) {
    result.heads = gradients[next++];
    result.channels = gradients[next++];
  }
  if (needs.moments) {
    const at::AutoGradMode disabled(false);
    const std::vector<at::Tensor> by_output(gradients.begin() + static_cast<std::ptrdiff_t>(next),
                                            gradients.end());
    sum_moments(model.architecture().groups(index), *values.inputs, by_output, result);
  }
  // Last: the derivative by the last operator's output may be the memory that this overwrites.
  if (hand_on) stream.store(sample, gradients[0].contiguous());
  return result;
}

GradientSweep::GradientSweep(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences,
                             const GradientOptions& options, ThreadPool& pool)
    : state_(std::make_unique<State>(model, sequences, options, pool)) {}
GradientSweep::~GradientSweep() = default;

void GradientSweep::start() {
  for (int64_t i = 0; i < state_->samples(); ++i)
    state_->stream.store(i, state_->model.embed(state_->sequences[static_cast<size_t>(i)]));
}

void GradientSweep::forward(int64_t i) {
  State& s = *state_;
  const CpuTimer watch(s.cpu_seconds);
  const int64_t width = s.model.architecture().hidden_size;
  s.pool.parallel_for(s.samples(), [&](int64_t sample, int) {
    s.inputs.store(s.input_of(i, sample), s.stream.load(sample, width));
  });
  model::Block block = s.model.load_block(i);
  for (size_t g = 0; g < block.groups().size(); ++g) block.prepare(g, s.options.precision);
  s.runner.forward(block);
  s.flops += forward_flops(s.model.architecture(), s.lengths) / static_cast<double>(s.model.size());
}

void GradientSweep::head() {
  State& s = *state_;
  const CpuTimer watch(s.cpu_seconds);
  s.runner.release_buffers();
  const auto head = make_loss_head(s.model, s.options.seed, s.options.precision, s.pool);
  s.loss_sum = 0;
  for (int64_t begin = 0; begin < s.samples();) {
    std::vector<at::Tensor> states;
    std::vector<const std::vector<int64_t>*> ids;
    int64_t tokens = 0;
    int64_t end = begin;
    while (end < s.samples() &&
           (end == begin || tokens + s.lengths[static_cast<size_t>(end)] <= s.options.head_tokens)) {
      states.push_back(s.stream.load(end, s.model.architecture().hidden_size));
      ids.push_back(&s.sequences[static_cast<size_t>(end)]);
      tokens += s.lengths[static_cast<size_t>(end++)];
    }
    head->replace_by_gradient(states, ids, begin, s.loss_scale(), s.loss_sum);
    for (int64_t i = begin; i < end; ++i) s.stream.store(i, states[static_cast<size_t>(i - begin)]);
    begin = end;
  }
  s.flops += head_flops(s.model.architecture(), s.lengths);
}

double GradientSweep::loss() const {
  return state_->loss_sum * state_->loss_scale() / static_cast<double>(state_->samples());
}

BlockGradients GradientSweep::backward(int64_t i, const GradientNeeds& needs, int64_t last) {
  State& s = *state_;
  const CpuTimer watch(s.cpu_seconds);
  const model::Architecture& a = s.model.architecture();
  const DifferentiableBlock block(a, i);
  const BlockValues values = values_of(s.model.load_block(i), at::kFloat);
  BlockGradients out;
  for (const at::Tensor& weight : values.weights) {
    if (needs.squares) out.squares.push_back(at::zeros(weight.sizes(), at::kFloat));
    if (needs.products) out.products.push_back(at::zeros(weight.sizes(), at::kFloat));
  }
  if (needs.masks) {
    out.heads = at::empty({s.samples(), a.block_widths(i).heads}, at::kFloat);
    out.channels = at::empty({s.samples(), a.block_widths(i).intermediate}, at::kFloat);
  }
  if (needs.moments) {
    for (const at::Tensor& weight : values.weights)
      out.outputs.push_back(at::zeros({weight.size(0)}, at::kFloat));
    for (const model::GroupInfo& group : a.groups(i)) {
      const int64_t in = values.weights[group.operators.front()].size(1);
      out.moments.push_back(at::zeros({in, in}, at::kFloat));
    }
  }
  // As many samples side by side as there are threads. The sums take them in order, so their number shows in
  // no bit of the result.
  for (int64_t begin = 0; begin < s.samples(); begin += s.pool.size()) {
    const int64_t count = std::min<int64_t>(s.pool.size(), s.samples() - begin);
    std::vector<SampleGradients> batch(static_cast<size_t>(count));
    s.pool.parallel_for(count, [&](int64_t k, int) {
      batch[static_cast<size_t>(k)] = s.differentiate(block, values, i, begin + k, needs, i > last);
    });
    for (int64_t k = 0; k < count; ++k) {
      SampleGradients& sample = batch[static_cast<size_t>(k)];
      for (size_t op = 0; op < sample.weights.size(); ++op) {
        if (needs.squares) accumulate(s.pool, sample.weights[op], true, out.squares[op]);
        if (needs.products) accumulate(s.pool, sample.weights[op], false, out.products[op]);
      }
      if (needs.masks) {
        out.heads[begin + k].copy_(sample.heads);
        out.channels[begin + k].copy_(sample.channels);
      }
      for (size_t g = 0; g < sample.moments.size(); ++g)
        accumulate(s.pool, sample.moments[g], false, out.moments[g]);
      for (size_t op = 0; op < sample.outputs.size(); ++op)
        accumulate(s.pool, sample.outputs[op], false, out.outputs[op]);
      sample = {};
    }
  }
  for (size_t op = 0; op < out.products.size(); ++op) out.products[op].mul_(values.weights[op]);
  s.flops += 3.0 * forward_flops(a, s.lengths) / static_cast<double>(s.model.size());
  return out;
}

std::string GradientSweep::save(const std::filesystem::path& file) const {
  return state_->stream.write_to(file, state_->model.architecture().hidden_size);
}

std::string GradientSweep::restore(const std::filesystem::path& file) {
  return state_->stream.read_from(file, state_->model.architecture().hidden_size);
}

double GradientSweep::flops() const {
  return state_->flops;
}
double GradientSweep::cpu_seconds() const {
  return state_->cpu_seconds;
}

uint64_t GradientSweep::cache_bytes(const model::Architecture& architecture,
                                    const std::vector<int64_t>& lengths) {
  return ActivationCache::bytes_needed(lengths, (architecture.layers + 1) * architecture.hidden_size);
}

double GradientSweep::planned_flops(const model::Architecture& architecture,
                                    const std::vector<int64_t>& lengths) {
  return 4.0 * forward_flops(architecture, lengths) + head_flops(architecture, lengths);
}

uint64_t GradientSweep::working_bytes(const model::Architecture& a, int64_t length, int threads,
                                      const GradientOptions& options) {
  double weights = 0;
  for (int64_t block = 0; block < a.layers; ++block) {
    double of_block = 0;
    for (const auto& op : a.operators(block))
      of_block += static_cast<double>(op.out_features) * static_cast<double>(op.in_features);
    weights = std::max(weights, of_block);
  }
  const auto tokens = static_cast<double>(length);
  const auto hidden = static_cast<double>(a.hidden_size);
  const auto projected = static_cast<double>((a.heads + 2 * a.kv_heads) * a.head_dim);
  const auto inner = static_cast<double>(a.intermediate_size);
  // What automatic differentiation keeps of a block, and what is under way: counted in the code of
  // DifferentiableBlock, with shares fitted to measurements at 32 to 2048 tokens.
  const double kept = 0.8 * tokens * (14.0 * hidden + 8.0 * projected + 7.0 * inner) +
                      static_cast<double>(a.heads) * tokens * (0.25 * tokens + 256.0);
  const double backward = weights + threads * (weights + kept);
  const double head = 4.0 * static_cast<double>(std::max(options.head_tokens, length)) * hidden +
                      2048.0 * (4.0 * hidden + 256.0);
  return static_cast<uint64_t>(std::min(4.0 * std::max(backward, head), 0x1p56));  // beyond any machine
}

ModelGradients model_gradients(const model::Model& model, const std::vector<std::vector<int64_t>>& sequences,
                               const GradientNeeds& needs, const GradientOptions& options, ThreadPool& pool) {
  GradientSweep sweep(model, sequences, options, pool);
  sweep.start();
  for (int64_t i = 0; i < model.size(); ++i) sweep.forward(i);
  sweep.head();
  ModelGradients out;
  out.loss = sweep.loss();
  out.blocks.resize(static_cast<size_t>(model.size()));
  for (int64_t i = model.size() - 1; i >= 0; --i)
    out.blocks[static_cast<size_t>(i)] = sweep.backward(i, needs);
  return out;
}

}  // namespace lcomp::calib
