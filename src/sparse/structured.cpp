#include "lcomp/sparse/structured.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <set>

#include "lcomp/core/allocation.h"
#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/linalg/cholesky.h"

namespace lcomp::sparse {
namespace {

/// Rows of a product that one thread makes.
constexpr int64_t kProductRows = 128;

/// What is kept or goes together in a search: one attention unit, or `channel_step` channels of a block.
struct Chunk {
  double score = 0;
  size_t block = 0;
  int64_t units = 1;
};

/// Units of each block, the best first. Stable: of equal scores the one further left.
std::vector<std::vector<double>> sorted_scores(std::vector<std::vector<double>> scores) {
  for (std::vector<double>& of_block : scores)
    std::stable_sort(of_block.begin(), of_block.end(), std::greater<>());
  return scores;
}

double sum_of(const std::vector<double>& values, int64_t begin, int64_t end) {
  return std::accumulate(values.begin() + begin, values.begin() + end, 0.0);
}

/// What the blocks may keep beyond their least, in chunks, the best per unit first.
std::vector<Chunk> chunks_of(const std::vector<std::vector<double>>& sorted, int64_t least, int64_t step) {
  std::vector<Chunk> chunks;
  for (size_t block = 0; block < sorted.size(); ++block) {
    const auto units = static_cast<int64_t>(sorted[block].size());
    for (int64_t begin = std::min(least, units); begin < units; begin += step) {
      const int64_t end = std::min(units, begin + step);
      chunks.push_back({sum_of(sorted[block], begin, end), block, end - begin});
    }
  }
  std::stable_sort(chunks.begin(), chunks.end(), [](const Chunk& a, const Chunk& b) {
    return a.score * static_cast<double>(b.units) > b.score * static_cast<double>(a.units);
  });
  return chunks;
}

void check_scores(const UnitScores& scores, const UnitCosts& costs) {
  const bool fits = !scores.attention.empty() && scores.attention.size() == scores.channels.size() &&
                    costs.attention > 0 && costs.channel > 0 && costs.channel_step > 0;
  if (!fits) {
    throw InvalidArgument(
        "search_units",
        fmt::format("scores must be of the same blocks, at least one, and costs above 0; there are scores of "
                    "{} and {} blocks, and costs of {} and {}, in steps of {}",
                    scores.attention.size(), scores.channels.size(), costs.attention, costs.channel,
                    costs.channel_step));
  }
}

[[noreturn]] void throw_budget(double least, double budget) {
  throw InvalidArgument(
      "search_units",
      fmt::format("the budget must cover what every block keeps, {:.6g}; it is {:.6g}", least, budget));
}

void check_measured(const UnitScores& scores, const MeasuredCosts& costs) {
  const auto most = [](const std::vector<std::vector<double>>& of_blocks) {
    size_t units = 0;
    for (const auto& of_block : of_blocks) units = std::max(units, of_block.size());
    return units;
  };
  const bool fits = !scores.attention.empty() && scores.attention.size() == scores.channels.size() &&
                    costs.attention.size() > most(scores.attention) &&
                    costs.channels.size() > most(scores.channels) &&
                    std::is_sorted(costs.attention.begin(), costs.attention.end()) &&
                    std::is_sorted(costs.channels.begin(), costs.channels.end());
  if (!fits) {
    throw InvalidArgument(
        "search_units",
        fmt::format(
            "scores must be of the same blocks, at least one, and costs must not fall and reach as "
            "far as the largest block; there are scores of {} and {} blocks of up to {} and {} units, "
            "and costs of up to {} and {}",
            scores.attention.size(), scores.channels.size(), most(scores.attention), most(scores.channels),
            static_cast<int64_t>(costs.attention.size()) - 1,
            static_cast<int64_t>(costs.channels.size()) - 1));
  }
}

/// What the first chunks cost: channels come in whole chunks of a known number of units.
struct Prefix {
  std::vector<double> score{0};
  std::vector<int64_t> units{0};

  explicit Prefix(const std::vector<Chunk>& chunks) {
    for (const Chunk& chunk : chunks) {
      score.push_back(score.back() + chunk.score);
      units.push_back(units.back() + chunk.units);
    }
  }
  /// The most chunks of at most `count` units together.
  size_t most(int64_t count) const {
    return static_cast<size_t>(std::upper_bound(units.begin(), units.end(), count) - units.begin()) - 1;
  }
};

/// What every block keeps, what is left of the budget, and what it may be spent on.
struct Search {
  UnitCounts least;
  double spare;
  std::vector<Chunk> units;
  std::vector<Chunk> channels;
};

Search prepare_search(const UnitScores& scores, const UnitCosts& costs, double budget) {
  check_scores(scores, costs);
  const auto attention = sorted_scores(scores.attention), channels = sorted_scores(scores.channels);
  const int64_t least_channels = ceil_div(costs.least_channels, costs.channel_step) * costs.channel_step;
  UnitCounts counts;
  double least = 0;
  for (size_t b = 0; b < attention.size(); ++b) {
    counts.attention.push_back(std::min(costs.least_attention, static_cast<int64_t>(attention[b].size())));
    counts.channels.push_back(std::min(least_channels, static_cast<int64_t>(channels[b].size())));
    least += static_cast<double>(counts.attention.back()) * costs.attention +
             static_cast<double>(counts.channels.back()) * costs.channel;
  }
  if (least > budget) throw_budget(least, budget);
  return {counts, budget - least, chunks_of(attention, costs.least_attention, 1),
          chunks_of(channels, least_channels, costs.channel_step)};
}

at::Tensor columns_of(const at::Tensor& matrix, const std::vector<int64_t>& columns) {
  return matrix.index_select(1, at::tensor(columns, at::kLong));
}

/// a b, in pieces of rows of a; float64.
at::Tensor product(const at::Tensor& a, const at::Tensor& b, ThreadPool* pool) {
  at::Tensor out = at::empty({a.size(0), b.size(1)}, at::kDouble);
  parallel_for(pool, ceil_div(a.size(0), kProductRows), [&](int64_t piece, int) {
    const int64_t begin = piece * kProductRows, count = std::min(kProductRows, a.size(0) - begin);
    out.narrow(0, begin, count).copy_(at::matmul(a.narrow(0, begin, count).to(at::kDouble), b));
  });
  return out;
}

/// A weight of the columns that are left, with zeros in place of the others.
at::Tensor widened(const at::Tensor& narrowed, const std::vector<int64_t>& columns, int64_t in) {
  at::Tensor out = at::zeros({narrowed.size(0), in}, at::kDouble);
  return out.index_copy_(1, at::tensor(columns, at::kLong), narrowed.to(at::kDouble));
}

}  // namespace

UnitCounts search_units(const UnitScores& scores, const UnitCosts& costs, double budget) {
  auto [counts, spare, units, groups] = prepare_search(scores, costs, budget);
  const Prefix of_units(units), of_groups(groups);
  size_t best_units = 0, best_groups = 0;
  std::optional<double> best;
  for (size_t k = 0; k <= units.size(); ++k) {
    const double left = spare - static_cast<double>(k) * costs.attention;
    if (left < 0) break;
    const size_t f = of_groups.most(static_cast<int64_t>(std::floor(left / costs.channel)));
    const double value = of_units.score[k] + of_groups.score[f];
    if (best && value <= *best) continue;
    best = value;
    best_units = k;
    best_groups = f;
  }
  for (size_t k = 0; k < best_units; ++k) counts.attention[units[k].block] += units[k].units;
  for (size_t f = 0; f < best_groups; ++f) counts.channels[groups[f].block] += groups[f].units;
  return counts;
}

MeasuredCosts as_measured(const UnitCosts& costs, int64_t most_attention, int64_t most_channels) {
  MeasuredCosts out;
  for (int64_t k = 0; k <= most_attention; ++k)
    out.attention.push_back(static_cast<double>(k) * costs.attention);
  for (int64_t k = 0; k <= most_channels; ++k) out.channels.push_back(static_cast<double>(k) * costs.channel);
  return out;
}

UnitCounts search_measured_units(const UnitScores& scores, const MeasuredCosts& costs, int64_t channel_step,
                                 double budget) {
  const auto attention = sorted_scores(scores.attention), channels = sorted_scores(scores.channels);
  check_measured(scores, costs);
  if (!(budget > 0)) throw_budget(0, budget);
  std::vector<std::vector<AllocationOption>> items;
  std::vector<std::vector<int64_t>> counts;
  constexpr double kParts = 1e9;  // of the budget
  double least = 0;
  const auto add = [&](const std::vector<double>& sorted, const std::vector<double>& cost, int64_t step) {
    const auto units = static_cast<int64_t>(sorted.size());
    auto& options = items.emplace_back();
    auto& kept = counts.emplace_back();
    for (int64_t k = std::min(step, units); k <= units; k = k == units ? k + 1 : std::min(units, k + step)) {
      kept.push_back(k);
      options.push_back({static_cast<int64_t>(std::ceil(cost[static_cast<size_t>(k)] / budget * kParts)),
                         sum_of(sorted, k, units)});
    }
    if (units == 0) {  // nothing to choose
      kept.push_back(0);
      options.push_back({});
      return;
    }
    least += cost[static_cast<size_t>(kept.front())];
  };
  for (size_t b = 0; b < attention.size(); ++b) {
    add(attention[b], costs.attention, 1);
    add(channels[b], costs.channels, channel_step);
  }
  if (!(least <= budget)) throw_budget(least, budget);
  // Every cost was rounded up.
  const auto parts = static_cast<int64_t>(kParts) + static_cast<int64_t>(items.size());
  const std::vector<size_t> chosen = allocate(items, parts);
  UnitCounts result;
  for (size_t b = 0; b < attention.size(); ++b) {
    result.attention.push_back(counts[2 * b][chosen[2 * b]]);
    result.channels.push_back(counts[2 * b + 1][chosen[2 * b + 1]]);
  }
  return result;
}

UnitCounts search_uniform_units(const UnitScores& scores, const MeasuredCosts& costs, int64_t channel_step,
                                double budget, const std::vector<int64_t>& legal) {
  check_measured(scores, costs);
  const auto attention = sorted_scores(scores.attention), channels = sorted_scores(scores.channels);
  const auto most = static_cast<int64_t>(channels[0].size());
  const auto blocks = static_cast<double>(channels.size());
  for (size_t b = 0; b < channels.size(); ++b) {
    if (channels[b].size() != channels[0].size() || attention[b].size() != attention[0].size() ||
        static_cast<int64_t>(attention[b].size()) < legal.back())
      throw InvalidArgument("search_units", "for equal numbers all blocks must have equal numbers of units");
  }
  const auto total = [](const std::vector<std::vector<double>>& sorted, int64_t count) {
    double sum = 0;
    for (const auto& of_block : sorted) sum += sum_of(of_block, 0, count);
    return sum;
  };
  const int64_t fewest = std::min(most, channel_step);
  std::optional<double> best;
  std::pair<int64_t, int64_t> chosen;
  for (const int64_t heads : legal) {
    const double left = budget / blocks - costs.attention[static_cast<size_t>(heads)];
    if (left < 0) continue;
    const auto past = std::upper_bound(costs.channels.begin(), costs.channels.begin() + most + 1, left);
    int64_t count = past - costs.channels.begin() - 1;
    if (count < most) count = count / channel_step * channel_step;
    if (count < fewest) continue;
    const double value = total(attention, heads) + total(channels, count);
    if (best && value <= *best) continue;
    best = value;
    chosen = {heads, count};
  }
  if (!best) {
    throw_budget(blocks * (costs.attention[static_cast<size_t>(legal.front())] +
                           costs.channels[static_cast<size_t>(fewest)]),
                 budget);
  }
  return {std::vector<int64_t>(channels.size(), chosen.first),
          std::vector<int64_t>(channels.size(), chosen.second)};
}

UnitCounts threshold_units(const UnitScores& scores, const UnitCosts& costs, double budget) {
  auto [counts, spare, units, channels] = prepare_search(scores, costs, budget);
  const auto mean = [](const Chunk& chunk) { return chunk.score / static_cast<double>(chunk.units); };
  // Both lists fall; the better head of the two is kept until the first that the budget has no room for.
  size_t u = 0, c = 0;
  while (u < units.size() || c < channels.size()) {
    const bool attention = c == channels.size() || (u < units.size() && mean(units[u]) >= mean(channels[c]));
    const Chunk& next = attention ? units[u++] : channels[c++];
    spare -= static_cast<double>(next.units) * (attention ? costs.attention : costs.channel);
    if (spare < 0) break;
    (attention ? counts.attention : counts.channels)[next.block] += next.units;
  }
  return counts;
}

std::vector<double> slice_importance(const at::Tensor& weight, const SliceGradients& gradients, bool rows,
                                     int64_t per_unit, UnitImportance importance) {
  const bool first = importance == UnitImportance::kParamFirst || importance == UnitImportance::kParamMix ||
                     importance == UnitImportance::kVector;
  const bool second = importance == UnitImportance::kParamSecond || importance == UnitImportance::kParamMix;
  if ((first && !gradients.products.defined()) || (second && !gradients.squares.defined())) {
    throw InvalidArgument(
        "slice_importance",
        fmt::format("the importance {} must have gradients; there are none", name_of(importance)));
  }
  const at::Tensor w = weight.to(at::kDouble);
  const auto samples = static_cast<double>(gradients.samples);
  at::Tensor elements;
  if (first) elements = gradients.products.to(at::kDouble) / samples;
  if (second) {
    const at::Tensor curvature = w.square() * gradients.squares / samples;
    elements = first ? elements - curvature / 2 : curvature;
  }
  if (importance == UnitImportance::kL1) elements = w;
  if (importance == UnitImportance::kL2) elements = w.square();
  if (importance != UnitImportance::kVector) elements = elements.abs();
  const int64_t size = w.size(rows ? 0 : 1), units = size / per_unit;
  if (units * per_unit != size) {
    throw InvalidArgument("slice_importance",
                          fmt::format("{} must be a multiple of per_unit = {}; there are {}",
                                      rows ? "rows" : "columns", per_unit, size));
  }
  at::Tensor sums = (rows ? elements.sum(1) : elements.sum(0)).reshape({units, per_unit}).sum(1).contiguous();
  if (importance == UnitImportance::kVector) sums = sums.abs();
  return {sums.data_ptr<double>(), sums.data_ptr<double>() + units};
}

std::vector<double> grouped_importance(const std::vector<std::vector<double>>& slices,
                                       UnitGrouping grouping) {
  if (grouping == UnitGrouping::kFirst) return slices.front();
  if (grouping == UnitGrouping::kLast) return slices.back();
  std::vector<double> out = slices.front();
  for (size_t s = 1; s < slices.size(); ++s) {
    for (size_t u = 0; u < out.size(); ++u) {
      const double value = slices[s].at(u);
      if (grouping == UnitGrouping::kMax) {
        out[u] = std::max(out[u], value);
      } else if (grouping == UnitGrouping::kProd) {
        out[u] *= value;
      } else {
        out[u] += value;
      }
    }
  }
  if (grouping == UnitGrouping::kMean) {
    for (double& value : out) value /= static_cast<double>(slices.size());
  }
  return out;
}

std::vector<int64_t> lowest_units(const std::vector<double>& scores, int64_t count) {
  std::vector<int64_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return scores[static_cast<size_t>(a)] < scores[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(count));
  std::sort(order.begin(), order.end());
  return order;
}

double fisher_cost(const at::Tensor& gradients, const std::vector<int64_t>& removed) {
  return columns_of(gradients.to(at::kDouble), removed).sum(1).square().sum().item<double>();
}

std::vector<int64_t> rearrange_units(const at::Tensor& gradients, const std::vector<int64_t>& removed) {
  const int64_t batches = gradients.size(0), units = gradients.size(1);
  if (removed.empty() || static_cast<int64_t>(removed.size()) == units) return removed;
  const at::Tensor by_unit = gradients.to(at::kDouble).t().contiguous();
  const double* g = by_unit.data_ptr<double>();
  std::vector<double> diagonal(static_cast<size_t>(units));
  for (int64_t u = 0; u < units; ++u)
    diagonal[static_cast<size_t>(u)] =
        std::inner_product(g + u * batches, g + (u + 1) * batches, g + u * batches, 0.0);
  std::set<int64_t> gone(removed.begin(), removed.end());
  std::vector<double> sum(static_cast<size_t>(batches), 0.0);
  const auto add = [&](int64_t unit, double sign) {
    for (int64_t b = 0; b < batches; ++b) sum[static_cast<size_t>(b)] += sign * g[unit * batches + b];
  };
  for (const int64_t unit : gone) add(unit, 1);
  std::vector<int64_t> entering;
  for (int64_t u = 0; u < units; ++u) {
    if (!gone.contains(u)) entering.push_back(u);
  }
  std::stable_sort(entering.begin(), entering.end(), [&](int64_t a, int64_t b) {
    return diagonal[static_cast<size_t>(a)] < diagonal[static_cast<size_t>(b)];
  });
  for (const int64_t unit : entering) {
    gone.insert(unit);
    add(unit, 1);
    // |s - g_v|^2 = |s|^2 - 2 s.g_v + |g_v|^2: the first term is the same for all.
    std::optional<double> least;
    int64_t leaving = unit;
    for (const int64_t v : gone) {
      const double cost = diagonal[static_cast<size_t>(v)] -
                          2 * std::inner_product(sum.begin(), sum.end(), g + v * batches, 0.0);
      if (least && cost >= *least) continue;
      least = cost;
      leaving = v;
    }
    gone.erase(leaving);
    add(leaving, -1);
  }
  return {gone.begin(), gone.end()};
}

at::Tensor unit_products(const at::Tensor& weight, const at::Tensor& second_moment, int64_t per_unit,
                         ThreadPool* pool) {
  const at::Tensor w = weight.to(at::kDouble);
  const int64_t units = w.size(1) / per_unit;
  const at::Tensor by_column = product(w.t(), w, pool).mul_(second_moment);
  return by_column.view({units, per_unit, units, per_unit}).sum({1, 3});
}

at::Tensor tune_scales(const at::Tensor& products, const at::Tensor& targets, double damping) {
  const at::Tensor k = products.to(at::kDouble);
  at::Tensor scales;
  parallel_for(nullptr, 1, [&](int64_t, int) {
    const auto [values, vectors] = at::linalg_eigh(k);
    const at::Tensor along = at::matmul(vectors.t(), targets.to(at::kDouble) - k.sum(1));
    scales = 1 + at::matmul(vectors, along * values / (values.square() + damping * damping));
  });
  return scales;
}

double narrowed_loss(const at::Tensor& weight, const at::Tensor& narrowed, const at::Tensor& second_moment,
                     const std::vector<int64_t>& columns, ThreadPool* pool) {
  const at::Tensor difference = weight.to(at::kDouble) - widened(narrowed, columns, weight.size(1));
  return activation_energy(difference, second_moment, pool);
}

RefittedColumns refit_columns(const at::Tensor& weight, const at::Tensor& second_moment,
                              const std::vector<int64_t>& columns, double damping, ThreadPool* pool) {
  const at::Tensor w = weight.to(at::kDouble);
  RefittedColumns result;
  result.weight = columns_of(w, columns);
  result.loss = result.loss_before = narrowed_loss(weight, result.weight, second_moment, columns, pool);
  const at::Tensor rows = second_moment.index_select(0, at::tensor(columns, at::kLong));
  const auto inverse = linalg::damped_inverse(columns_of(rows, columns), damping, {}, pool);
  result.damping = inverse.damping;
  result.rung = inverse.rung;
  result.failed = inverse.rung == linalg::Rung::kFailed;
  if (result.failed) return result;
  // W' = W_K + (W - W_K) H_:K (H_KK + d)^-1, (H_KK + d)^-1 = U^T U: what is damped is the change.
  const at::Tensor lost = w - widened(result.weight, columns, w.size(1));
  const at::Tensor moved = product(lost, rows.t().to(at::kDouble), pool);
  const at::Tensor change = product(product(moved, inverse.upper.t(), pool), inverse.upper, pool);
  const at::Tensor refitted = result.weight + change;
  const double loss = narrowed_loss(weight, refitted, second_moment, columns, pool);
  result.failed = !(loss <= result.loss_before);
  if (result.failed) return result;
  result.weight = refitted;
  result.loss = loss;
  return result;
}

}  // namespace lcomp::sparse
