#include "lcomp/sparse/sparsegpt.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/quant/column_loop.h"
#include "lcomp/quant/grid.h"
#include "lcomp/sparse/refit.h"
#include "lcomp/sparse/saliency.h"
#include "quant/panel.h"
#include "quant/range.h"

namespace lcomp::sparse {
namespace {

using quant::kPanelRows;
using quant::PanelGrid;
using quant::QuantScheme;

constexpr double kLossTolerance = 1e-9;

/// One panel of rows on its way: values (then errors), what becomes of them, what is kept.
struct Panel {
  std::vector<double> values;
  std::vector<double> original;
  std::vector<double> decoded;
  std::vector<int8_t> codes;
  std::vector<uint8_t> kept;  ///< as the values lie: column after column
  std::unique_ptr<PanelGrid> grid;
  double damped[kPanelRows] = {};
  double damping[kPanelRows] = {};  ///< the part of it that is damping
};

struct Walk {
  const quant::GptqFactor& factor;
  const QuantScheme* scheme;
  std::optional<NofM> structure;
  at::ScalarType stored;
  int64_t in;

  double pivot(int64_t column) const { return factor.inverse.upper.data_ptr<double>()[column * in + column]; }
  /// Groups are fitted when the walk reaches them.
  bool fits_groups() const { return scheme != nullptr && scheme->granularity == quant::Granularity::kGroup; }
};

/// Zeroes what is not kept, and rounds the rest.
class PruneColumns final : public quant::ColumnPolicy {
 public:
  PruneColumns(const Walk& walk, Panel& panel) : walk_(walk), panel_(panel) {}

  int64_t group_size() const override { return walk_.fits_groups() ? walk_.scheme->group_size : 0; }
  int64_t unit_size() const override { return walk_.structure ? walk_.structure->of : 1; }

  void begin_group(int64_t first, const double* values) override {
    const int64_t width = walk_.scheme->group_size;
    // Of a pattern the grid sees what would be kept now.
    for (int64_t u = 0; walk_.structure && u < width; u += walk_.structure->of)
      choose(first + u, values + u * kPanelRows);
    std::vector<double> kept(values, values + width * kPanelRows);
    for (size_t i = 0; i < kept.size(); ++i) {
      if (panel_.kept[static_cast<size_t>(first * kPanelRows) + i] == 0) kept[i] = 0;
    }
    panel_.grid->fit(first / width, kept.data(), width, {.diagonal = walk_.factor.diagonal.data() + first});
  }

  void begin_unit(int64_t first, const double* values) override { choose(first, values); }

  void encode(int64_t column, const double* values, double* decoded) override {
    const auto at = static_cast<size_t>(column * kPanelRows);
    const double* zero = nullptr;
    if (walk_.scheme != nullptr) {
      const int64_t group = column / walk_.scheme->columns_per_group(walk_.in);
      panel_.grid->encode(group, values, panel_.codes.data() + at, decoded);
      zero = panel_.grid->zero(group);
    }
    const double added = walk_.factor.inverse.added[static_cast<size_t>(column)];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const size_t i = at + static_cast<size_t>(r);
      if (panel_.kept[i] == 0) {
        decoded[r] = 0;
        if (zero != nullptr) panel_.codes[i] = quant::zero_code(*walk_.scheme, zero[r]);
      } else if (zero == nullptr) {
        decoded[r] = quant::rounded_scale(walk_.stored, values[r]);
      }
      panel_.decoded[i] = decoded[r];
      const double d = panel_.original[i] - decoded[r];
      panel_.damping[r] += added * d * d;
    }
  }

 private:
  /// Keeps the N of M with the largest w^2 / U_jj^2; of equal ones those further right.
  void choose(int64_t first, const double* values) {
    const NofM structure = *walk_.structure;
    std::array<std::pair<double, int64_t>, 64> scores;
    for (int64_t r = 0; r < kPanelRows; ++r) {
      for (int64_t k = 0; k < structure.of; ++k) {
        const double score = values[k * kPanelRows + r] / walk_.pivot(first + k);
        scores[static_cast<size_t>(k)] = {score * score, k};
      }
      const auto end = scores.begin() + structure.of;
      std::nth_element(scores.begin(), scores.begin() + (structure.of - structure.kept), end);
      for (auto s = scores.begin(); s != end; ++s) {
        const bool stays = s - scores.begin() >= structure.of - structure.kept;
        panel_.kept[static_cast<size_t>((first + s->second) * kPanelRows + r)] = stays ? 1 : 0;
      }
    }
  }

  const Walk& walk_;
  Panel& panel_;
};

/// Decides what stays of columns [first, last) of all panels; `target` weights of them go in all.
void choose_block(std::vector<Panel>& panels, const Walk& walk, const Sparsity& sparsity, int64_t out,
                  int64_t first, int64_t last, ThreadPool& pool) {
  const int64_t width = last - first;
  at::Tensor scores = at::empty({out, width}, at::kDouble);
  const auto rows_of = [&](int64_t p) { return std::min(kPanelRows, out - p * kPanelRows); };
  const auto count = static_cast<int64_t>(panels.size());
  pool.parallel_for(count, [&](int64_t p, int) {
    for (int64_t r = 0; r < rows_of(p); ++r) {
      double* row = scores.data_ptr<double>() + (p * kPanelRows + r) * width;
      for (int64_t j = 0; j < width; ++j) {
        const double score =
            panels[static_cast<size_t>(p)].values[static_cast<size_t>((first + j) * kPanelRows + r)] /
            walk.pivot(first + j);
        row[j] = score * score;
      }
    }
  });
  // Shares of blocks are rounded so that those of the whole row or matrix come out exactly.
  const int64_t weights = sparsity.scope == Scope::kRow ? 1 : out;
  const int64_t target =
      share_of(sparsity.sparsity, weights * last) - share_of(sparsity.sparsity, weights * first);
  Sparsity block = sparsity;
  block.sparsity = static_cast<double>(target) / static_cast<double>(weights * width);
  const at::Tensor kept = select_kept(scores, block, &pool);
  pool.parallel_for(count, [&](int64_t p, int) {
    for (int64_t r = 0; r < rows_of(p); ++r) {
      const bool* row = kept.data_ptr<bool>() + (p * kPanelRows + r) * width;
      for (int64_t j = 0; j < width; ++j)
        panels[static_cast<size_t>(p)].kept[static_cast<size_t>((first + j) * kPanelRows + r)] =
            row[j] ? 1 : 0;
    }
  });
}

void check(const at::Tensor& weight, const quant::GptqFactor& factor, const Sparsity& sparsity,
           const SparseGptOptions& options, const QuantScheme* scheme) {
  constexpr const char* kWhere = "sparsegpt";
  if (weight.dim() != 2 || !weight.is_floating_point())
    throw InvalidArgument(kWhere, "the weight must be a matrix of a floating-point type");
  SparseGptOptions copy = options;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, kWhere);
  check_sparse_grid(sparsity, options, scheme);
  const int64_t in = weight.size(1);
  sparsity.validate(in, kWhere);
  if (scheme != nullptr) scheme->validate(weight.sizes(), kWhere);
  quant::check_finite(weight, kWhere);
  if (factor.second_moment.sizes() != at::IntArrayRef({in, in})) {
    throw InvalidArgument(kWhere, fmt::format("the second moment must be [{}, {}]; received [{}]", in, in,
                                              fmt::join(factor.second_moment.sizes(), ", ")));
  }
  if (!factor.order.empty())
    throw InvalidArgument(kWhere, "the factor must be in the plain order of columns; it is in another");
}

/// Wanda's mask, weights otherwise as they are or rounded.
SparseGptResult masked_only(const at::Tensor& weight, const quant::GptqFactor& factor,
                            const Sparsity& sparsity, const QuantScheme* scheme, at::ScalarType stored,
                            ThreadPool& pool) {
  SparseGptResult result;
  result.kept = select_kept(wanda(weight, factor.second_moment.diagonal()), sparsity, &pool);
  const at::Tensor masked = weight.to(at::kDouble) * result.kept;
  if (scheme != nullptr) {
    const quant::Grid grid = quant::fit_grid(masked.to(weight.scalar_type()), *scheme, "sparsegpt", &pool,
                                             factor.second_moment.diagonal());
    result.quantized.emplace(*scheme, quant::quantize(masked, grid, *scheme, &pool), grid);
    result.weight = result.quantized->dense();
  } else {
    result.weight = masked.to(stored).to(at::kFloat);
  }
  result.loss = activation_energy(weight.to(at::kDouble) - result.weight, factor.second_moment, &pool);
  result.masked_loss = result.loss;
  result.damped_loss = result.walk_loss = std::numeric_limits<double>::quiet_NaN();
  result.fell_back = true;
  return result;
}

/// The walk over all panels, block by block.
SparseGptResult walk_over(const at::Tensor& weight, const Walk& walk, const Sparsity& sparsity,
                          const SparseGptOptions& options, ThreadPool& pool) {
  const int64_t out = weight.size(0), in = weight.size(1), count = quant::panel_count(out);
  quant::Grid grid;
  if (walk.scheme != nullptr) {
    grid = walk.fits_groups() ? quant::empty_grid(weight, *walk.scheme)
                              : quant::fit_grid(weight, *walk.scheme, "sparsegpt", &pool,
                                                walk.factor.second_moment.diagonal());
  }
  std::vector<Panel> panels(static_cast<size_t>(count));
  pool.parallel_for(count, [&](int64_t p, int) {
    Panel& panel = panels[static_cast<size_t>(p)];
    const auto size = static_cast<size_t>(in * kPanelRows);
    panel.values.resize(size);
    panel.decoded.resize(size);
    panel.kept.assign(size, 1);
    quant::load_panel(weight, p * kPanelRows, {}, panel.values.data());
    panel.original = panel.values;
    if (walk.scheme == nullptr) return;
    panel.codes.resize(size);
    panel.grid = std::make_unique<PanelGrid>(*walk.scheme, grid.scale.scalar_type(), walk.scheme->groups(in));
    if (!walk.fits_groups()) panel.grid->load(grid, p * kPanelRows);
  });
  const double* upper = walk.factor.inverse.upper.data_ptr<double>();
  const PruneColumns shape(walk, panels.front());
  for (int64_t first = 0, last = 0; first < in; first = last) {
    last = quant::block_end(first, in, options.block_size, shape);
    if (!walk.structure) choose_block(panels, walk, sparsity, out, first, last, pool);
    pool.parallel_for(count, [&](int64_t p, int) {
      Panel& panel = panels[static_cast<size_t>(p)];
      PruneColumns policy(walk, panel);
      quant::compensate_block(panel.values.data(), in, upper, first, last, policy, panel.damped);
    });
  }

  SparseGptResult result;
  result.weight = at::empty({out, in}, at::kFloat);
  result.kept = at::empty({out, in}, at::kBool);
  at::Tensor codes = walk.scheme != nullptr ? at::empty({out, in}, at::kChar) : at::Tensor();
  pool.parallel_for(count, [&](int64_t p, int) {
    const Panel& panel = panels[static_cast<size_t>(p)];
    const int64_t first = p * kPanelRows, rows = std::min(kPanelRows, out - first);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t j = 0; j < in; ++j) {
        const auto i = static_cast<size_t>(j * kPanelRows + r);
        result.weight.data_ptr<float>()[(first + r) * in + j] = static_cast<float>(panel.decoded[i]);
        result.kept.data_ptr<bool>()[(first + r) * in + j] = panel.kept[i] != 0;
      }
    }
    if (walk.scheme == nullptr) return;
    quant::store_codes(panel.codes, first, {}, codes);
    if (walk.fits_groups()) panel.grid->store(first, grid);
  });
  for (int64_t row = 0; row < out; ++row) {
    const Panel& panel = panels[static_cast<size_t>(row / kPanelRows)];
    result.damped_loss += panel.damped[row % kPanelRows];
    result.loss += panel.damped[row % kPanelRows] - panel.damping[row % kPanelRows];
  }
  result.loss = std::max(result.loss, 0.0);
  result.walk_loss = result.damped_loss;
  if (walk.scheme != nullptr) result.quantized.emplace(*walk.scheme, codes, grid);
  return result;
}

/// The least squares of the mask.
void refit_result(SparseGptResult& result, const at::Tensor& weight, const quant::GptqFactor& factor,
                  at::ScalarType stored, ThreadPool& pool) {
  const RefitResult better = refit(weight, factor.second_moment, factor.inverse.added, result.kept, &pool);
  result.weight = better.weight.to(stored).to(at::kFloat);
  const at::Tensor difference = weight.to(at::kDouble) - result.weight;
  result.loss = activation_energy(difference, factor.second_moment, &pool);
  const at::Tensor added = at::tensor(factor.inverse.added, at::kDouble);
  result.damped_loss = result.loss + (difference.square().sum(0) * added).sum().item<double>();
}

}  // namespace

void SparseGptOptions::visit(FieldVisitor& v) {
  v.field("block_size", block_size, {1},
          "columns whose mask is decided and whose errors are applied at a time");
  v.field("damping", damping, {0, 1}, "added to the diagonal of the second moment, relative to its mean");
  v.field("refit", refit, "afterwards set the kept weights to the least squares of the mask");
  v.field("strict", strict, "any fallback is an error");
}

void check_sparse_grid(const Sparsity& sparsity, const SparseGptOptions& options, const QuantScheme* scheme) {
  constexpr const char* kWhere = "sparsegpt";
  if (scheme == nullptr) return;
  if (options.refit) throw Unsupported(kWhere, "refit must be off where the kept weights are quantized");
  if (!scheme->has_zero())
    throw Unsupported(kWhere,
                      "asymmetric_convention must be extended, so that 0 is a point of the grid; it is raw");
  if (scheme->double_quant) throw Unsupported(kWhere, "double_quant must be off");
  const auto structure = sparsity.n_of_m(kWhere);
  if (structure && scheme->granularity == quant::Granularity::kGroup &&
      scheme->group_size % structure->of != 0) {
    throw InvalidArgument(
        kWhere, fmt::format("group_size must be a multiple of the {} columns of pattern {}; it is {}",
                            structure->of, sparsity.pattern, scheme->group_size));
  }
}

SparseGptResult sparsegpt(const at::Tensor& weight, const quant::GptqFactor& factor, const Sparsity& sparsity,
                          const SparseGptOptions& options, const QuantScheme* scheme, at::ScalarType stored,
                          ThreadPool* pool) {
  check(weight, factor, sparsity, options, scheme);
  ThreadPool alone(1);
  ThreadPool& threads = pool != nullptr ? *pool : alone;
  SparseGptResult plain = masked_only(weight, factor, sparsity, scheme, stored, threads);
  const auto give_plain = [&] {
    plain.rung = factor.inverse.rung;
    plain.damping = factor.inverse.damping;
    plain.dead_columns = static_cast<int64_t>(factor.dead.size());
    return plain;
  };
  if (factor.inverse.rung == linalg::Rung::kFailed) {
    if (options.strict) {
      throw NumericalError("sparsegpt",
                           fmt::format("the damped second moment must have a Cholesky factor; tried {}",
                                       fmt::join(factor.inverse.attempts, "; ")));
    }
    return give_plain();
  }
  const at::Tensor alive =
      factor.dead.empty() ? weight : weight.index_fill(1, at::tensor(factor.dead, at::kLong), 0);
  const Walk walk{factor, scheme, sparsity.n_of_m("sparsegpt"), stored, weight.size(1)};
  SparseGptResult result = walk_over(alive, walk, sparsity, options, threads);
  if (options.refit && std::isfinite(result.damped_loss))
    refit_result(result, alive, factor, stored, threads);
  result.rung = factor.inverse.rung;
  result.damping = factor.inverse.damping;
  result.dead_columns = static_cast<int64_t>(factor.dead.size());
  result.masked_loss = plain.loss;
  if (std::isfinite(result.damped_loss) && result.loss <= plain.loss * (1 + kLossTolerance)) return result;
  if (options.strict) {
    throw NumericalError("sparsegpt",
                         fmt::format("strict mode must not lose more than Wanda; {:.6g} against {:.6g}",
                                     result.loss, plain.loss));
  }
  return give_plain();
}

SparseGptResult sparsegpt(const at::Tensor& weight, const at::Tensor& second_moment, const Sparsity& sparsity,
                          const SparseGptOptions& options, const QuantScheme* scheme, at::ScalarType stored,
                          ThreadPool* pool) {
  const quant::GptqFactor factor = quant::gptq_factor(
      second_moment, {.granularity = quant::Granularity::kChannel}, {.damping = options.damping}, pool);
  return sparsegpt(weight, factor, sparsity, options, scheme, stored, pool);
}

}  // namespace lcomp::sparse
