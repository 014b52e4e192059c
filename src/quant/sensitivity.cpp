#include "lcomp/quant/sensitivity.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lcomp/core/error.h"

namespace lcomp::quant {
namespace {

at::Tensor checked_row_weights(const at::Tensor& row_weights, int64_t out) {
  if (!row_weights.defined()) return at::ones({out}, at::kDouble);
  if (row_weights.dim() != 1 || row_weights.size(0) != out) {
    throw InvalidArgument("sampled_losses", fmt::format("the row weights must be [{}]; received [{}]", out,
                                                        fmt::join(row_weights.sizes().begin(),
                                                                  row_weights.sizes().end(), ", ")));
  }
  return row_weights.to(at::kDouble);
}

at::Tensor checked_moment(const at::Tensor& moment, int64_t in) {
  if (moment.sizes() == at::IntArrayRef({in, in})) return moment;
  throw InvalidArgument(
      "sampled_losses",
      fmt::format("the moment of the loss must be [{}, {}], as that of the inputs; received [{}]", in, in,
                  fmt::join(moment.sizes(), ", ")));
}

void check_sample(int64_t sampled_rows) {
  if (sampled_rows >= 1) return;
  throw InvalidArgument("sampled_losses",
                        fmt::format("at least one row must be sampled; received {}", sampled_rows));
}

void check_bits(const std::vector<int64_t>& bits) {
  const bool ascends = std::adjacent_find(bits.begin(), bits.end(), std::greater_equal<>()) == bits.end();
  if (bits.empty() || !ascends) {
    throw InvalidArgument("losses_by_bits",
                          fmt::format("the bit widths must ascend; received [{}]", fmt::join(bits, ", ")));
  }
}

/// s_o sum_j H_jj w_j^2 of every row: what its outputs would count for if its inputs were not correlated.
std::vector<double> row_energies(const at::Tensor& weight, const at::Tensor& second_moment,
                                 const at::Tensor& row_weights) {
  const at::Tensor w = weight.to(at::kDouble);
  const at::Tensor energies =
      (w.square().mv(second_moment.diagonal().to(at::kDouble)) * row_weights).contiguous();
  return {energies.data_ptr<double>(), energies.data_ptr<double>() + energies.numel()};
}

}  // namespace

RowSample sample_rows(const std::vector<double>& energies, int64_t count) {
  const auto rows = static_cast<int64_t>(energies.size());
  std::vector<int64_t> order(energies.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return energies[static_cast<size_t>(a)] < energies[static_cast<size_t>(b)];
  });
  const int64_t strata = std::min(count, rows);
  RowSample sample;
  for (int64_t s = 0; s < strata; ++s) {
    const int64_t begin = rows * s / strata, end = rows * (s + 1) / strata;
    sample.rows.push_back(order[static_cast<size_t>((begin + end - 1) / 2)]);
    sample.weights.push_back(static_cast<double>(end - begin));
  }
  return sample;
}

std::vector<double> sampled_losses(
    const at::Tensor& weight, const at::Tensor& moment, const at::Tensor& row_weights, int64_t sampled_rows,
    size_t ways, const std::function<at::Tensor(const at::Tensor& rows, size_t way)>& treated) {
  check_sample(sampled_rows);
  const at::Tensor importance = checked_row_weights(row_weights, weight.size(0));
  const at::Tensor m = checked_moment(moment, weight.size(1)).to(at::kDouble);
  const RowSample sample = sample_rows(row_energies(weight, m, importance), sampled_rows);
  const at::Tensor rows = at::tensor(sample.rows, at::kLong);
  const at::Tensor before = weight.index_select(0, rows).to(at::kDouble);
  const at::Tensor weights = at::tensor(sample.weights, at::kDouble) * importance.index_select(0, rows);
  std::vector<double> losses(ways, 0.0);
  for (size_t way = 0; way < ways; ++way) {
    const at::Tensor difference = before - treated(rows, way);
    const double loss = difference.matmul(m).mul_(difference).sum(1).dot(weights).item<double>();
    if (!std::isfinite(loss)) {
      throw NumericalError("sampled_losses",
                           fmt::format("the estimated loss must be finite; of way {} it is {}", way, loss));
    }
    losses[way] = std::max(0.0, loss);
  }
  return losses;
}

std::vector<double> losses_by_bits(const at::Tensor& weight, const GptqFactor& factor,
                                   const QuantScheme& scheme, const std::vector<int64_t>& bits,
                                   const GptqOptions& options, int64_t sampled_rows,
                                   const at::Tensor& row_weights, const at::Tensor& loss_moment,
                                   ThreadPool* pool) {
  check_bits(bits);
  const auto treated = [&](const at::Tensor& rows, size_t way) {
    QuantScheme at_width = scheme;
    at_width.bits = bits[way];
    return gptq(weight.index_select(0, rows), factor, at_width, options, pool).weight.dense();
  };
  std::vector<double> losses =
      sampled_losses(weight, loss_moment.defined() ? loss_moment : factor.second_moment, row_weights,
                     sampled_rows, bits.size(), treated);
  // Estimates of the same rows may cross by chance where the loss hardly falls.
  for (size_t b = bits.size() - 1; b-- > 0;) losses[b] = std::max(losses[b], losses[b + 1]);
  return losses;
}

}  // namespace lcomp::quant
