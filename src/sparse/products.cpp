#include "sparse/products.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

#include "lcomp/core/checked.h"
#include "sparse/kernels.h"
#include "sparse/tiles.h"

namespace lcomp::sparse {
namespace {

using kernels::kColumnPad;
using kernels::kInputChunk;
using kernels::kPanelTokens;

constexpr int64_t kPieceRows = 64;
/// With more of the elements than this a row is cheaper as a dense one than as a list (measured, benchmarks).
constexpr double kListDensity = 0.3;

int64_t padded_columns(int64_t in) {
  return ceil_div(in, kColumnPad) * kColumnPad;
}

kernels::Element element_of(const SparseTensors& stored) {
  const at::ScalarType type = stored.parts.at("_values").scalar_type();
  return type == at::kFloat      ? kernels::Element::kFloat
         : type == at::kBFloat16 ? kernels::Element::kBfloat16
                                 : kernels::Element::kHalf;
}

/// Some tokens of the input as the kernels read them, and where their outputs go.
struct Batch {
  int64_t tokens = 0;
  at::Tensor x;        ///< in chunks for dots, [in, width] for panels
  int64_t width = 0;   ///< of a panel
  float* y = nullptr;  ///< [tokens, out]
  int64_t out = 0;

  const float* inputs() const { return x.data_ptr<float>(); }
  /// Puts rows [first, first + rows) of the transpose [rows, width] in place.
  void take(const float* transposed, int64_t first, int64_t rows) const {
    kernels::transpose(transposed, rows, tokens, width, y + first, out);
  }
};

/// Rows of x as chunks of columns, padded with zeros (kernels.h).
at::Tensor chunks_of(const float* x, int64_t tokens, int64_t in) {
  int64_t room = 1;
  while (room < tokens) room *= 2;
  at::Tensor chunks = at::zeros({padded_columns(in) * room}, at::kFloat);
  for (int64_t t = 0; t < tokens; ++t) {
    float* to = chunks.data_ptr<float>() + t * kInputChunk;
    for (int64_t c = 0; c < in; c += kInputChunk)
      std::copy_n(x + t * in + c, std::min(kInputChunk, in - c), to + c * room);
  }
  return chunks;
}

at::Tensor panel_of(const float* x, int64_t tokens, int64_t in, int64_t width) {
  at::Tensor panel =
      tokens == width ? at::empty({in, width}, at::kFloat) : at::zeros({in, width}, at::kFloat);
  kernels::transpose(x, tokens, in, in, panel.data_ptr<float>(), width);
  return panel;
}

/// 64-byte aligned memory of a piece.
at::Tensor buffer(int64_t floats) {
  return at::empty({floats}, at::kFloat);
}

/// A format's products: `dots` for up to `dot_tokens()` tokens, `panels` for more.
struct Rows {
  const SparseTensors& stored;
  ThreadPool* pool;

  template <class Piece>
  void for_pieces(int64_t rows_of_piece, const Piece& piece) const {
    parallel_for(pool, ceil_div(stored.out, rows_of_piece), [&](int64_t i, int) {
      const int64_t first = i * rows_of_piece;
      piece(first, std::min(first + rows_of_piece, stored.out));
    });
  }
  template <class T>
  const T* part(const char* suffix) const {
    return static_cast<const T*>(stored.parts.at(suffix).data_ptr());
  }

  /// Tiles of kTileStep whole rows, decoded into memory that stays in the second-level cache, times a panel.
  template <class Expand>
  void expanded_panels(const Batch& batch, const Expand& expand) const {
    const int64_t stride = padded_columns(stored.in);
    for_pieces(kPieceRows, [&](int64_t first, int64_t last) {
      const at::Tensor tile = buffer(kernels::kTileStep * stride), y = buffer(kPieceRows * batch.width);
      for (int64_t r = first; r < last; r += kernels::kTileStep) {
        expand(r, std::min(r + kernels::kTileStep, last), stride, tile.data_ptr<float>());
        kernels::tile_times_panel(tile.data_ptr<float>(), kernels::kTileStep, stored.in, stride,
                                  batch.inputs(), batch.width,
                                  y.data_ptr<float>() + (r - first) * batch.width, false);
      }
      batch.take(y.data_ptr<float>(), first, last - first);
    });
  }
};

struct BitmaskProduct : Rows {
  bool as_lists() const {
    return static_cast<double>(stored.parts.at("_values").numel()) <=
           kListDensity * static_cast<double>(stored.out * stored.in);
  }
  /// Lists gain from every token; dots share the expansion of a mask as long as the inputs stay in the
  /// first-level cache.
  int64_t dot_tokens() const { return as_lists() || stored.in > 1024 ? 4 : 8; }

  kernels::BitmaskRows rows() const {
    return {element_of(stored),
            part<void>("_values"),
            stored.parts.at("_values").numel(),
            part<uint8_t>("_bitmask"),
            part<int64_t>("_row_offsets"),
            stored.out,
            stored.in};
  }
  void dots(const Batch& batch) const {
    for_pieces(kPieceRows, [&, w = rows()](int64_t first, int64_t last) {
      kernels::dot_bitmask(w, first, last, batch.inputs(), batch.tokens, batch.y, batch.out);
    });
  }
  void panels(const Batch& batch) const {
    const kernels::BitmaskRows w = rows();
    if (!as_lists()) {
      expanded_panels(batch, [&](int64_t first, int64_t last, int64_t stride, float* tile) {
        kernels::expand_bitmask(w, first, last, stride, tile);
      });
      return;
    }
    for_pieces(kPieceRows, [&](int64_t first, int64_t last) {
      const int64_t room = padded_columns(stored.in);
      const at::Tensor y = buffer(kPieceRows * batch.width), values = buffer(room);
      const at::Tensor columns = at::empty({room}, at::kInt);
      kernels::bitmask_times_panel(w, first, last, batch.inputs(), batch.width, y.data_ptr<float>(),
                                   values.data_ptr<float>(), columns.data_ptr<int32_t>());
      batch.take(y.data_ptr<float>(), first, last - first);
    });
  }
};

struct CsrProduct : Rows {
  int64_t dot_tokens() const { return 1; }

  kernels::CsrRows rows() const {
    return {element_of(stored), part<void>("_values"), part<int32_t>("_columns"),
            part<int32_t>("_row_offsets")};
  }
  void dots(const Batch& batch) const {
    for_pieces(kPieceRows, [&, w = rows()](int64_t first, int64_t last) {
      kernels::dot_csr(w, first, last, batch.inputs(), batch.y);
    });
  }
  void panels(const Batch& batch) const {
    for_pieces(kPieceRows, [&, w = rows()](int64_t first, int64_t last) {
      const at::Tensor y = buffer(kPieceRows * batch.width), values = buffer(stored.in);
      kernels::csr_times_panel(w, first, last, batch.inputs(), batch.width, y.data_ptr<float>(),
                               values.data_ptr<float>());
      batch.take(y.data_ptr<float>(), first, last - first);
    });
  }
};

struct TwoOfFourProduct : Rows {
  int64_t dot_tokens() const { return 8; }

  kernels::TwoOfFourRows rows() const {
    return {element_of(stored), part<void>("_values"), stored.out * stored.in / 2,
            part<int16_t>("_positions"), stored.in};
  }
  void dots(const Batch& batch) const {
    for_pieces(kPieceRows, [&, w = rows()](int64_t first, int64_t last) {
      kernels::dot_two_of_four(w, first, last, batch.inputs(), batch.tokens, batch.y, batch.out);
    });
  }
  void panels(const Batch& batch) const {
    expanded_panels(batch, [w = rows()](int64_t first, int64_t last, int64_t stride, float* tile) {
      kernels::expand_two_of_four(w, first, last, stride, tile);
    });
  }
};

/// Formats of tiles [tile_rows, 64] of stored elements: load as sparse, compute as dense (Xia et al., VLDB
/// 2024).
struct TileProduct : Rows {
  int64_t dot_tokens() const { return 1; }
  static constexpr int64_t kColumns = 64;

  /// `tile(i, room)` gives the elements of tile i of a row of tiles and its first column; `room` is memory
  /// for it.
  template <class Tile>
  void row_dots(const Batch& batch, int64_t first, int64_t last, int64_t count, const Tile& tile) const {
    const int64_t rows = last - first;
    at::Tensor sums = at::zeros({rows, 16}, at::kFloat);
    const at::Tensor room = buffer(kTileRows * kColumns / 2);
    for (int64_t i = 0; i < count; ++i) {
      const auto [elements, column] = tile(i, room.data_ptr<float>());
      kernels::add_tile_dots(element_of(stored), elements, rows, batch.inputs() + column,
                             sums.data_ptr<float>());
    }
    kernels::sum_lanes(sums.data_ptr<float>(), rows, batch.y + first);
  }

  template <class Tile>
  void row_panels(const Batch& batch, int64_t first, int64_t last, int64_t tile_rows, int64_t count,
                  const Tile& tile) const {
    at::Tensor y = at::zeros({tile_rows, batch.width}, at::kFloat);
    const at::Tensor room = buffer(kTileRows * kColumns / 2), dense = buffer(tile_rows * kColumns);
    for (int64_t i = 0; i < count; ++i) {
      const auto [elements, column] = tile(i, room.data_ptr<float>());
      kernels::widen(element_of(stored), elements, tile_rows * kColumns, dense.data_ptr<float>());
      kernels::tile_times_panel(dense.data_ptr<float>(), tile_rows, std::min(kColumns, stored.in - column),
                                kColumns, batch.inputs() + column * batch.width, batch.width,
                                y.data_ptr<float>(), true);
    }
    batch.take(y.data_ptr<float>(), first, last - first);
  }
};

struct TiledCslProduct : TileProduct {
  struct Tile {
    const void* elements;
    int64_t column;
  };

  /// Scatters the words of tile `index` into a dense tile, and has those of the next fetched while this one
  /// is multiplied: what double buffering comes to on a processor that reorders instructions anyway (a second
  /// tile to decode into gains less).
  Tile scatter(int64_t index, void* room) const {
    auto* tile = static_cast<uint16_t*>(room);
    std::fill_n(tile, kTileRows * kTileColumns, uint16_t{0});
    const auto* words = part<int32_t>("_tile_words");
    const auto* offsets = part<int32_t>("_tile_offsets");
    const auto* word = words + kWordsPerVector * int64_t{offsets[index]};
    const auto* end = words + kWordsPerVector * int64_t{offsets[index + 1]};
    for (; word < end; word += kWordsPerVector) {
      for (int64_t w = 0; w < kWordsPerVector; ++w) {
        const auto bits = static_cast<uint32_t>(word[w]);
        tile[bits >> 16] = static_cast<uint16_t>(bits);
      }
    }
    constexpr int64_t kWordsPerLine = 16;
    const auto* next_end = words + kWordsPerVector * int64_t{offsets[index + 2]};
    for (; word < next_end; word += kWordsPerLine) __builtin_prefetch(word);
    return {tile, TileGrid(stored.out, stored.in).tile(index).column};
  }
  auto tiles_of(int64_t first, int64_t count) const {
    return
        [this, begin = first / kTileRows * count](int64_t i, void* room) { return scatter(begin + i, room); };
  }

  void dots(const Batch& batch) const {
    const int64_t count = ceil_div(stored.in, kTileColumns);
    for_pieces(kTileRows, [&](int64_t first, int64_t last) {
      row_dots(batch, first, last, count, tiles_of(first, count));
    });
  }
  void panels(const Batch& batch) const {
    const int64_t count = ceil_div(stored.in, kTileColumns);
    for_pieces(kTileRows, [&](int64_t first, int64_t last) {
      row_panels(batch, first, last, kTileRows, count, tiles_of(first, count));
    });
  }
};

struct BlockedEllProduct : TileProduct {
  struct Blocks {
    const char* values;
    const int32_t* columns;
    int64_t count = 0;
    int64_t bytes;

    std::pair<const void*, int64_t> operator()(int64_t i, void*) const {
      return {values + i * bytes, columns[i] * kStoredBlockEdge};
    }
  };

  Blocks blocks_of(int64_t first) const {
    const at::Tensor& values = stored.parts.at("_values");
    const int64_t most = values.size(1), row = first / kStoredBlockEdge;
    const auto bytes = static_cast<int64_t>(values.element_size()) * kStoredBlockEdge * kStoredBlockEdge;
    Blocks blocks{part<char>("_values") + row * most * bytes, part<int32_t>("_block_columns") + row * most, 0,
                  bytes};
    while (blocks.count < most && blocks.columns[blocks.count] >= 0) ++blocks.count;
    return blocks;
  }

  void dots(const Batch& batch) const {
    for_pieces(kStoredBlockEdge, [&](int64_t first, int64_t last) {
      const Blocks blocks = blocks_of(first);
      row_dots(batch, first, last, blocks.count, blocks);
    });
  }
  void panels(const Batch& batch) const {
    for_pieces(kStoredBlockEdge, [&](int64_t first, int64_t last) {
      const Blocks blocks = blocks_of(first);
      row_panels(batch, first, last, kStoredBlockEdge, blocks.count, blocks);
    });
  }
};

/// Up to kPanelTokens tokens at a time.
template <class Product>
void multiply(const Product& product, const at::Tensor& x, at::Tensor& y) {
  const int64_t tokens = x.size(0), in = product.stored.in, out = product.stored.out;
  for (int64_t begin = 0; begin < tokens; begin += kPanelTokens) {
    const float* from = x.data_ptr<float>() + begin * in;
    Batch batch;
    batch.tokens = std::min(kPanelTokens, tokens - begin);
    batch.y = y.data_ptr<float>() + begin * out;
    batch.out = out;
    if (batch.tokens <= product.dot_tokens()) {
      batch.x = chunks_of(from, batch.tokens, in);
      product.dots(batch);
      continue;
    }
    batch.width = 8;
    while (batch.width < batch.tokens) batch.width *= 2;
    batch.x = panel_of(from, batch.tokens, in, batch.width);
    product.panels(batch);
  }
}

}  // namespace

int64_t direct_tokens(SparseFormat format) {
  return format == SparseFormat::kDense ? 0 : 128;
}

at::Tensor sparse_product(const SparseTensors& stored, SparseFormat format, const at::Tensor& x,
                          ThreadPool* pool) {
  if (format == SparseFormat::kDense)
    return at::matmul(x.to(at::kFloat), decode(stored, format).to(at::kFloat).t());
  const at::Tensor input = x.to(at::kFloat).contiguous();
  at::Tensor y = at::empty({input.size(0), stored.out}, at::kFloat);
  switch (format) {
    case SparseFormat::kBitmask:
      multiply(BitmaskProduct{{stored, pool}}, input, y);
      break;
    case SparseFormat::kCsr:
      multiply(CsrProduct{{stored, pool}}, input, y);
      break;
    case SparseFormat::kTwoOfFour:
      multiply(TwoOfFourProduct{{stored, pool}}, input, y);
      break;
    case SparseFormat::kBlockedEll:
      multiply(BlockedEllProduct{{{stored, pool}}}, input, y);
      break;
    case SparseFormat::kTiledCsl:
      multiply(TiledCslProduct{{{stored, pool}}}, input, y);
      break;
    case SparseFormat::kDense:
      break;
  }
  return y;
}

}  // namespace lcomp::sparse
