// Blocked Cholesky factorisation and triangular inverse over a thread pool.
//
// Every tile is computed by single-threaded kernels with sizes that depend on n alone, so the result is the
// same at any number of threads.
#include <cblas.h>

#include <algorithm>

#include "lcomp/linalg/cholesky.h"

extern "C" {
void dpotrf_(const char* uplo, const int* n, double* a, const int* lda, int* info);
void dtrtri_(const char* uplo, const char* diag, const int* n, double* a, const int* lda, int* info);
}

namespace lcomp::linalg {
namespace {

/// Columns of a step; rows of a tile of the trailing update.
constexpr int64_t kStep = 128;
constexpr int64_t kTile = 256;

int64_t tiles(int64_t count) {
  return (count + kTile - 1) / kTile;
}

// LAPACK is column-major: a row-major lower triangle is its upper triangle.

int factor_block(double* a, int64_t size, int64_t n) {
  const int order = static_cast<int>(size), stride = static_cast<int>(n);
  int info = 0;
  dpotrf_("U", &order, a, &stride, &info);
  return info;
}

void invert_block(double* l, int64_t size, int64_t n) {
  const int order = static_cast<int>(size), stride = static_cast<int>(n);
  int info = 0;
  dtrtri_("U", "N", &order, l, &stride, &info);
}

}  // namespace

//      k0  k1
//     +---+
//  k0 |L11|          L11 L11^T = A11
//     +---+---+      L21 = A21 L11^-T       (rows in tiles)
//  k1 |L21|A22|      A22 -= L21 L21^T       (tiles on and below the diagonal)
//     +---+---+
int64_t cholesky_lower(double* a, int64_t n, ThreadPool* pool) {
  for (int64_t k0 = 0; k0 < n; k0 += kStep) {
    const int64_t k1 = std::min(k0 + kStep, n), width = k1 - k0, rest = n - k1, count = tiles(rest);
    double* diagonal = a + k0 * n + k0;
    if (const int info = factor_block(diagonal, width, n); info != 0) return k0 + info;

    parallel_for(pool, count, [&](int64_t t, int) {
      const int64_t row = k1 + t * kTile, rows = std::min(kTile, n - row);
      cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, static_cast<int>(rows),
                  static_cast<int>(width), 1.0, diagonal, static_cast<int>(n), a + row * n + k0,
                  static_cast<int>(n));
    });
    parallel_for(pool, count * (count + 1) / 2, [&](int64_t pair, int) {
      int64_t t = 0;
      while ((t + 1) * (t + 2) / 2 <= pair) ++t;
      const int64_t row = k1 + t * kTile, column = k1 + (pair - t * (t + 1) / 2) * kTile;
      const int rows = static_cast<int>(std::min(kTile, n - row)),
                columns = static_cast<int>(std::min(kTile, n - column));
      const double* left = a + row * n + k0;
      double* target = a + row * n + column;
      if (row == column) {
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, rows, static_cast<int>(width), -1.0, left,
                    static_cast<int>(n), 1.0, target, static_cast<int>(n));
      } else {
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, columns, static_cast<int>(width), -1.0,
                    left, static_cast<int>(n), a + column * n + k0, static_cast<int>(n), 1.0, target,
                    static_cast<int>(n));
      }
    });
  }
  return 0;
}

// From the last block column to the first, with M = L22^-1 already in place:
//     |L11   |^-1    |L11^-1             |
//     |L21 L22|    = |-M L21 L11^-1   M  |      columns of L21 in strips, each strip on its own
void invert_lower(double* l, int64_t n, ThreadPool* pool) {
  constexpr int64_t kStrip = 32;
  for (int64_t k0 = (n - 1) / kStep * kStep; k0 >= 0; k0 -= kStep) {
    const int64_t k1 = std::min(k0 + kStep, n), width = k1 - k0, rest = n - k1;
    double* diagonal = l + k0 * n + k0;
    double* below = l + k1 * n + k0;
    if (rest > 0) {
      parallel_for(pool, (width + kStrip - 1) / kStrip, [&](int64_t s, int) {
        const int columns = static_cast<int>(std::min(kStrip, width - s * kStrip));
        cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, static_cast<int>(rest),
                    columns, -1.0, l + k1 * n + k1, static_cast<int>(n), below + s * kStrip,
                    static_cast<int>(n));
      });
      parallel_for(pool, tiles(rest), [&](int64_t t, int) {
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit,
                    static_cast<int>(std::min(kTile, rest - t * kTile)), static_cast<int>(width), 1.0,
                    diagonal, static_cast<int>(n), below + t * kTile * n, static_cast<int>(n));
      });
    }
    invert_block(diagonal, width, n);
  }
}

}  // namespace lcomp::linalg
