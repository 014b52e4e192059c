#include "lowrank/morphte_rows.h"

#include <cblas.h>

#include <algorithm>

namespace lcomp::lowrank {
namespace {

/// out [rank, before, q] = left [rank, before] (x) right [rank, q].
void multiply_out(const MorphteSizes& s, int64_t before, const float* left, const float* right, float* out) {
  for (int64_t r = 0; r < s.rank; ++r) {
    for (int64_t a = 0; a < before; ++a, out += s.q) {
      const float factor = left[r * before + a];
      for (int64_t b = 0; b < s.q; ++b) out[b] = factor * right[r * s.q + b];
    }
  }
}

/// to [rank, before]: sum over b of down [rank, before, q] right [rank, q].
void gradient_of_left(const MorphteSizes& s, int64_t before, const float* down, const float* right,
                      float* to) {
  for (int64_t r = 0; r < s.rank; ++r) {
    for (int64_t a = 0; a < before; ++a, down += s.q) {
      float sum = 0;
      for (int64_t b = 0; b < s.q; ++b) sum += down[b] * right[r * s.q + b];
      to[r * before + a] = sum;
    }
  }
}

/// to [rank, q]: sum over a of down [rank, before, q] left [rank, before].
void gradient_of_right(const MorphteSizes& s, int64_t before, const float* down, const float* left,
                       float* to) {
  std::fill_n(to, s.vector(), 0.0F);
  for (int64_t r = 0; r < s.rank; ++r) {
    for (int64_t a = 0; a < before; ++a, down += s.q) {
      for (int64_t b = 0; b < s.q; ++b) to[r * s.q + b] += down[b] * left[r * before + a];
    }
  }
}

}  // namespace

int64_t MorphteSizes::power(int64_t j) const {
  int64_t result = 1;
  for (int64_t i = 0; i < j; ++i) result *= q;
  return result;
}

MorphteScratch::MorphteScratch(const MorphteSizes& s) : row(static_cast<size_t>(s.power(s.order))) {
  for (int64_t j = 1; j < s.order; ++j) {
    products.emplace_back(static_cast<size_t>(s.rank * s.power(j)));
    gradients.emplace_back(static_cast<size_t>(s.rank * s.power(j)));
  }
}

void compose_row(const MorphteSizes& s, const MorphteVectors& vectors, MorphteScratch& scratch) {
  if (s.order == 1) {
    std::fill(scratch.row.begin(), scratch.row.end(), 0.0F);
    for (int64_t i = 0; i < s.vector(); ++i) scratch.row[static_cast<size_t>(i % s.q)] += vectors[0][i];
    return;
  }
  std::copy_n(vectors[0], s.vector(), scratch.products[0].data());
  for (int64_t j = 1; j + 1 < s.order; ++j) {
    const auto k = static_cast<size_t>(j);
    multiply_out(s, s.power(j), scratch.products[k - 1].data(), vectors[k], scratch.products[k].data());
  }
  const int rest = static_cast<int>(s.power(s.order - 1)), q = static_cast<int>(s.q);
  cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, rest, q, static_cast<int>(s.rank), 1,
              scratch.products.back().data(), rest, vectors.back(), q, 0, scratch.row.data(), q);
}

double row_residual(const MorphteSizes& s, const MorphteVectors& vectors, const float* target,
                    MorphteScratch& scratch) {
  compose_row(s, vectors, scratch);
  double sum = 0;
  for (int64_t i = 0; i < s.columns; ++i) {
    float& value = scratch.row[static_cast<size_t>(i)];
    value -= target[i];
    sum += static_cast<double>(value) * static_cast<double>(value);
  }
  std::fill(scratch.row.begin() + s.columns, scratch.row.end(), 0.0F);
  return sum;
}

void row_gradient(const MorphteSizes& s, const MorphteVectors& vectors, int64_t j, MorphteScratch& scratch,
                  float* out) {
  if (s.order == 1) {
    for (int64_t i = 0; i < s.vector(); ++i) out[i] = scratch.row[static_cast<size_t>(i % s.q)];
    return;
  }
  const int rest = static_cast<int>(s.power(s.order - 1)), q = static_cast<int>(s.q);
  const int rank = static_cast<int>(s.rank);
  const float* g = scratch.row.data();
  if (j == s.order - 1) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rank, q, rest, 1, scratch.products.back().data(),
                rest, g, q, 0, out, q);
    return;
  }
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rank, rest, q, 1, vectors.back(), q, g, q, 0,
              scratch.gradients.back().data(), rest);
  // From the products of the first n - 1 vectors down to those that end with vector j.
  for (int64_t k = s.order - 2; k > j; --k) {
    const auto i = static_cast<size_t>(k);
    gradient_of_left(s, s.power(k), scratch.gradients[i].data(), vectors[i], scratch.gradients[i - 1].data());
  }
  const float* down = scratch.gradients[static_cast<size_t>(j)].data();
  if (j == 0)
    std::copy_n(down, s.vector(), out);
  else
    gradient_of_right(s, s.power(j), down, scratch.products[static_cast<size_t>(j - 1)].data(), out);
}

}  // namespace lcomp::lowrank
