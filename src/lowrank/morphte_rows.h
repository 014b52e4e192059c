#pragma once

#include <cstdint>
#include <vector>

/// What the fit of morpheme vectors (lcomp/lowrank/morphte.h) computes of one row of the table.
namespace lcomp::lowrank {

/// Sizes of the products of a row: vectors are [rank, q], products of the first j of them [rank, q^j].
struct MorphteSizes {
  int64_t order = 0, rank = 0, q = 0;
  int64_t columns = 0;  ///< of the table, at most q^order

  int64_t vector() const { return rank * q; }
  int64_t power(int64_t j) const;
};

/// Memory of one thread.
struct MorphteScratch {
  explicit MorphteScratch(const MorphteSizes& s);

  std::vector<std::vector<float>> products;   ///< [j - 1]: of the first j vectors, j = 1 ... order - 1
  std::vector<std::vector<float>> gradients;  ///< of those
  std::vector<float> row;                     ///< [q^order]
};

/// The vectors of the morphemes of a row, [rank, q] each.
using MorphteVectors = std::vector<const float*>;

/// scratch.row = sum_r v_1 (x) ... (x) v_n.
void compose_row(const MorphteSizes& s, const MorphteVectors& vectors, MorphteScratch& scratch);

/// Composes the row and subtracts `target` [columns] from it; what is cut off becomes 0. Returns the squared
/// norm of the difference.
double row_residual(const MorphteSizes& s, const MorphteVectors& vectors, const float* target,
                    MorphteScratch& scratch);

/// The gradient of vector `j` when scratch.row is that of the row that was composed last; out: [rank, q].
void row_gradient(const MorphteSizes& s, const MorphteVectors& vectors, int64_t j, MorphteScratch& scratch,
                  float* out);

}  // namespace lcomp::lowrank
