#pragma once

#include <cstdint>

/// Products of stored rows, single-threaded, vectorised with instructions chosen at run time; see
/// products.cpp for which of them runs when. Sums are float32, in an order that depends on the processor's
/// instructions only.
///
/// "x" is row-major [tokens, stride] with zeros behind its columns up to a multiple of kColumnPad. A "panel"
/// is the transpose of up to kPanelTokens rows of it, [in, width], width 8, 16, 32 or 64: one vector of
/// tokens for each column.
namespace lcomp::sparse::kernels {

inline constexpr int64_t kColumnPad = 64;
inline constexpr int64_t kInputChunk = 16;
inline constexpr int64_t kPanelTokens = 64;
/// Rows that `tile_times_panel` takes at a time.
inline constexpr int64_t kTileStep = 8;

enum class Element { kFloat, kBfloat16, kHalf };

struct BitmaskRows {
  Element element;
  const void* values;
  int64_t count;  ///< of all values
  const uint8_t* mask;
  const int64_t* offsets;
  int64_t out;
  int64_t in;
};

struct CsrRows {
  Element element;
  const void* values;
  const int32_t* columns;
  const int32_t* offsets;
};

struct TwoOfFourRows {
  Element element;
  const void* values;
  int64_t count;  ///< of all values
  const int16_t* positions;
  int64_t in;
};

/// y[t * y_stride + r] of rows [first, last) for up to 8 tokens; x has the next power of two of them.
void dot_bitmask(const BitmaskRows& w, int64_t first, int64_t last, const float* x, int64_t tokens, float* y,
                 int64_t y_stride);
void dot_two_of_four(const TwoOfFourRows& w, int64_t first, int64_t last, const float* x, int64_t tokens,
                     float* y, int64_t y_stride);
/// One token.
void dot_csr(const CsrRows& w, int64_t first, int64_t last, const float* x, float* y);

/// y [last - first, width] of rows [first, last): a vector of tokens for each stored element. `scratch` has
/// room for in + 16 columns and as many values.
void csr_times_panel(const CsrRows& w, int64_t first, int64_t last, const float* panel, int64_t width,
                     float* y, float* scratch);
void bitmask_times_panel(const BitmaskRows& w, int64_t first, int64_t last, const float* panel, int64_t width,
                         float* y, float* scratch, int32_t* columns);

/// Rows [first, last) as float32 [last - first, stride], stride `in` up to a multiple of kColumnPad.
void expand_bitmask(const BitmaskRows& w, int64_t first, int64_t last, int64_t stride, float* tile);
void expand_two_of_four(const TwoOfFourRows& w, int64_t first, int64_t last, int64_t stride, float* tile);
void widen(Element element, const void* from, int64_t count, float* to);

/// y [rows, width] (+)= tile [rows, stride] panel, over `columns` columns; rows a multiple of kTileStep.
void tile_times_panel(const float* tile, int64_t rows, int64_t columns, int64_t stride, const float* panel,
                      int64_t width, float* y, bool accumulate);

/// One token and a tile [rows, 64] of stored elements: sums [rows, 16] += products by lanes; y[r] = their
/// sum.
void add_tile_dots(Element element, const void* tile, int64_t rows, const float* x, float* sums);
void sum_lanes(const float* sums, int64_t rows, float* y);

/// to[j * to_stride + i] = from[i * from_stride + j].
void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to,
               int64_t to_stride);

}  // namespace lcomp::sparse::kernels
