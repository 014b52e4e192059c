#include "lcomp/linalg/svd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "core/one_thread.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/rng.h"

// LAPACK is column-major: a row-major matrix is its transpose there.
extern "C" {
void dsyevr_(const char* jobz, const char* range, const char* uplo, const int* n, double* a, const int* lda,
             const double* vl, const double* vu, const int* il, const int* iu, const double* abstol, int* m,
             double* w, double* z, const int* ldz, int* isuppz, double* work, const int* lwork, int* iwork,
             const int* liwork, int* info);
void dgesdd_(const char* jobz, const int* m, const int* n, double* a, const int* lda, double* s, double* u,
             const int* ldu, double* vt, const int* ldvt, double* work, const int* lwork, int* iwork,
             int* info);
void dgelqf_(const int* m, const int* n, double* a, const int* lda, double* tau, double* work,
             const int* lwork, int* info);
void dorglq_(const int* m, const int* n, const int* k, double* a, const int* lda, const double* tau,
             double* work, const int* lwork, int* info);
void dgeqp3_(const int* m, const int* n, double* a, const int* lda, int* jpvt, double* tau, double* work,
             const int* lwork, int* info);
}

namespace lcomp::linalg {
namespace {

/// A row is dependent on others when what is left of it is below this share of the largest.
constexpr double kDependent = 1e-12;

at::Tensor checked_copy(const at::Tensor& matrix, const char* what) {
  const bool fits = matrix.dim() == 2 && matrix.numel() > 0 &&
                    (matrix.scalar_type() == at::kFloat || matrix.scalar_type() == at::kDouble);
  if (!fits) {
    throw InvalidArgument(
        what, fmt::format("the matrix must be two-dimensional, not empty, and of float32 or float64; it has "
                          "{} dimensions, {} elements and is {}",
                          matrix.dim(), matrix.numel(), dtype_name(matrix.scalar_type())));
  }
  at::Tensor copy = matrix.to(at::kDouble).contiguous();
  if (copy.data_ptr() == matrix.data_ptr()) copy = copy.clone();
  if (!at::isfinite(copy).all().item<bool>())
    throw NumericalError(what, "all elements of the matrix must be finite; some are not");
  return copy;
}

int64_t checked_count(int64_t count, int64_t most, const char* what) {
  if (count == -1) return most;
  if (count < 1 || count > most)
    throw InvalidArgument(what, fmt::format("the count must lie in [1, {}]; it is {}", most, count));
  return count;
}

void check_converged(int info, const char* what) {
  if (info != 0)
    throw NumericalError(what, fmt::format("the iteration must converge; LAPACK gave up with {}", info));
}

std::vector<double> workspace(double wanted) {
  return std::vector<double>(static_cast<size_t>(std::max(wanted, 1.0)));
}

/// -1 for rows of `vectors` [count, n] whose largest element is negative, else 1.
at::Tensor signs_of_rows(const at::Tensor& vectors) {
  const at::Tensor largest = vectors.abs().argmax(1, true);
  return at::where(vectors.gather(1, largest) < 0, at::scalar_tensor(-1.0, at::kDouble),
                   at::scalar_tensor(1.0, at::kDouble));
}

double squared_norm(const at::Tensor& matrix) {
  return matrix.square().sum().item<double>();
}

double sum_of_squares(const std::vector<double>& values, size_t first) {
  double sum = 0;
  for (size_t i = values.size(); i > first; --i) sum += values[i - 1] * values[i - 1];
  return sum;
}

Svd exact(at::Tensor a, int64_t count) {
  const int64_t m = a.size(0), n = a.size(1), all = std::min(m, n);
  Svd result;
  result.values.resize(static_cast<size_t>(all));
  result.right = at::empty({all, n}, at::kDouble);
  result.left = at::empty({m, all}, at::kDouble);
  const int rows = static_cast<int>(n), columns = static_cast<int>(m), least = static_cast<int>(all);
  int info = 0, query = -1;
  double wanted = 0;
  std::vector<int> integers(static_cast<size_t>(8 * all));
  const auto call = [&](double* work, const int* size) {
    dgesdd_("S", &rows, &columns, a.data_ptr<double>(), &rows, result.values.data(),
            result.right.data_ptr<double>(), &rows, result.left.data_ptr<double>(), &least, work, size,
            integers.data(), &info);
  };
  on_one_blas_thread([&] {
    call(&wanted, &query);
    std::vector<double> work = workspace(wanted);
    const int size = static_cast<int>(work.size());
    call(work.data(), &size);
  });
  check_converged(info, "truncated_svd");
  result.tail = sum_of_squares(result.values, static_cast<size_t>(count));
  result.values.resize(static_cast<size_t>(count));
  const at::Tensor signs = signs_of_rows(result.right.narrow(0, 0, count));
  result.right = result.right.narrow(0, 0, count) * signs;
  result.left = result.left.narrow(1, 0, count) * signs.t();
  return result;
}

/// Divides the rows of `vectors` by `values`; a value of 0 leaves a row of zeros.
at::Tensor divided_rows(const at::Tensor& vectors, const std::vector<double>& values) {
  const at::Tensor v = at::tensor(values, at::kDouble).unsqueeze(1);
  return at::where(v > 0, vectors / v, at::zeros_like(vectors));
}

Svd by_gram(const at::Tensor& a, int64_t count) {
  const bool wide = a.size(0) <= a.size(1);
  at::Tensor gram;
  on_one_blas_thread([&] { gram = wide ? a.mm(a.t()) : a.t().mm(a); });
  Eigen eigen = largest_eigen(gram, count);
  Svd result;
  for (const double value : eigen.values) result.values.push_back(std::sqrt(std::max(value, 0.0)));
  on_one_blas_thread([&] {
    if (wide) {
      result.left = eigen.vectors.t().contiguous();
      result.right = divided_rows(eigen.vectors.mm(a), result.values);
    } else {
      result.right = eigen.vectors;
      result.left = divided_rows(eigen.vectors.mm(a.t()), result.values).t().contiguous();
    }
  });
  result.tail = std::max(0.0, squared_norm(a) - sum_of_squares(result.values, 0));
  return result;
}

Svd randomized(const at::Tensor& a, int64_t count, const RandomizedOptions& options) {
  if (options.oversampling < 0 || options.power < 0) {
    throw InvalidArgument("truncated_svd",
                          fmt::format("oversampling and power must not be negative; they are {} and {}",
                                      options.oversampling, options.power));
  }
  const int64_t width = std::min(count + options.oversampling, std::min(a.size(0), a.size(1)));
  Rng rng(options.seed, "randomized svd");
  at::Tensor start = at::empty({a.size(1), width}, at::kDouble);
  for (int64_t i = 0; i < start.numel(); ++i) start.data_ptr<double>()[i] = rng.normal();
  Svd small;
  at::Tensor basis;
  on_one_blas_thread([&] {
    basis = orthonormal_columns(a.mm(start));
    for (int64_t q = 0; q < options.power; ++q)
      basis = orthonormal_columns(a.mm(orthonormal_columns(a.t().mm(basis))));
    small = exact(basis.t().mm(a).contiguous(), std::min(count, width));
    small.left = basis.mm(small.left);
  });
  small.tail = std::max(0.0, squared_norm(a) - sum_of_squares(small.values, 0));
  return small;
}

}  // namespace

Eigen largest_eigen(const at::Tensor& matrix, int64_t count) {
  at::Tensor a = checked_copy(matrix, "largest_eigen");
  if (a.size(0) != a.size(1)) {
    throw InvalidArgument("largest_eigen",
                          fmt::format("the matrix must be square; it is [{}, {}]", a.size(0), a.size(1)));
  }
  count = checked_count(count, a.size(0), "largest_eigen");
  const int n = static_cast<int>(a.size(0)), first = n - static_cast<int>(count) + 1;
  const double unused = 0, tolerance = 0;
  int found = 0, info = 0, integer_query = 0;
  const int query = -1;
  double query_size = 0;
  std::vector<double> values(static_cast<size_t>(n));
  std::vector<int> support(static_cast<size_t>(2 * n));
  at::Tensor vectors = at::empty({count, a.size(0)}, at::kDouble);
  const auto call = [&](double* work, const int* size, int* integers, const int* integer_size) {
    dsyevr_("V", count == n ? "A" : "I", "U", &n, a.data_ptr<double>(), &n, &unused, &unused, &first, &n,
            &tolerance, &found, values.data(), vectors.data_ptr<double>(), &n, support.data(), work, size,
            integers, integer_size, &info);
  };
  on_one_blas_thread([&] {
    call(&query_size, &query, &integer_query, &query);
    std::vector<double> work = workspace(query_size);
    std::vector<int> integers(static_cast<size_t>(std::max(integer_query, 1)));
    const int size = static_cast<int>(work.size()), integer_size = static_cast<int>(integers.size());
    call(work.data(), &size, integers.data(), &integer_size);
  });
  check_converged(info, "largest_eigen");
  if (found != count)
    throw NumericalError("largest_eigen", fmt::format("{} eigenvalues must be found; {} were", count, found));
  Eigen result;
  result.values.assign(values.rend() - count, values.rend());  // LAPACK's ascend
  result.vectors = vectors.flip(0);
  result.vectors = result.vectors * signs_of_rows(result.vectors);
  return result;
}

at::Tensor Svd::product() const {
  at::Tensor out;
  on_one_blas_thread([&] { out = (left * at::tensor(values, at::kDouble)).mm(right); });
  return out;
}

Svd truncated_svd(const at::Tensor& matrix, int64_t count, SvdSolver solver,
                  const RandomizedOptions& options) {
  at::Tensor a = checked_copy(matrix, "truncated_svd");
  count = checked_count(count, std::min(a.size(0), a.size(1)), "truncated_svd");
  switch (solver) {
    case SvdSolver::kExact:
      break;
    case SvdSolver::kGram:
      return by_gram(a, count);
    case SvdSolver::kRandomized:
      return randomized(a, count, options);
  }
  return exact(std::move(a), count);
}

at::Tensor orthonormal_columns(const at::Tensor& matrix) {
  // The columns of A are the rows of what LAPACK sees: A^T = L Q there, with orthonormal rows of Q.
  at::Tensor a = checked_copy(matrix, "orthonormal_columns");
  const int64_t least = std::min(a.size(0), a.size(1));
  const int rows = static_cast<int>(a.size(1)), columns = static_cast<int>(a.size(0));
  const int rank = static_cast<int>(least), query = -1;
  std::vector<double> tau(static_cast<size_t>(least));
  int info = 0;
  double factor_size = 0, form_size = 0;
  const auto factor = [&](double* work, const int* size) {
    dgelqf_(&rows, &columns, a.data_ptr<double>(), &rows, tau.data(), work, size, &info);
  };
  const auto form = [&](double* work, const int* size) {
    dorglq_(&rank, &columns, &rank, a.data_ptr<double>(), &rows, tau.data(), work, size, &info);
  };
  on_one_blas_thread([&] {
    factor(&factor_size, &query);
    form(&form_size, &query);
    std::vector<double> work = workspace(std::max(factor_size, form_size));
    const int size = static_cast<int>(work.size());
    factor(work.data(), &size);
    form(work.data(), &size);
  });
  check_converged(info, "orthonormal_columns");
  return a.narrow(1, 0, least).contiguous();
}

PivotRows pivot_rows(const at::Tensor& matrix) {
  at::Tensor a = checked_copy(matrix, "pivot_rows");
  const int rows = static_cast<int>(a.size(1)), columns = static_cast<int>(a.size(0)), query = -1;
  std::vector<int> order(static_cast<size_t>(columns), 0);
  std::vector<double> tau(static_cast<size_t>(std::min(rows, columns)));
  int info = 0;
  double wanted = 0;
  const auto call = [&](double* work, const int* size) {
    dgeqp3_(&rows, &columns, a.data_ptr<double>(), &rows, order.data(), tau.data(), work, size, &info);
  };
  on_one_blas_thread([&] {
    call(&wanted, &query);
    std::vector<double> work = workspace(wanted);
    const int size = static_cast<int>(work.size());
    call(work.data(), &size);
  });
  check_converged(info, "pivot_rows");
  PivotRows result;
  result.order.reserve(order.size());
  for (const int column : order) result.order.push_back(column - 1);
  const auto diagonal = [&](int64_t i) { return std::abs(a.data_ptr<double>()[i * (rows + 1)]); };
  while (result.rank < std::min(rows, columns) && diagonal(result.rank) > kDependent * diagonal(0))
    ++result.rank;
  return result;
}

}  // namespace lcomp::linalg
