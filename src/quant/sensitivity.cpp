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
    throw InvalidArgument("losses_by_bits", fmt::format("the row weights must be [{}]; received [{}]", out,
                                                        fmt::join(row_weights.sizes().begin(),
                                                                  row_weights.sizes().end(), ", ")));
  }
  return row_weights.to(at::kDouble);
}

at::Tensor checked_moment(const at::Tensor& loss_moment, const GptqFactor& factor) {
  if (!loss_moment.defined()) return factor.second_moment;
  if (loss_moment.sizes() == factor.second_moment.sizes()) return loss_moment;
  throw InvalidArgument(
      "losses_by_bits",
      fmt::format("the moment of the loss must be [{}], as that of the inputs; received [{}]",
                  fmt::join(factor.second_moment.sizes(), ", "), fmt::join(loss_moment.sizes(), ", ")));
}

void check_bits(const std::vector<int64_t>& bits, int64_t sampled_rows) {
  const bool ascends = std::adjacent_find(bits.begin(), bits.end(), std::greater_equal<>()) == bits.end();
  if (bits.empty() || !ascends) {
    throw InvalidArgument("losses_by_bits",
                          fmt::format("the bit widths must ascend; received [{}]", fmt::join(bits, ", ")));
  }
  if (sampled_rows < 1) {
    throw InvalidArgument("losses_by_bits",
                          fmt::format("at least one row must be sampled; received {}", sampled_rows));
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

std::vector<double> losses_by_bits(const at::Tensor& weight, const GptqFactor& factor,
                                   const QuantScheme& scheme, const std::vector<int64_t>& bits,
                                   const GptqOptions& options, int64_t sampled_rows,
                                   const at::Tensor& row_weights, const at::Tensor& loss_moment,
                                   ThreadPool* pool) {
  check_bits(bits, sampled_rows);
  const at::Tensor importance = checked_row_weights(row_weights, weight.size(0));
  const at::Tensor moment = checked_moment(loss_moment, factor).to(at::kDouble);
  const RowSample sample = sample_rows(row_energies(weight, moment, importance), sampled_rows);
  const at::Tensor chosen = at::tensor(sample.rows, at::kLong);
  const at::Tensor rows = weight.index_select(0, chosen);
  const at::Tensor weights = at::tensor(sample.weights, at::kDouble) * importance.index_select(0, chosen);
  std::vector<double> losses(bits.size(), 0.0);
  for (size_t b = 0; b < bits.size(); ++b) {
    QuantScheme at_width = scheme;
    at_width.bits = bits[b];
    const at::Tensor difference =
        rows.to(at::kDouble) - gptq(rows, factor, at_width, options, pool).weight.dense();
    const at::Tensor lost = difference.matmul(moment).mul_(difference).sum(1);
    const double loss = lost.dot(weights).item<double>();
    if (!std::isfinite(loss)) {
      throw NumericalError(
          "losses_by_bits",
          fmt::format("the estimated loss must be finite; at {} bits it is {}", bits[b], loss));
    }
    losses[b] = std::max(0.0, loss);
  }
  // Estimates of the same rows may cross by chance where the loss hardly falls.
  for (size_t b = bits.size() - 1; b-- > 0;) losses[b] = std::max(losses[b], losses[b + 1]);
  return losses;
}

}  // namespace lcomp::quant
