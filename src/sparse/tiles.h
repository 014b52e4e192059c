#pragma once

#include <cstdint>

#include "lcomp/core/checked.h"

/// The tiles of Flash-LLM's format (Xia et al., VLDB 2024): 128 x 64 elements, row after row of tiles.
namespace lcomp::sparse {

inline constexpr int64_t kTileRows = 128;
inline constexpr int64_t kTileColumns = 64;
/// A tile's words fill whole vectors of 128 bits.
inline constexpr int64_t kWordsPerVector = 4;

/// The first row and column of a tile.
struct Tile {
  int64_t row;
  int64_t column;
};

class TileGrid {
 public:
  TileGrid(int64_t out, int64_t in) : rows_(ceil_div(out, kTileRows)), columns_(ceil_div(in, kTileColumns)) {}

  int64_t count() const { return rows_ * columns_; }
  Tile tile(int64_t index) const { return {index / columns_ * kTileRows, index % columns_ * kTileColumns}; }

 private:
  int64_t rows_;
  int64_t columns_;
};

}  // namespace lcomp::sparse
