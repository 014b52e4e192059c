#include "lcomp/sparse/refit.h"

#include <ATen/ATen.h>
#include <cblas.h>
#include <fmt/format.h>

#include <atomic>

#include "lcomp/core/error.h"
#include "lcomp/linalg/cholesky.h"

namespace lcomp::sparse {
namespace {

void check(const at::Tensor& weight, const at::Tensor& h, const std::vector<double>& added,
           const at::Tensor& kept) {
  const int64_t in = weight.dim() == 2 ? weight.size(1) : -1;
  const bool fits = in > 0 && h.sizes() == at::IntArrayRef({in, in}) && kept.sizes() == weight.sizes() &&
                    kept.scalar_type() == at::kBool &&
                    (added.empty() || static_cast<int64_t>(added.size()) == in);
  if (!fits) {
    throw InvalidArgument(
        "refit",
        "the weight must be [out, in], the second moment [in, in], the mask bool [out, in], and "
        "what is added [in]");
  }
}

/// v_S of one row, in place of w; false when A_SS has no factor.
bool solve_row(const double* a, const double* right, const bool* kept, int64_t n, double* w) {
  std::vector<int64_t> columns;
  for (int64_t j = 0; j < n; ++j) {
    if (kept[j]) columns.push_back(j);
  }
  const auto size = static_cast<int64_t>(columns.size());
  std::vector<double> m(static_cast<size_t>(size * size)), x(static_cast<size_t>(size));
  for (int64_t i = 0; i < size; ++i) {
    const double* row = a + columns[static_cast<size_t>(i)] * n;
    double* to = m.data() + i * size;
    for (int64_t j = 0; j <= i; ++j) to[j] = row[columns[static_cast<size_t>(j)]];
    x[static_cast<size_t>(i)] = right[columns[static_cast<size_t>(i)]];
  }
  if (size > 0) {
    if (linalg::cholesky_lower(m.data(), size) != 0) return false;
    const int k = static_cast<int>(size);
    for (const auto transposed : {CblasNoTrans, CblasTrans})
      cblas_dtrsv(CblasRowMajor, CblasLower, transposed, CblasNonUnit, k, m.data(), k, x.data(), 1);
  }
  std::fill(w, w + n, 0.0);
  for (int64_t i = 0; i < size; ++i) w[columns[static_cast<size_t>(i)]] = x[static_cast<size_t>(i)];
  return true;
}

}  // namespace

RefitResult refit(const at::Tensor& weight, const at::Tensor& second_moment, const std::vector<double>& added,
                  const at::Tensor& kept, ThreadPool* pool) {
  check(weight, second_moment, added, kept);
  const int64_t out = weight.size(0), in = weight.size(1);
  at::Tensor a = second_moment.to(at::kDouble, false, true).contiguous();
  for (int64_t j = 0; j < in && !added.empty(); ++j)
    a.data_ptr<double>()[j * in + j] += added[static_cast<size_t>(j)];
  const at::Tensor mask = kept.contiguous();
  RefitResult result{(weight.to(at::kDouble) * mask).contiguous()};
  const at::Tensor dense = weight.to(at::kDouble).contiguous();
  std::atomic<int64_t> failed{0};
  parallel_for(pool, out, [&](int64_t r, int) {
    std::vector<double> right(static_cast<size_t>(in));
    cblas_dgemv(CblasRowMajor, CblasNoTrans, static_cast<int>(in), static_cast<int>(in), 1.0,
                a.data_ptr<double>(), static_cast<int>(in), dense.data_ptr<double>() + r * in, 1, 0.0,
                right.data(), 1);
    const bool solved = solve_row(a.data_ptr<double>(), right.data(), mask.data_ptr<bool>() + r * in, in,
                                  result.weight.data_ptr<double>() + r * in);
    if (!solved) ++failed;
  });
  result.rows_as_they_were = failed;
  return result;
}

}  // namespace lcomp::sparse
