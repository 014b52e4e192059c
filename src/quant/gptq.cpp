#include "lcomp/quant/gptq.h"

#include <ATen/ATen.h>
#include <cblas.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"
#include "lcomp/core/weight_error.h"
#include "lcomp/quant/column_loop.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/refine.h"
#include "lcomp/quant/rtn.h"
#include "quant/gptq_order.h"
#include "quant/panel.h"

namespace lcomp::quant {
namespace {

/// Relative difference of losses that is rounding.
constexpr double kLossTolerance = 1e-9;

void check_second_moment(const at::Tensor& h, int64_t in) {
  const bool fits = h.dim() == 2 && h.size(0) == in && h.size(1) == in &&
                    (h.scalar_type() == at::kFloat || h.scalar_type() == at::kDouble);
  if (fits) return;
  throw InvalidArgument(
      "gptq",
      fmt::format("the second moment must be [{}, {}] of float32 or float64; received [{}] of {}", in, in,
                  fmt::join(h.sizes().begin(), h.sizes().end(), ", "), dtype_name(h.scalar_type())));
}

void check_kept(const at::Tensor& weight, const QuantScheme& scheme, const at::Tensor& kept) {
  if (!kept.defined()) return;
  if (kept.scalar_type() != at::kBool || kept.sizes() != weight.sizes()) {
    throw InvalidArgument(
        "gptq", fmt::format("the mask must be bool [{}]; received {} [{}]", fmt::join(weight.sizes(), ", "),
                            dtype_name(kept.scalar_type()), fmt::join(kept.sizes(), ", ")));
  }
  if (scheme.has_zero()) return;
  throw Unsupported("gptq",
                    "a pruned matrix needs a grid with 0 among its points: asymmetric_convention extended");
}

/// diag(H) in the plain order, for range kHessian.
at::Tensor importance_of(const GptqFactor& factor) {
  return factor.second_moment.diagonal();
}

/// How the columns of the walk map to groups.
struct Layout {
  int64_t width = 0;           ///< columns of a group
  bool refit = false;          ///< groups are fitted when the walk reaches them
  std::vector<int64_t> group;  ///< of the i-th column of the walk: column of the matrix of scales
  at::Tensor group_index;      ///< int32 [in], only where groups follow the order
};

Layout layout_of(const QuantScheme& scheme, const GptqOptions& options, const std::vector<int64_t>& order,
                 int64_t in) {
  Layout layout;
  layout.width = scheme.columns_per_group(in);
  // Under double quantization the scales depend on each other, so that they must be there before the walk.
  layout.refit = scheme.granularity == Granularity::kGroup && !options.static_groups &&
                 !scheme.double_quant && options.act_order != ActOrder::kStaticGroups;
  const bool follows_order = layout.refit && options.act_order == ActOrder::kActivation;
  for (int64_t i = 0; i < in; ++i) {
    const int64_t column = order.empty() || follows_order ? i : order[static_cast<size_t>(i)];
    layout.group.push_back(column / layout.width);
  }
  if (follows_order) {
    layout.group_index = at::empty({in}, at::kInt);
    for (int64_t i = 0; i < in; ++i) {
      layout.group_index.data_ptr<int32_t>()[order[static_cast<size_t>(i)]] =
          static_cast<int32_t>(i / layout.width);
    }
  }
  return layout;
}

/// Rounds the columns of one panel to their groups' grids and adds up what the damping made of the loss.
class RoundColumns final : public ColumnPolicy {
 public:
  RoundColumns(PanelGrid& grid, const Layout& layout, bool stale, const GptqFactor& factor,
               const std::vector<double>& original, const std::vector<double>& kept,
               std::vector<int8_t>& codes)
      : grid_(grid),
        layout_(layout),
        stale_(stale),
        importance_(factor.diagonal),
        original_(original),
        kept_(kept),
        added_(factor.inverse.added),
        codes_(codes) {}

  int64_t group_size() const override { return layout_.refit && !stale_ ? layout_.width : 0; }

  void begin_block(int64_t first, int64_t last, const double* values) override {
    if (!layout_.refit || !stale_) return;
    const int64_t width = layout_.width;
    for (int64_t c = (first + width - 1) / width * width; c < last; c += width) {
      fit(c, values + (c - first) * kPanelRows);
    }
  }

  void begin_group(int64_t first, const double* values) override { fit(first, values); }

  void encode(int64_t column, const double* values, double* decoded) override {
    grid_.encode(group_of(column), values, codes_.data() + column * kPanelRows, decoded);
    if (!kept_.empty()) mask(column, decoded);
    const double* original = original_.data() + column * kPanelRows;
    const double added = added_[static_cast<size_t>(column)];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const double d = original[r] - decoded[r];
      damping_loss[r] += added * d * d;
    }
  }

  /// Per row: sum_j d_j (w_j - w^_j)^2, the part of sum e^2 that is damping.
  double damping_loss[kPanelRows] = {};

 private:
  int64_t group_of(int64_t column) const { return layout_.group[static_cast<size_t>(column)]; }

  void fit(int64_t first, const double* values) {
    std::vector<double> masked;
    if (!kept_.empty()) {
      const double* kept = kept_.data() + first * kPanelRows;
      for (int64_t i = 0; i < layout_.width * kPanelRows; ++i) masked.push_back(values[i] * kept[i]);
      values = masked.data();
    }
    grid_.fit(group_of(first), values, layout_.width, {.diagonal = importance_.data() + first});
  }

  /// What is not kept becomes 0.
  void mask(int64_t column, double* decoded) {
    const double* zero = grid_.zero(group_of(column));
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const auto i = static_cast<size_t>(column * kPanelRows + r);
      if (kept_[i] != 0) continue;
      decoded[r] = 0;
      codes_[i] = zero_code(grid_.scheme(), zero[r]);
    }
  }

  PanelGrid& grid_;
  const Layout& layout_;
  bool stale_;
  const std::vector<double>& importance_;
  const std::vector<double>& original_;
  const std::vector<double>& kept_;  // 1 or 0; empty when all stay
  const std::vector<double>& added_;
  std::vector<int8_t>& codes_;
};

/// Losses of rows: with and without damping.
struct Loss {
  double damped = 0;
  double plain = 0;
};

/// Sums of the rows of all panels, in the order of the rows.
Loss total_loss(const std::vector<Loss>& rows) {
  Loss total;
  for (const Loss& row : rows) {
    total.damped += row.damped;
    total.plain += row.plain;
  }
  // Where H hardly reaches, the difference of two nearly equal numbers may come out below zero.
  if (total.plain < 0) total.plain = 0;
  return total;
}

struct Solution {
  at::Tensor codes;
  Grid grid;
  Loss loss;
};

/// The walk over all panels. `weight` has zeros in its dead columns.
Solution solve(const at::Tensor& weight, const GptqFactor& factor, const QuantScheme& scheme,
               const GptqOptions& options, const Layout& layout, const at::Tensor& mask, ThreadPool& pool) {
  const int64_t out = weight.size(0), in = weight.size(1);
  Solution solution{at::empty({out, in}, at::kChar),
                    layout.refit ? empty_grid(weight, scheme)
                                 : fit_grid(weight, scheme, "gptq", &pool, importance_of(factor)),
                    {}};
  const double* upper = factor.inverse.upper.data_ptr<double>();
  std::vector<Loss> rows(static_cast<size_t>(out));
  pool.parallel_for(panel_count(out), [&](int64_t index, int) {
    const int64_t first_row = index * kPanelRows;
    std::vector<double> panel(static_cast<size_t>(in * kPanelRows));
    std::vector<int8_t> codes(static_cast<size_t>(in * kPanelRows));
    load_panel(weight, first_row, factor.order, panel.data());
    const std::vector<double> original = panel;
    std::vector<double> kept(mask.defined() ? panel.size() : 0);
    if (mask.defined()) load_panel(mask, first_row, factor.order, kept.data());
    PanelGrid grid(scheme, solution.grid.scale.scalar_type(), scheme.groups(in));
    if (!layout.refit) grid.load(solution.grid, first_row);
    RoundColumns policy(grid, layout, options.stale_groups, factor, original, kept, codes);
    double damped[kPanelRows] = {};
    compensate(panel.data(), in, upper, options.block_size, policy, damped);

    store_codes(codes, first_row, factor.order, solution.codes);
    if (layout.refit) grid.store(first_row, solution.grid);
    for (int64_t r = 0; r < std::min(kPanelRows, out - first_row); ++r) {
      rows[static_cast<size_t>(first_row + r)] = {damped[r], damped[r] - policy.damping_loss[r]};
    }
  });
  solution.loss = total_loss(rows);
  return solution;
}

/// D -> D U^-1 for one panel, in blocks: the triangular solves are small and the rest is GEMM.
void divide_by_factor(double* panel, int64_t n, const double* upper) {
  constexpr int64_t kBlock = 64;
  const int rows = static_cast<int>(kPanelRows), stride = static_cast<int>(n);
  for (int64_t i1 = 0; i1 < n; i1 += kBlock) {
    const int64_t i2 = std::min(i1 + kBlock, n);
    const int width = static_cast<int>(i2 - i1);
    double* block = panel + i1 * kPanelRows;
    cblas_dtrsm(CblasColMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, rows, width, 1.0,
                upper + i1 * n + i1, stride, block, rows);
    if (i2 == n) break;
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, rows, static_cast<int>(n - i2), width, -1.0, block,
                rows, upper + i1 * n + i2, stride, 1.0, panel + i2 * kPanelRows, rows);
  }
}

/// tr(D H D^T) of a rounding that is given, from the factor: with E = D U^-1, sum E^2 is the damped loss.
double loss_of(const at::Tensor& weight, const QuantizedWeight& rounded, const GptqFactor& factor,
               ThreadPool& pool) {
  const int64_t out = weight.size(0), in = weight.size(1);
  const double* upper = factor.inverse.upper.data_ptr<double>();
  std::vector<Loss> rows(static_cast<size_t>(out));
  pool.parallel_for(panel_count(out), [&](int64_t index, int) {
    const int64_t first_row = index * kPanelRows, count = std::min(kPanelRows, out - first_row);
    const auto part = [&](const at::Tensor& t) {
      return t.size(0) == out ? t.narrow(0, first_row, count) : t;
    };
    const Grid grid{part(rounded.scale()), rounded.zero().defined() ? part(rounded.zero()) : at::Tensor(),
                    rounded.scheme().format};
    const at::Tensor difference = part(weight).to(at::kDouble) - dequantize(part(rounded.codes()), grid);
    std::vector<double> panel(static_cast<size_t>(in * kPanelRows));
    load_panel(difference, 0, factor.order, panel.data());

    double damped[kPanelRows] = {}, damping[kPanelRows] = {};
    for (int64_t j = 0; j < in; ++j) {
      for (int64_t r = 0; r < kPanelRows; ++r) {
        const double d = panel[static_cast<size_t>(j * kPanelRows + r)];
        damping[r] += factor.inverse.added[static_cast<size_t>(j)] * d * d;
      }
    }
    divide_by_factor(panel.data(), in, upper);
    for (int64_t j = 0; j < in; ++j) {
      for (int64_t r = 0; r < kPanelRows; ++r) {
        const double e = panel[static_cast<size_t>(j * kPanelRows + r)];
        damped[r] += e * e;
      }
    }
    for (int64_t r = 0; r < count; ++r) {
      rows[static_cast<size_t>(first_row + r)] = {damped[r], damped[r] - damping[r]};
    }
  });
  return total_loss(rows).plain;
}

/// Codes and scales improved from where the walk left them, on the damped loss that the walk minimises.
GptqResult refined(GptqResult result, const at::Tensor& weight, const GptqFactor& factor,
                   const GptqOptions& options, const at::Tensor& kept, ThreadPool& pool) {
  std::vector<double> added = factor.inverse.added;
  for (size_t i = 0; i < factor.order.size(); ++i)
    added[static_cast<size_t>(factor.order[i])] = factor.inverse.added[i];
  RefineResult better = refine(weight, factor.second_moment, added, result.weight,
                               {.sweeps = options.sweeps, .refit = options.refit}, &pool, kept);
  result.weight = std::move(better.weight);
  result.walk_loss = result.damped_loss;
  result.damped_loss = better.damped_loss;
  result.loss = better.loss;
  return result;
}

/// What result and report say besides the weight.
GptqResult result_with(QuantizedWeight weight, const GptqFactor& factor) {
  std::vector<int64_t> order = factor.order;
  if (order.empty()) {
    order.resize(static_cast<size_t>(weight.in_features()));
    std::iota(order.begin(), order.end(), 0);
  }
  return {.weight = std::move(weight),
          .rung = factor.inverse.rung,
          .damping = factor.inverse.damping,
          .attempts = factor.inverse.attempts,
          .dead_columns = static_cast<int64_t>(factor.dead.size()),
          .order = std::move(order)};
}

GptqResult fall_back(QuantizedWeight nearest, double rtn_loss, const GptqFactor& factor) {
  GptqResult result = result_with(std::move(nearest), factor);
  result.loss = result.rtn_loss = rtn_loss;
  result.damped_loss = std::numeric_limits<double>::quiet_NaN();
  result.fell_back = true;
  return result;
}

/// No factor on any rung.
GptqResult without_factor(const at::Tensor& weight, const GptqFactor& factor, const QuantScheme& scheme,
                          const GptqOptions& options, ThreadPool& pool) {
  if (options.strict || !options.fallback_to_rtn) {
    throw NumericalError("gptq", fmt::format("the damped second moment must have a Cholesky factor; tried {}",
                                             fmt::join(factor.inverse.attempts, "; ")));
  }
  QuantizedWeight nearest = rtn(weight, scheme, &pool, importance_of(factor));
  const double loss =
      activation_energy(weight.to(at::kDouble) - nearest.dense(), factor.second_moment, &pool);
  return fall_back(std::move(nearest), loss, factor);
}

/// In strict mode everything but the plain way is an error.
void check_strict(const GptqFactor& factor, double loss, double rtn_loss) {
  if (factor.inverse.rung != linalg::Rung::kPlain) {
    throw NumericalError(
        "gptq", fmt::format("strict mode must factor with the damping asked for; it took {} after {}",
                            factor.inverse.damping, fmt::join(factor.inverse.attempts, "; ")));
  }
  if (!(loss <= rtn_loss * (1 + kLossTolerance))) {
    throw NumericalError(
        "gptq", fmt::format("strict mode must not lose more than round-to-nearest; {:.6g} against {:.6g}",
                            loss, rtn_loss));
  }
}

}  // namespace

void check_gptq_options(const QuantScheme& scheme, const GptqOptions& options) {
  GptqOptions copy = options;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, "gptq");
  if (options.act_order == ActOrder::kActivation && scheme.granularity == Granularity::kGroup &&
      !options.static_groups && !options.store_group_index) {
    throw Unsupported(
        "gptq",
        "act_order activation with groups must store a group index, which current readers refuse; use "
        "static_groups or group_aware, or set store_group_index");
  }
  if (options.act_order == ActOrder::kActivation && scheme.granularity == Granularity::kGroup &&
      !options.static_groups && scheme.format != NumberFormat::kInt) {
    throw Unsupported("gptq", fmt::format("act_order activation with groups must store a group index, which "
                                          "only integers have; the format is {}",
                                          name_of(scheme.format)));
  }
  if ((options.sweeps > 0 || options.refit) && scheme.format != NumberFormat::kInt) {
    throw Unsupported("gptq", fmt::format("sweeps and refit must be off but for integers; the format is {}",
                                          name_of(scheme.format)));
  }
}

void GptqOptions::visit(FieldVisitor& v) {
  v.field("block_size", block_size, {1}, "columns whose errors are applied to the rest in one product");
  v.field("damping", damping, {0, 1}, "added to the diagonal of the second moment, relative to its mean");
  v.field("act_order", act_order, "order of the columns: none, activation, static_groups, group_aware");
  v.field("static_groups", static_groups, "fit all groups on the original weight, before any update");
  v.field("stale_groups", stale_groups,
          "fit groups on columns that lack the running block's updates, as the published code");
  v.field("store_group_index", store_group_index,
          "allow a result that needs weight_g_idx (old readers only)");
  v.field("fallback_to_rtn", fallback_to_rtn,
          "take round-to-nearest where it loses less, or where there is no factor");
  v.field("sweeps", sweeps, {0, 100},
          "passes over all codes after the walk, each code set to its best; where a job does not say, gptq "
          "and mixed_precision make 2");
  v.field("refit", refit,
          "set the scales to their best for the codes, before, in and after the sweeps; where a job does not "
          "say, gptq and mixed_precision do");
  v.field("strict", strict, "fail where damping had to grow or the result would fall back");
}

GptqFactor gptq_factor(const at::Tensor& second_moment, const QuantScheme& scheme, const GptqOptions& options,
                       ThreadPool* pool) {
  const int64_t in = second_moment.dim() == 2 ? second_moment.size(1) : 0;
  check_second_moment(second_moment, in);
  scheme.validate({1, in}, "gptq");
  check_gptq_options(scheme, options);

  const at::Tensor diagonal = second_moment.diagonal().to(at::kDouble).contiguous();
  std::vector<double> values(diagonal.data_ptr<double>(), diagonal.data_ptr<double>() + in);
  GptqFactor factor;
  factor.second_moment = second_moment;
  for (int64_t j = 0; j < in; ++j) {
    if (values[static_cast<size_t>(j)] != 0) continue;
    factor.dead.push_back(j);
    values[static_cast<size_t>(j)] = 1;  // what the factorisation counts it as
  }
  if (std::none_of(values.begin(), values.end(), [](double d) { return std::isnan(d); })) {
    factor.order = gptq_order(values, options.act_order, scheme.columns_per_group(in));
  }
  for (int64_t i = 0; i < in; ++i) {
    factor.diagonal.push_back(values[static_cast<size_t>(factor.order.empty() ? i : factor.order[i])]);
  }
  factor.inverse = linalg::damped_inverse(second_moment, options.damping, factor.order, pool);
  return factor;
}

GptqResult gptq(const at::Tensor& weight, const at::Tensor& second_moment, const QuantScheme& scheme,
                const GptqOptions& options, ThreadPool* pool, const at::Tensor& kept) {
  scheme.validate(weight.sizes(), "gptq");
  check_second_moment(second_moment, weight.size(1));
  return gptq(weight, gptq_factor(second_moment, scheme, options, pool), scheme, options, pool, kept);
}

GptqResult gptq(const at::Tensor& given, const GptqFactor& factor, const QuantScheme& scheme,
                const GptqOptions& options, ThreadPool* pool, const at::Tensor& kept) {
  check_kept(given, scheme, kept);
  const at::Tensor weight = kept.defined() ? given * kept : given;
  scheme.validate(weight.sizes(), "gptq");
  check_second_moment(factor.second_moment, weight.size(1));
  check_gptq_options(scheme, options);
  check_finite(weight, "gptq");
  // OpenBLAS must run with one thread, which a pool sees to.
  ThreadPool alone(1);
  ThreadPool& threads = pool != nullptr ? *pool : alone;
  if (factor.inverse.rung == linalg::Rung::kFailed)
    return without_factor(weight, factor, scheme, options, threads);

  const at::Tensor alive =
      factor.dead.empty() ? weight : weight.index_fill(1, at::tensor(factor.dead, at::kLong), 0);
  const Layout layout = layout_of(scheme, options, factor.order, weight.size(1));
  Solution solution = solve(alive, factor, scheme, options, layout, kept, threads);
  const bool finite = std::isfinite(solution.loss.damped);

  GptqResult result = result_with({scheme, solution.codes, solution.grid, layout.group_index}, factor);
  result.damped_loss = result.walk_loss = solution.loss.damped;
  result.loss = solution.loss.plain;
  result.rtn_loss = std::numeric_limits<double>::quiet_NaN();
  if (finite && (options.sweeps > 0 || options.refit))
    result = refined(std::move(result), alive, factor, options, kept, threads);

  if (options.fallback_to_rtn || options.strict) {
    QuantizedWeight nearest = rtn(weight, scheme, &threads, importance_of(factor));
    result.rtn_loss = loss_of(weight, nearest, factor, threads);
    if (options.strict) check_strict(factor, result.loss, result.rtn_loss);
    const bool worse = !finite || result.loss > result.rtn_loss * (1 + kLossTolerance);
    if (worse && options.fallback_to_rtn) return fall_back(std::move(nearest), result.rtn_loss, factor);
  }
  if (!finite) throw NumericalError("gptq", "the loss must be finite; the compensation overflowed");
  return result;
}

}  // namespace lcomp::quant
