#include "lcomp/quant/squeezellm.h"

#include <ATen/ATen.h>

#include <limits>
#include <span>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"
#include "lcomp/quant/grid.h"
#include "lcomp/quant/kmeans1d.h"

namespace lcomp::quant {
namespace {

constexpr const char* kSqueezeLlm = "squeezellm";

c10::ScalarType stored_type(const SqueezeLlmOptions& options, c10::ScalarType weight) {
  QuantScheme scheme;
  scheme.scale_dtype = options.codebook_dtype;
  return scheme.scale_type(weight);
}

double rounded(double value, c10::ScalarType type) {
  const auto single = static_cast<float>(value);
  if (type == c10::kHalf) return static_cast<float>(c10::Half(single));
  if (type == c10::kBFloat16) return static_cast<float>(c10::BFloat16(single));
  return single;
}

/// Largest k of `values`, or infinity when k is 0.
double kth_largest(std::vector<float> values, int64_t k) {
  if (k < 1) return std::numeric_limits<double>::infinity();
  const auto place = values.begin() + (k - 1);
  std::nth_element(values.begin(), place, values.end(), std::greater<>());
  return *place;
}

std::vector<float> to_vector(const at::Tensor& tensor) {
  const at::Tensor flat = tensor.to(at::kFloat).contiguous();
  return {flat.data_ptr<float>(), flat.data_ptr<float>() + flat.numel()};
}

/// The value at share `q` of the sorted values, linearly interpolated.
double quantile(std::vector<float>& values, double q) {
  const double position = q * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::ptrdiff_t>(position);
  std::nth_element(values.begin(), values.begin() + below, values.end());
  const double low = values[static_cast<size_t>(below)];
  if (static_cast<size_t>(below) + 1 == values.size()) return low;
  const double high = *std::min_element(values.begin() + below + 1, values.end());
  return low + (position - static_cast<double>(below)) * (high - low);
}

/// A row as it is clustered: kept entries have the weight 0.
struct Row {
  std::vector<double> x;
  std::vector<double> f;
  std::vector<bool> kept;
};

struct RowBook {
  std::vector<double> centers;  // rounded to the stored type, ascending
  double loss = 0;
  double grid_loss = 0;
};

std::vector<double> round_all(std::vector<double> centers, c10::ScalarType type) {
  for (double& c : centers) c = rounded(c, type);
  return centers;
}

/// 2^bits points from the smallest to the largest entry that is not kept aside.
std::vector<double> even_grid(const Row& row, int64_t entries) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  for (size_t j = 0; j < row.x.size(); ++j) {
    if (row.kept[j]) continue;
    low = std::min(low, row.x[j]);
    high = std::max(high, row.x[j]);
  }
  std::vector<double> grid;
  for (int64_t i = 0; i < entries; ++i)
    grid.push_back(low + (high - low) * static_cast<double>(i) / static_cast<double>(entries - 1));
  return grid;
}

RowBook solve_row(Row& row, const SqueezeLlmOptions& options, c10::ScalarType type) {
  const int64_t entries = int64_t{1} << options.bits;
  const bool all_kept = std::find(row.kept.begin(), row.kept.end(), false) == row.kept.end();
  if (all_kept) return {std::vector<double>(static_cast<size_t>(entries), 0.0), 0, 0};
  // A row without any sensitivity is clustered as it is; what is kept aside still does not count.
  if (std::none_of(row.f.begin(), row.f.end(), [](double f) { return f > 0; })) {
    for (size_t j = 0; j < row.f.size(); ++j) row.f[j] = row.kept[j] ? 0.0 : 1.0;
  }
  const std::vector<double> grid = even_grid(row, entries);
  std::vector<std::vector<double>> candidates;
  if (options.solver == CodebookSolver::kExact) {
    candidates.push_back(kmeans_exact(row.x, row.f, entries).centers);
  } else {
    for (const auto& start : {quantile_centers(row.x, row.f, entries), grid})
      candidates.push_back(kmeans_lloyd(row.x, row.f, start, options.iterations).centers);
  }
  candidates.push_back(grid);
  RowBook best;
  best.loss = std::numeric_limits<double>::infinity();
  for (const auto& candidate : candidates) {
    std::vector<double> centers = round_all(candidate, type);
    best.grid_loss = clustering_cost(row.x, row.f, centers);  // the grid comes last
    if (best.grid_loss < best.loss) {
      best.loss = best.grid_loss;
      best.centers = std::move(centers);
    }
  }
  if (best.centers.empty()) {
    throw NumericalError(
        kSqueezeLlm,
        fmt::format("a row must have a code book of finite loss in {}, in which it is stored; none has",
                    dtype_name(type)));
  }
  return best;
}

void check_inputs(const at::Tensor& weight, const at::Tensor& fisher, const SqueezeLlmOptions& options) {
  options.validate();
  if (weight.dim() != 2 || weight.numel() == 0) {
    throw InvalidArgument(kSqueezeLlm, fmt::format("the weight must be a matrix [out, in] that is not empty; "
                                                   "received shape [{}]",
                                                   fmt::join(weight.sizes(), ", ")));
  }
  check_finite(weight, kSqueezeLlm);
  if (!options.reads_gradients()) return;
  if (!fisher.defined() || fisher.sizes() != weight.sizes()) {
    throw InvalidArgument(
        kSqueezeLlm,
        fmt::format("squared gradients must be there for every weight, [{}]; received {}",
                    fmt::join(weight.sizes(), ", "),
                    fisher.defined() ? fmt::format("[{}]", fmt::join(fisher.sizes(), ", ")) : "none"));
  }
  if (!at::isfinite(fisher.to(at::kFloat)).all().item<bool>())
    throw NumericalError(kSqueezeLlm, "squared gradients must be finite in float32; one is not");
  if (fisher.min().item<double>() < 0)
    throw InvalidArgument(kSqueezeLlm, "squared gradients must be at least 0; one is not");
}

/// Codes, and the differences from the centers that kept entries decode to.
SparseEntries collect_kept(const at::Tensor& weight, const at::Tensor& kept, const at::Tensor& codebook,
                           at::Tensor& codes) {
  const int64_t out = weight.size(0), in = weight.size(1);
  std::vector<int32_t> offsets{0}, columns;
  std::vector<float> values;
  const auto w = weight.accessor<float, 2>();
  const auto aside = kept.accessor<bool, 2>();
  const at::Tensor books = codebook.to(at::kDouble);
  for (int64_t r = 0; r < out; ++r) {
    const std::span<const double> centers(books.data_ptr<double>() + r * books.size(1),
                                          static_cast<size_t>(books.size(1)));
    const int64_t zero = nearest_center(0, centers);
    for (int64_t j = 0; j < in; ++j) {
      if (!aside[r][j]) continue;
      codes.data_ptr<uint8_t>()[r * in + j] = static_cast<uint8_t>(zero);
      columns.push_back(static_cast<int32_t>(j));
      values.push_back(static_cast<float>(w[r][j] - centers[static_cast<size_t>(zero)]));
    }
    offsets.push_back(static_cast<int32_t>(columns.size()));
  }
  if (values.empty()) return {};
  return {at::tensor(offsets, at::kInt), at::tensor(columns, at::kInt),
          at::tensor(values, at::kFloat).to(codebook.scalar_type())};
}

}  // namespace

void SqueezeLlmOptions::visit(FieldVisitor& v) {
  v.field("bits", bits, {2, 8}, "bits of a code; a row has 2^bits values");
  v.field("weighting", weighting,
          "what weighs an entry's error: \"gradients\" of the loss, squared, or \"none\" (plain k-means)");
  v.field("solver", solver,
          "\"exact\" dynamic programming, or \"lloyd\" iterations from quantiles and an even grid");
  v.field("iterations", iterations, {1, 1000}, "most iterations of Lloyd's");
  v.field("sensitive", sensitive, {0, 0.1},
          "share of the entries, those with the largest squared gradients, that is kept beside the codes "
          "(0.0005 in the paper)");
  v.field("outliers", outliers, {0, 0.1},
          "share of the entries, the largest, that is kept beside the codes (0.004 in the paper)");
  v.field(
      "outlier_range", outlier_range, {0, 100},
      "instead of `outliers`: entries beyond the quartiles by this many interquartile ranges; 0: not used");
  v.field("codebook_dtype", codebook_dtype, "type that the values are stored in");
}

void SqueezeLlmOptions::validate(std::string_view) const {
  SqueezeLlmOptions copy = *this;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, kSqueezeLlm);
}

int64_t SqueezeLlmOptions::planned_entries(int64_t count) const {
  return static_cast<int64_t>(sensitive * static_cast<double>(count)) +
         static_cast<int64_t>(outliers * static_cast<double>(count));
}

double outlier_threshold(const at::Tensor& weight, double range) {
  std::vector<float> values = to_vector(weight);
  const double q1 = quantile(values, 0.25), q3 = quantile(values, 0.75);
  return std::max(std::abs(q1 - range * (q3 - q1)), std::abs(q3 + range * (q3 - q1)));
}

at::Tensor kept_entries(const at::Tensor& weight, const at::Tensor& fisher,
                        const SqueezeLlmOptions& options) {
  const auto count = static_cast<double>(weight.numel());
  const at::Tensor magnitude = weight.to(at::kDouble).abs();
  double threshold = std::numeric_limits<double>::infinity();
  if (options.outlier_range > 0) {
    threshold = outlier_threshold(weight, options.outlier_range);
  } else if (options.outliers > 0) {
    threshold = kth_largest(to_vector(magnitude), static_cast<int64_t>(options.outliers * count));
  }
  at::Tensor kept = (magnitude >= threshold) & (magnitude > 0);
  if (options.sensitive > 0) {
    const double floor = kth_largest(to_vector(fisher), static_cast<int64_t>(options.sensitive * count));
    kept = kept | (fisher.to(at::kDouble) > floor);
  }
  return kept.contiguous();
}

SqueezeLlmResult squeezellm(const at::Tensor& weight, const at::Tensor& fisher,
                            const SqueezeLlmOptions& options, ThreadPool* pool) {
  check_inputs(weight, fisher, options);
  const c10::ScalarType type = stored_type(options, weight.scalar_type());
  const at::Tensor w = weight.to(at::kFloat).contiguous();
  const at::Tensor f = options.weighting == CodebookWeighting::kGradients ? fisher.to(at::kFloat).contiguous()
                                                                          : at::ones_like(w);
  const at::Tensor kept = kept_entries(w, fisher, options);
  const int64_t out = w.size(0), in = w.size(1), entries = int64_t{1} << options.bits;
  at::Tensor codebook = at::empty({out, entries}, at::kDouble);
  at::Tensor codes = at::empty({out, in}, at::kByte);
  std::vector<RowBook> books(static_cast<size_t>(out));
  parallel_for(pool, out, [&](int64_t r, int) {
    Row row;
    const float* from = w.data_ptr<float>() + r * in;
    row.x.assign(from, from + in);
    row.f.assign(f.data_ptr<float>() + r * in, f.data_ptr<float>() + (r + 1) * in);
    row.kept.assign(kept.data_ptr<bool>() + r * in, kept.data_ptr<bool>() + (r + 1) * in);
    for (size_t j = 0; j < row.f.size(); ++j) row.f[j] = row.kept[j] ? 0.0 : row.f[j];
    const RowBook& book = books[static_cast<size_t>(r)] = solve_row(row, options, type);
    std::copy(book.centers.begin(), book.centers.end(), codebook.data_ptr<double>() + r * entries);
    for (int64_t j = 0; j < in; ++j) {
      codes.data_ptr<uint8_t>()[r * in + j] =
          static_cast<uint8_t>(nearest_center(row.x[static_cast<size_t>(j)], book.centers));
    }
  });
  const at::Tensor stored = codebook.to(type);
  if (!at::isfinite(stored).all().item<bool>()) {
    throw NumericalError(kSqueezeLlm,
                         fmt::format("values of the code books must fit {}; the largest weight is {}",
                                     dtype_name(type), w.abs().max().item<float>()));
  }
  SparseEntries sparse = collect_kept(w, kept, stored, codes);
  SqueezeLlmResult result{CodebookWeight(options.bits, codes, stored, std::move(sparse))};
  for (const RowBook& book : books) {
    result.loss += book.loss;
    result.grid_loss += book.grid_loss;
  }
  return result;
}

}  // namespace lcomp::quant
