#include "lcomp/sparse/sparsity.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <vector>

#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"

namespace lcomp::sparse {
namespace {

constexpr std::string_view kUnstructured = "unstructured";
constexpr int64_t kWidestPattern = 64;

/// Marks the `count` lowest of `scores` as removed; ties go to the lower index.
void remove_lowest(const double* scores, int64_t size, int64_t count, std::vector<int64_t>& index,
                   bool* kept) {
  index.resize(static_cast<size_t>(size));
  std::iota(index.begin(), index.end(), 0);
  std::nth_element(index.begin(), index.begin() + count, index.end(), [&](int64_t a, int64_t b) {
    return scores[a] != scores[b] ? scores[a] < scores[b] : a < b;
  });
  std::fill(kept, kept + size, true);
  for (int64_t i = 0; i < count; ++i) kept[index[static_cast<size_t>(i)]] = false;
}

}  // namespace

void Sparsity::visit(FieldVisitor& v) {
  v.field("sparsity", sparsity, {0, 1}, "share of the weights that are removed (pattern unstructured)");
  v.field("pattern", pattern, "unstructured, or N:M: N kept of M consecutive input columns, such as 2:4");
  v.field("scope", scope, "where weights compete: each row loses the same share, or only the tensor does");
}

std::optional<NofM> Sparsity::n_of_m(std::string_view where) const {
  if (pattern == kUnstructured) return std::nullopt;
  NofM parsed;
  const char* end = pattern.data() + pattern.size();
  const auto first = std::from_chars(pattern.data(), end, parsed.kept);
  const bool colon = first.ec == std::errc() && first.ptr != end && *first.ptr == ':';
  const auto second = colon ? std::from_chars(first.ptr + 1, end, parsed.of) : first;
  if (colon && second.ec == std::errc() && second.ptr == end && parsed.kept >= 1 && parsed.kept < parsed.of &&
      parsed.of <= kWidestPattern) {
    return parsed;
  }
  throw InvalidArgument(
      std::string(where),
      fmt::format("pattern must be unstructured, or N:M with 1 <= N < M <= {}; received '{}'", kWidestPattern,
                  pattern));
}

void Sparsity::validate(int64_t in, std::string_view where, std::string_view name) const {
  Sparsity copy = *this;
  check_ranges([&](FieldVisitor& v) { copy.visit(v); }, where);
  const auto structure = n_of_m(where);
  if (!structure || in % structure->of == 0) return;
  throw InvalidArgument(std::string(where),
                        fmt::format("pattern {} must divide the {} input columns{}; {} does not", pattern, in,
                                    name.empty() ? "" : fmt::format(" of '{}'", name), structure->of));
}

int64_t Sparsity::removed(int64_t out, int64_t in) const {
  if (const auto structure = n_of_m()) return out * (in / structure->of) * (structure->of - structure->kept);
  return scope == Scope::kRow ? out * share_of(sparsity, in) : share_of(sparsity, out * in);
}

std::string Sparsity::describe() const {
  return pattern == kUnstructured ? fmt::format("{:.4g} % zeros", 100 * sparsity)
                                  : fmt::format("{} sparse", pattern);
}

int64_t share_of(double share, int64_t count) {
  const double exact = share * static_cast<double>(count), nearest = std::nearbyint(exact);
  return static_cast<int64_t>(std::abs(exact - nearest) < 1e-9 * std::max(1.0, exact) ? nearest
                                                                                      : std::floor(exact));
}

at::Tensor select_kept(const at::Tensor& scores, const Sparsity& sparsity, ThreadPool* pool) {
  const int64_t out = scores.size(0), in = scores.size(1);
  sparsity.validate(in, "select_kept");
  const at::Tensor values = scores.to(at::kDouble).contiguous();
  if (values.isnan().any().item<bool>()) throw NumericalError("select_kept", "scores must not be NaN");
  at::Tensor kept = at::empty({out, in}, at::kBool);
  const double* from = values.data_ptr<double>();
  bool* to = kept.data_ptr<bool>();
  const auto structure = sparsity.n_of_m();
  if (!structure && sparsity.scope == Scope::kTensor) {
    std::vector<int64_t> index;
    remove_lowest(from, out * in, sparsity.removed(out, in), index, to);
    return kept;
  }
  const int64_t width = structure ? structure->of : in;
  const int64_t count = structure ? structure->of - structure->kept : share_of(sparsity.sparsity, in);
  parallel_for(pool, out, [&](int64_t r, int) {
    std::vector<int64_t> index;
    for (int64_t j = 0; j < in; j += width)
      remove_lowest(from + r * in + j, width, count, index, to + r * in + j);
  });
  return kept;
}

}  // namespace lcomp::sparse
