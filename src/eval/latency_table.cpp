#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "lcomp/core/error.h"
#include "lcomp/eval/latency.h"
#include "lcomp/model/block.h"

namespace lcomp::eval {
namespace {

using model::Architecture;

/// Block 0 of an architecture with constant weights: speed does not depend on values.
model::Block constant_block(const Architecture& architecture) {
  std::vector<model::LinearOp> ops;
  for (const model::OperatorInfo& info : architecture.operators(0)) {
    const double value = 1 / std::sqrt(static_cast<double>(info.in_features));
    ops.push_back({info,
                   std::make_shared<DenseWeight>(at::full({info.out_features, info.in_features}, value)),
                   info.has_bias ? at::zeros({info.out_features}) : at::Tensor()});
  }
  std::map<std::string, at::Tensor> norms;
  for (const auto& [name, length] : architecture.block_norms(0)) norms[name] = at::ones({length});
  return {architecture, 0, std::move(ops), std::move(norms)};
}

/// Median seconds of groups [first, first + 2) of block 0, the halves of which are groups 0, 1 and 2, 3, at
/// other widths.
double seconds_of_half(Architecture architecture, const model::BlockWidths& widths, size_t first,
                       int64_t tokens, ThreadPool* pool, const TimingOptions& options) {
  architecture.widths.at(0) = widths;
  model::Block block = constant_block(architecture);
  for (const size_t g : {first, first + 1}) block.prepare(g, linalg::Precision::kF32);
  const auto threads = static_cast<size_t>(pool == nullptr ? 1 : pool->size());
  std::vector<linalg::Scratch> scratch(threads);
  std::vector<model::SampleState> states(threads);
  std::vector<at::Tensor> normalized(threads);
  for (size_t w = 0; w < threads; ++w) {
    states[w].hidden = at::ones({tokens, architecture.hidden_size});
    normalized[w] = at::empty_like(states[w].hidden);
  }
  const auto pass = [&](int64_t, int worker) {
    const auto w = static_cast<size_t>(worker);
    block.advance(first + 1, states[w], scratch[w], nullptr);
    if (first == 0) {
      block.advance(2, states[w], scratch[w], normalized[w].data_ptr<float>());
    } else {
      block.finish(states[w], scratch[w]);
    }
  };
  const auto all = [&] { parallel_for(pool, static_cast<int64_t>(threads), pass); };
  return time_in_turn({all}, options).front().median();
}

}  // namespace

LatencyTable latency_table(const Architecture& architecture, int64_t tokens, int64_t steps, ThreadPool* pool,
                           const TimingOptions& given) {
  if (tokens < 1 || steps < 1 || steps > architecture.intermediate_size) {
    throw InvalidArgument("latency_table",
                          fmt::format("tokens must be from 1 up and steps from 1 to {}; they are {} and {}",
                                      architecture.intermediate_size, tokens, steps));
  }
  TimingOptions options = given;
  if (!options.clock) options.clock = clock_for(pool == nullptr ? 1 : pool->size());
  LatencyTable table{{0}, {0}, {0}};
  for (int64_t groups = 1; groups <= architecture.kv_heads; ++groups) {
    const model::BlockWidths widths{architecture.heads / architecture.kv_heads * groups, groups, 1};
    table.attention.push_back(seconds_of_half(architecture, widths, 0, tokens, pool, options));
  }
  for (int64_t step = 1; step <= steps; ++step) {
    const int64_t width = std::llround(static_cast<double>(architecture.intermediate_size) *
                                       static_cast<double>(step) / static_cast<double>(steps));
    table.mlp_widths.push_back(width);
    table.mlp.push_back(seconds_of_half(architecture, {1, 1, width}, 2, tokens, pool, options));
  }
  return table;
}

}  // namespace lcomp::eval
