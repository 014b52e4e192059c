#include "pipeline/estimates.h"

#include "lcomp/calib/activation_cache.h"
#include "lcomp/calib/gradients.h"
#include "lcomp/calib/token_samples.h"
#include "lcomp/lowrank/embedding.h"

namespace lcomp::pipeline {
namespace {

using calib::ActivationCache;

/// Resident memory of the process with its libraries, and of the tokenizer for each entry, measured.
constexpr double kProgramBytes = 184e6;
constexpr double kEntryBytes = 400;
/// Freed buffers that stay with the process between others in use: so many times the largest operator's
/// weights, where these are small (larger buffers go back), up to a bound. Measured in the block loop, and
/// in the gradient sweep, whose buffers are of activations too: so much from 512 tokens on.
constexpr double kKeptPerWeight = 200, kMostKept = 14e6;
constexpr double kKeptBySweep = 24e6;
/// What another thread keeps of the buffers of products and solvers, measured.
constexpr double kThreadBytes = 10e6;
/// Windows that a job without `max_windows` is planned for, before its text is read.
constexpr int64_t kAssumedWindows = 160;

/// Sizes that the memory of a run is made of.
struct Sizes {
  double block_parameters = 0;
  double largest_group = 0;  // operators that read one input
  double widest_input = 0;
  double all_moments = 0;  // sum over groups of in^2
  double largest_operator = 0;
  double rounding = 0;  // values per token: the widest operator's input and output
};

Sizes measure(const model::Architecture& a) {
  Sizes s;
  for (int64_t block = 0; block < a.layers; ++block) {
    double parameters = 0, moments = 0;
    const auto ops = a.operators(block);
    for (const auto& op : ops) {
      const double size = static_cast<double>(op.out_features) * static_cast<double>(op.in_features);
      parameters += size;
      s.largest_operator = std::max(s.largest_operator, size);
      s.rounding = std::max(s.rounding, static_cast<double>(op.out_features + op.in_features));
    }
    for (const auto& group : a.groups(block)) {
      const auto in = static_cast<double>(ops[group.operators[0]].in_features);
      s.widest_input = std::max(s.widest_input, in);
      double of_group = 0;
      for (const size_t op : group.operators)
        of_group += static_cast<double>(ops[op].out_features) * static_cast<double>(ops[op].in_features);
      s.largest_group = std::max(s.largest_group, of_group);
      moments += in * in;
    }
    s.block_parameters = std::max(s.block_parameters, parameters);
    s.all_moments = std::max(s.all_moments, moments);
  }
  return s;
}

std::vector<int64_t> sample_lengths(const Job& job) {
  return calib::sequence_lengths(job.calibration.samples, job.calibration.length, job.calibration.starts);
}

/// What the gradient sweep keeps on disk, with `matrices` values for each weight: the inputs of all blocks,
/// the state for a resume, old and new, and its results.
uint64_t gradient_disk(const Job& job, const model::Architecture& a, double matrices) {
  const std::vector<int64_t> lengths = sample_lengths(job);
  uint64_t bytes = 2 * ActivationCache::bytes_needed(lengths, a.hidden_size);
  if (job.calibration.cache != CachePlace::kMemory) bytes += calib::GradientSweep::cache_bytes(a, lengths);
  return bytes + to_bytes(measure(a).block_parameters * 4.0 * static_cast<double>(a.layers) * matrices);
}

/// What samples take besides statistics: themselves, and what is under way in a pass over them.
void add_samples(const Job& job, const model::Architecture& a, const Sizes& s, const Plan& plan,
                 MemoryPlan& m) {
  const auto hidden = static_cast<double>(a.hidden_size);
  const auto threads = static_cast<double>(plan.threads);
  const auto tokens = static_cast<double>(job.calibration.samples * job.calibration.length);
  const auto length = static_cast<double>(job.calibration.length);
  const double streams = plan.compares_streams ? 2.0 : 1.0;
  if (!plan.activations_on_disk) m.activations = to_bytes(streams * tokens * (hidden + s.widest_input) * 4.0);
  const auto qkv = static_cast<double>((a.heads + 2 * a.kv_heads) * a.head_dim);
  double per_thread =
      length * (hidden + qkv + 128.0) * 4.0 + 128.0 * 2.0 * static_cast<double>(a.intermediate_size) * 4.0;
  if (plan.rounds_inputs) per_thread += length * s.rounding * 4.0;
  if (plan.activations_on_disk) per_thread += length * (hidden + s.widest_input) * 4.0;
  const double packed = plan.compute == linalg::Precision::kBf16 ? 2.0 : 4.0;
  const double kernels = packed * (plan.observes_blocks ? s.block_parameters : streams * s.largest_group);
  m.scratch = to_bytes(kernels + threads * per_thread +
                       streams * static_cast<double>(plan.batch_tokens) * s.widest_input * 4.0);
}

MethodCost cost_of(const PassSpec& pass, const MethodTable& methods) {
  const MethodInfo& method = methods.find(pass.method);
  return method.cost ? method.cost(*pass.options) : MethodCost{};
}

double square(int64_t side) {
  return static_cast<double>(side) * static_cast<double>(side);
}

/// What pass `p` takes while it solves the largest of its operators.
uint64_t solver_bytes(const Job& job, const MethodTable& methods, const Plan& plan, size_t p) {
  double moment = 0, weights = 0;
  for (size_t i = 0; i < plan.operators.size(); ++i) {
    if (!plan.settings[p][i]) continue;
    const OperatorPlan& op = plan.operators[i];
    moment = std::max(moment, square(op.in_features));
    weights = std::max(weights, static_cast<double>(op.out_features) * static_cast<double>(op.in_features));
  }
  const MethodCost cost = cost_of(job.passes[p], methods);
  return to_bytes(moment * cost.moment_bytes + weights * cost.weight_bytes);
}

/// Operations of a method of that cost on all operators of the model.
double solver_flops(const MethodCost& cost, const model::Architecture& architecture) {
  double flops = 0;
  for (int64_t block = 0; block < architecture.layers; ++block) {
    const auto operators = architecture.operators(block);
    for (const auto& op : operators) {
      const auto out = static_cast<double>(op.out_features), in = static_cast<double>(op.in_features);
      flops += out * in * (cost.flops_per_weight + cost.cubic * in);
    }
    for (const auto& group : architecture.groups(block)) {
      const auto in = static_cast<double>(operators[group.operators[0]].in_features);
      flops += cost.cubic * in * in * in;
    }
  }
  return flops;
}

}  // namespace

uint64_t to_bytes(double count) {
  return static_cast<uint64_t>(std::min(count, 0x1p56));
}

int64_t evaluation_window(const Job& job, const model::Model& model) {
  const model::Architecture& a = model.architecture();
  return a.is_language_model() ? job.evaluate->window : std::min(job.evaluate->window, a.max_positions);
}

uint64_t evaluation_bytes(const Job& job, const model::Model& model, const Plan& plan, int64_t tokens) {
  const model::Architecture& a = model.architecture();
  const Sizes s = measure(a);
  const auto window = static_cast<double>(evaluation_window(job, model));
  const auto hidden = static_cast<double>(a.hidden_size);
  const auto threads = static_cast<double>(plan.threads);
  const double stored = static_cast<double>(c10::elementSize(model.dtype()));
  const double models = job.evaluate->reference ? 2.0 : 1.0;
  const auto qkv = static_cast<double>((a.heads + 2 * a.kv_heads) * a.head_dim);
  return to_bytes(models * static_cast<double>(tokens) * hidden * 4.0 + s.block_parameters * (stored + 4.0) +
                  threads * window * (hidden + qkv + s.widest_input + 128.0) * 4.0 +
                  (plan.rounds_inputs ? threads * window * s.rounding * 4.0 : 0.0) +
                  models * 2048.0 * (hidden + 128.0 * threads) * 8.0);
}

MemoryPlan estimate_memory(const Job& job, const MethodTable& methods, const model::Model& model,
                           const Plan& plan) {
  const model::Architecture& a = model.architecture();
  const Sizes s = measure(a);
  MemoryPlan m;
  m.program = to_bytes(kProgramBytes + kEntryBytes * static_cast<double>(a.vocab_size));
  const double stored = static_cast<double>(c10::elementSize(model.dtype()));
  MethodCost cost{0, 0, 0, 0, 0};
  for (const PassSpec& pass : job.passes) cost = larger_of(cost, cost_of(pass, methods));
  m.block =
      to_bytes(s.block_parameters * (stored + cost.result_bytes) +
               std::min(kKeptPerWeight * s.largest_operator, kMostKept) + kThreadBytes * (plan.threads - 1));
  for (size_t p = 0; p < job.passes.size(); ++p)
    m.solver = std::max(m.solver, solver_bytes(job, methods, plan, p));
  if (plan.needs_samples) {
    double moment = plan.observes_blocks ? s.all_moments : 0;
    for (const size_t i : plan.moments) moment = std::max(moment, square(plan.operators[i].in_features));
    m.statistics = to_bytes(4.0 * moment * plan.moment_matrices);
    add_samples(job, a, s, plan, m);
  }
  m.surveys = plan.survey_bytes;
  if (plan.needs_gradients) {
    calib::GradientOptions options;
    options.head_tokens = std::min(options.head_tokens, job.calibration.samples * job.calibration.length);
    const double share = std::clamp(static_cast<double>(job.calibration.length) / 512.0, 1.0 / 3.0, 1.0);
    m.gradients = calib::GradientSweep::working_bytes(a, job.calibration.length, plan.threads, options) +
                  to_bytes(std::min(kKeptPerWeight * s.largest_operator, kKeptBySweep * share));
    // Weights in float32 are read as they lie.
    if (model.dtype() != at::kFloat) m.gradients += to_bytes(s.block_parameters * stored);
    m.gradients += to_bytes(std::max(0.0, plan.gradient_matrices - 1) * s.block_parameters * 4.0);
    if (job.calibration.cache == CachePlace::kMemory)
      m.gradients += calib::GradientSweep::cache_bytes(a, sample_lengths(job));
  }
  if (job.evaluate) {
    const int64_t windows = job.evaluate->max_windows;
    m.evaluation = evaluation_bytes(
        job, model, plan, (windows > 0 ? windows : kAssumedWindows) * evaluation_window(job, model));
  }
  m.embedding =
      to_bytes(static_cast<double>(a.vocab_size * a.hidden_size) * stored * (a.tied_embeddings ? 1.0 : 2.0));
  if (job.embedding) {
    const int64_t fit = lowrank::embedding_fit_bytes(*job.embedding, a.vocab_size, a.hidden_size);
    m.embedding = std::max(m.embedding, static_cast<uint64_t>(fit));
  }
  return m;
}

/// While statistics are taken nothing is solved, and what was in use for them is free when that is.
uint64_t MemoryPlan::peak() const {
  const uint64_t held = block + activations + statistics;
  const uint64_t compression = held + std::max(solver, scratch);
  const uint64_t surveying = surveys > 0 ? held + surveys + scratch : 0;
  return program + std::max({compression, surveying, evaluation, embedding, gradients});
}

std::vector<std::pair<std::string, uint64_t>> MemoryPlan::parts() const {
  return {{"program", program},       {"block", block},           {"activations", activations},
          {"statistics", statistics}, {"solver", solver},         {"scratch", scratch},
          {"surveys", surveys},       {"evaluation", evaluation}, {"embedding", embedding},
          {"gradients", gradients}};
}

uint64_t estimate_disk(const Job& job, const model::Model& model, const Plan& plan) {
  // The parts and the shards made of them exist at the same time for a while.
  uint64_t bytes = 2 * (plan.bytes_after + plan.survey_bytes);
  if (plan.needs_gradients) bytes += gradient_disk(job, model.architecture(), plan.gradient_matrices);
  if (plan.needs_samples) {
    const std::vector<int64_t> lengths = {job.calibration.samples * job.calibration.length};
    const int64_t hidden = model.architecture().hidden_size;
    const uint64_t streams = plan.compares_streams ? 2 : 1;
    bytes += streams * 2 * ActivationCache::bytes_needed(lengths, hidden);  // the saved state, old and new
    if (plan.activations_on_disk) {
      bytes += streams * ActivationCache::bytes_needed(
                             lengths, hidden + to_bytes(measure(model.architecture()).widest_input));
    }
  }
  return bytes + 10'000'000;
}

WorkPlan count_work(const Job& job, const MethodTable& methods, const model::Model& model, const Plan& plan) {
  const model::Architecture& a = model.architecture();
  WorkPlan work;
  const std::vector<int64_t> lengths = sample_lengths(job);
  if (plan.needs_gradients) work.gradients = calib::GradientSweep::planned_flops(a, lengths);
  const double streams = plan.compares_streams ? 2.0 : 1.0;
  if (plan.needs_samples) {
    double tokens = 0;
    for (const int64_t length : lengths) {
      tokens += static_cast<double>(length);
      work.forward += a.linear_flops_per_token() * static_cast<double>(length) + a.attention_flops(length);
    }
    work.forward *= streams + (plan.observes_blocks ? 1.0 : 0.0);
    work.statistics = tokens * measure(a).all_moments * static_cast<double>(a.layers) * (2.0 * streams - 1.0);
  }
  // The weights are read, laid out, decoded, hashed and written, whatever is made of them.
  const double stored = static_cast<double>(plan.bytes_before + plan.bytes_after);
  work.solver = 1500.0 * stored;
  for (const PassSpec& pass : job.passes)
    work.solver += solver_flops(cost_of(pass, methods), a) * (plan.compares_streams ? 2.0 : 1.0);
  if (job.evaluate) {
    const int64_t windows = job.evaluate->max_windows > 0 ? job.evaluate->max_windows : kAssumedWindows;
    const int64_t window = evaluation_window(job, model);
    const double head = a.is_language_model() ? 2.0 * static_cast<double>(a.hidden_size * a.vocab_size) : 0.0;
    const double of_window =
        (a.linear_flops_per_token() + head) * static_cast<double>(window) + a.attention_flops(window);
    work.evaluation = of_window * static_cast<double>(windows) * (job.evaluate->reference ? 2.0 : 1.0);
  }
  return work;
}

double estimate_seconds(const Plan& plan) {
  // Of the speed of large products, the share that each phase reaches, measured.
  constexpr double kForward = 0.55, kStatistics = 0.4, kGradients = 0.3;
  const WorkPlan& work = plan.work;
  const bool bf16 =
      plan.compute == linalg::Precision::kBf16 || plan.evaluation_compute == linalg::Precision::kBf16;
  const double f32 = 1e9 * linalg::measure_gemm_peak(linalg::Precision::kF32);
  const double fast = bf16 ? 1e9 * linalg::measure_gemm_peak(linalg::Precision::kBf16) : f32;
  const auto speed = [&](linalg::Precision p) { return p == linalg::Precision::kBf16 ? fast : f32; };
  const double seconds = work.forward / (kForward * speed(plan.compute)) +
                         work.statistics / (kStatistics * f32) + work.gradients / (kGradients * f32) +
                         work.solver / f32 + work.evaluation / (kForward * speed(plan.evaluation_compute));
  return 0.2 + seconds / plan.threads;
}

}  // namespace lcomp::pipeline
