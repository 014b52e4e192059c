#pragma once

#include <cstdint>

/// Decoding of code books, single-threaded, vectorised with instructions chosen at run time.
namespace lcomp::quant::kernels {

/// Entries that a row's table must at least have: it is loaded into whole vector registers.
constexpr int64_t kTableEntries = 16;

/// One row of codes: `count` codes of `bits` bits (2-8), a bit stream of `ceil(count bits / 32)` words, least
/// significant bit first, and the row's table.
struct CodeRow {
  const int32_t* words;
  int64_t count;
  int64_t bits;
  const float* table;
};

/// out[j] = table[code j].
void decode_row(const CodeRow& row, float* out);

/// sum_j table[code j] x[j], in an order that depends on the instructions alone.
float dot_row(const CodeRow& row, const float* x);

/// sum_j a[j] x[j].
float dot(const float* a, const float* x, int64_t count);

}  // namespace lcomp::quant::kernels
