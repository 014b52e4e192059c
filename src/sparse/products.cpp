#include "sparse/products.h"

#include <ATen/ATen.h>

#include <bit>
#include <vector>

#include "lcomp/core/checked.h"
#include "quant/codebook_kernels.h"
#include "sparse/tiles.h"

namespace lcomp::sparse {
namespace {

/// Decodes row after row into a buffer that stays in the cache and multiplies it with all tokens.
template <class DecodeRow>
void by_rows(const SparseTensors& stored, const float* x, int64_t tokens, float* y, DecodeRow decode_row) {
  std::vector<float> row(static_cast<size_t>(stored.in));
  for (int64_t r = 0; r < stored.out; ++r) {
    std::fill(row.begin(), row.end(), 0.0F);
    decode_row(r, row.data());
    for (int64_t t = 0; t < tokens; ++t)
      y[t * stored.out + r] = quant::kernels::dot(row.data(), x + t * stored.in, stored.in);
  }
}

/// 16 bits of bfloat16 or float16 as float32.
float widen(uint16_t bits, bool bfloat16) {
  if (bfloat16) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  return static_cast<float>(c10::Half(bits, c10::Half::from_bits()));
}

/// A value of the stored type as float32.
class Values {
 public:
  explicit Values(const at::Tensor& values) : type_(values.scalar_type()), data_(values.data_ptr()) {}

  float operator[](int64_t i) const {
    if (type_ == at::kFloat) return static_cast<const float*>(data_)[i];
    return widen(static_cast<const uint16_t*>(data_)[i], type_ == at::kBFloat16);
  }

 private:
  at::ScalarType type_;
  const void* data_;
};

void bitmask_product(const SparseTensors& stored, const float* x, int64_t tokens, float* y) {
  const Values values(stored.parts.at("_values"));
  const auto* mask = stored.parts.at("_bitmask").data_ptr<uint8_t>();
  const auto* offsets = stored.parts.at("_row_offsets").data_ptr<int64_t>();
  const int64_t width = ceil_div(stored.in, 8);
  by_rows(stored, x, tokens, y, [&](int64_t r, float* row) {
    int64_t next = offsets[r];
    for (int64_t b = 0; b < width; ++b) {
      for (auto bits = static_cast<uint32_t>(mask[r * width + b]); bits != 0; bits &= bits - 1)
        row[8 * b + std::countr_zero(bits)] = values[next++];
    }
  });
}

void csr_product(const SparseTensors& stored, const float* x, int64_t tokens, float* y) {
  const Values values(stored.parts.at("_values"));
  const auto* columns = stored.parts.at("_columns").data_ptr<int32_t>();
  const auto* offsets = stored.parts.at("_row_offsets").data_ptr<int32_t>();
  for (int64_t r = 0; r < stored.out; ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      const float* one = x + t * stored.in;
      float sum = 0;
      for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e) sum += values[e] * one[columns[e]];
      y[t * stored.out + r] = sum;
    }
  }
}

void two_of_four_product(const SparseTensors& stored, const float* x, int64_t tokens, float* y) {
  const at::Tensor& tensor = stored.parts.at("_values");
  const Values values(tensor);
  const auto* positions = stored.parts.at("_positions").data_ptr<int16_t>();
  const int64_t words = stored.parts.at("_positions").size(1), half = stored.in / 2;
  by_rows(stored, x, tokens, y, [&](int64_t r, float* row) {
    for (int64_t q = 0; q < stored.in / 4; ++q) {
      const int nibble = static_cast<uint16_t>(positions[r * words + q / 4]) >> (4 * (q % 4));
      row[4 * q + (nibble & 3)] = values[r * half + 2 * q];
      row[4 * q + ((nibble >> 2) & 3)] = values[r * half + 2 * q + 1];
    }
  });
}

void blocks_product(const SparseTensors& stored, const float* x, int64_t tokens, float* y) {
  const Values values(stored.parts.at("_values"));
  const at::Tensor& columns = stored.parts.at("_block_columns");
  const int64_t rows = columns.size(0), count = columns.size(1);
  std::vector<float> row(kStoredBlockEdge);
  std::fill(y, y + tokens * stored.out, 0.0F);
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t column = columns.data_ptr<int32_t>()[b * count + k];
      if (column < 0) break;
      const int64_t first = column * kStoredBlockEdge, width = std::min(kStoredBlockEdge, stored.in - first);
      for (int64_t r = 0; r < std::min(kStoredBlockEdge, stored.out - b * kStoredBlockEdge); ++r) {
        const int64_t from = ((b * count + k) * kStoredBlockEdge + r) * kStoredBlockEdge;
        for (int64_t c = 0; c < width; ++c) row[static_cast<size_t>(c)] = values[from + c];
        for (int64_t t = 0; t < tokens; ++t)
          y[t * stored.out + b * kStoredBlockEdge + r] +=
              quant::kernels::dot(row.data(), x + t * stored.in + first, width);
      }
    }
  }
}

/// Load as sparse, compute as dense: a tile's words are scattered into a dense tile of float32 (32 KB), which
/// stays in the first-level cache while all tokens pass it. For one token the words are multiplied as they
/// come.
void tiles_product(const SparseTensors& stored, const float* x, int64_t tokens, float* y) {
  const bool bfloat16 = stored.parts.at("_values").scalar_type() == at::kBFloat16;
  const TileGrid grid(stored.out, stored.in);
  const auto* words = stored.parts.at("_tile_words").data_ptr<int32_t>();
  const auto* offsets = stored.parts.at("_tile_offsets").data_ptr<int32_t>();
  std::vector<float> tile_values(static_cast<size_t>(tokens > 1 ? kTileRows * kTileColumns : 0));
  std::fill(y, y + tokens * stored.out, 0.0F);
  for (int64_t t = 0; t < grid.count(); ++t) {
    const Tile tile = grid.tile(t);
    const int64_t rows = std::min(kTileRows, stored.out - tile.row);
    const int64_t columns = std::min(kTileColumns, stored.in - tile.column);
    const int64_t first = kWordsPerVector * offsets[t], last = kWordsPerVector * offsets[t + 1];
    if (tokens > 1) std::fill(tile_values.begin(), tile_values.end(), 0.0F);
    for (int64_t w = first; w < last; ++w) {
      const auto word = static_cast<uint32_t>(words[w]);
      const int64_t place = word >> 16, r = place / kTileColumns, c = place % kTileColumns;
      if (r >= rows || c >= columns) continue;  // padding
      const float value = widen(static_cast<uint16_t>(word), bfloat16);
      if (tokens > 1) {
        tile_values[static_cast<size_t>(place)] = value;
      } else {
        y[tile.row + r] += value * x[tile.column + c];
      }
    }
    if (tokens == 1) continue;
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = tile_values.data() + r * kTileColumns;
      for (int64_t token = 0; token < tokens; ++token)
        y[token * stored.out + tile.row + r] +=
            quant::kernels::dot(row, x + token * stored.in + tile.column, columns);
    }
  }
}

}  // namespace

int64_t direct_tokens(SparseFormat format) {
  return format == SparseFormat::kDense ? 0 : format == SparseFormat::kCsr ? 4 : 16;
}

at::Tensor sparse_product(const SparseTensors& stored, SparseFormat format, const at::Tensor& x) {
  const at::Tensor input = x.to(at::kFloat).contiguous();
  const int64_t tokens = input.size(0);
  at::Tensor out = at::empty({tokens, stored.out}, at::kFloat);
  const float* from = input.data_ptr<float>();
  float* to = out.data_ptr<float>();
  switch (format) {
    case SparseFormat::kBitmask:
      bitmask_product(stored, from, tokens, to);
      break;
    case SparseFormat::kCsr:
      csr_product(stored, from, tokens, to);
      break;
    case SparseFormat::kTwoOfFour:
      two_of_four_product(stored, from, tokens, to);
      break;
    case SparseFormat::kBlockedEll:
      blocks_product(stored, from, tokens, to);
      break;
    case SparseFormat::kTiledCsl:
      tiles_product(stored, from, tokens, to);
      break;
    case SparseFormat::kDense:
      return at::matmul(input, decode(stored, format).to(at::kFloat).t());
  }
  return out;
}

}  // namespace lcomp::sparse
