#include "lcomp/sparse/formats.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "sparse/tiles.h"

namespace lcomp::sparse {
namespace {

constexpr const char* kValues = "_values";
constexpr const char* kShape = "_shape";
constexpr const char* kBits = "_bitmask";
constexpr const char* kRowOffsets = "_row_offsets";
constexpr const char* kColumns = "_columns";
constexpr const char* kPositions = "_positions";
constexpr const char* kBlockColumns = "_block_columns";
constexpr const char* kWords = "_tile_words";
constexpr const char* kTileOffsets = "_tile_offsets";

bool is_stored_type(at::ScalarType type) {
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

int64_t mask_bytes(int64_t in) {
  return ceil_div(in, 8);
}

/// Words of positions of a row: four quadruples each.
int64_t position_words(int64_t in) {
  return ceil_div(in / 4, 4);
}

/// The elements of a 16- or 32-bit type as bits.
template <class Bits>
const Bits* bits_of(const at::Tensor& tensor) {
  return static_cast<const Bits*>(tensor.data_ptr());
}

/// Calls body(Bits{}) with the unsigned integer of the tensor's element size.
template <class Body>
auto with_bits(at::ScalarType type, Body body) {
  return type == at::kFloat ? body(uint32_t{}) : body(uint16_t{});
}

/// Whether an element is +-0: all bits but the sign.
template <class Bits>
bool is_zero(Bits value) {
  return static_cast<Bits>(value << 1) == 0;
}

at::Tensor shape_tensor(int64_t out, int64_t in) {
  return at::tensor(std::vector<int64_t>{out, in}, at::kLong);
}

/// The elements in a tensor of the matrix's type.
template <class Bits>
at::Tensor tensor_of(const std::vector<Bits>& elements, const at::Tensor& matrix) {
  at::Tensor tensor = at::empty({static_cast<int64_t>(elements.size())}, matrix.options());
  std::copy(elements.begin(), elements.end(), static_cast<Bits*>(tensor.data_ptr()));
  return tensor;
}

template <class Bits>
void encode_bitmask(const at::Tensor& matrix, SparseTensors& stored) {
  const int64_t out = stored.out, in = stored.in, width = mask_bytes(in);
  at::Tensor mask = at::zeros({out, width}, at::kByte), offsets = at::empty({out}, at::kLong);
  std::vector<Bits> values;
  const Bits* from = bits_of<Bits>(matrix);
  for (int64_t r = 0; r < out; ++r) {
    offsets.data_ptr<int64_t>()[r] = static_cast<int64_t>(values.size());
    uint8_t* bits = mask.data_ptr<uint8_t>() + r * width;
    for (int64_t j = 0; j < in; ++j) {
      const Bits value = from[r * in + j];
      if (is_zero(value)) continue;
      bits[j / 8] = static_cast<uint8_t>(bits[j / 8] | (1U << (j % 8)));
      values.push_back(value);
    }
  }
  stored.parts = {{kValues, tensor_of(values, matrix)}, {kBits, mask}, {kRowOffsets, offsets}};
}

template <class Bits>
void decode_bitmask(const SparseTensors& stored, at::Tensor& matrix) {
  const int64_t in = stored.in, width = mask_bytes(in);
  const Bits* value = bits_of<Bits>(stored.parts.at(kValues));
  const uint8_t* mask = stored.parts.at(kBits).data_ptr<uint8_t>();
  Bits* to = static_cast<Bits*>(matrix.data_ptr());
  for (int64_t r = 0; r < stored.out; ++r) {
    for (int64_t b = 0; b < width; ++b) {
      for (auto bits = static_cast<uint32_t>(mask[r * width + b]); bits != 0; bits &= bits - 1)
        to[r * in + 8 * b + std::countr_zero(bits)] = *value++;
    }
  }
}

template <class Bits>
void encode_csr(const at::Tensor& matrix, SparseTensors& stored) {
  const int64_t out = stored.out, in = stored.in;
  at::Tensor offsets = at::empty({out + 1}, at::kInt);
  std::vector<Bits> values;
  std::vector<int32_t> columns;
  const Bits* from = bits_of<Bits>(matrix);
  for (int64_t r = 0; r < out; ++r) {
    offsets.data_ptr<int32_t>()[r] = static_cast<int32_t>(values.size());
    for (int64_t j = 0; j < in; ++j) {
      if (is_zero(from[r * in + j])) continue;
      values.push_back(from[r * in + j]);
      columns.push_back(static_cast<int32_t>(j));
    }
  }
  offsets.data_ptr<int32_t>()[out] = static_cast<int32_t>(values.size());
  stored.parts = {{kValues, tensor_of(values, matrix)},
                  {kColumns, at::tensor(columns, at::kInt)},
                  {kRowOffsets, offsets}};
}

template <class Bits>
void decode_csr(const SparseTensors& stored, at::Tensor& matrix) {
  const Bits* values = bits_of<Bits>(stored.parts.at(kValues));
  const int32_t* columns = stored.parts.at(kColumns).data_ptr<int32_t>();
  const int32_t* offsets = stored.parts.at(kRowOffsets).data_ptr<int32_t>();
  Bits* to = static_cast<Bits*>(matrix.data_ptr());
  for (int64_t r = 0; r < stored.out; ++r) {
    for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e) to[r * stored.in + columns[e]] = values[e];
  }
}

/// Columns of the two kept elements of four. Fewer than two: others fill up, so that two ascend.
template <class Bits>
std::array<int, 2> kept_positions(const Bits* four) {
  std::array<int, 2> kept{};
  int count = 0;
  for (int j = 0; j < 4; ++j) {
    if (!is_zero(four[j])) kept[static_cast<size_t>(count++)] = j;
  }
  if (count == 2) return kept;
  return count == 1 && kept[0] < 2 ? std::array{kept[0], 2} : std::array{2, 3};
}

template <class Bits>
void encode_two_of_four(const at::Tensor& matrix, SparseTensors& stored) {
  const int64_t out = stored.out, in = stored.in, words = position_words(in);
  at::Tensor values = at::empty({out, in / 2}, matrix.options());
  at::Tensor positions = at::zeros({out, words}, at::kShort);
  const Bits* from = bits_of<Bits>(matrix);
  Bits* to = static_cast<Bits*>(values.data_ptr());
  for (int64_t r = 0; r < out; ++r) {
    for (int64_t q = 0; q < in / 4; ++q) {
      const Bits* four = from + r * in + 4 * q;
      const auto kept = kept_positions(four);
      for (const size_t k : {0, 1}) to[r * in / 2 + 2 * q + static_cast<int64_t>(k)] = four[kept[k]];
      auto& word = reinterpret_cast<uint16_t&>(positions.data_ptr<int16_t>()[r * words + q / 4]);
      word = static_cast<uint16_t>(word | ((kept[0] | (kept[1] << 2)) << (4 * (q % 4))));
    }
  }
  stored.parts = {{kValues, values}, {kPositions, positions}};
}

template <class Bits>
void decode_two_of_four(const SparseTensors& stored, at::Tensor& matrix) {
  const int64_t in = stored.in, words = position_words(in);
  const Bits* values = bits_of<Bits>(stored.parts.at(kValues));
  const int16_t* positions = stored.parts.at(kPositions).data_ptr<int16_t>();
  Bits* to = static_cast<Bits*>(matrix.data_ptr());
  for (int64_t r = 0; r < stored.out; ++r) {
    for (int64_t q = 0; q < in / 4; ++q) {
      const int nibble = static_cast<uint16_t>(positions[r * words + q / 4]) >> (4 * (q % 4));
      to[r * in + 4 * q + (nibble & 3)] = values[r * in / 2 + 2 * q];
      to[r * in + 4 * q + ((nibble >> 2) & 3)] = values[r * in / 2 + 2 * q + 1];
    }
  }
}

/// Blocks of an edge: how many in a column or row of elements.
int64_t blocks_in(int64_t size) {
  return ceil_div(size, kStoredBlockEdge);
}

template <class Bits>
bool has_nonzero(const at::Tensor& matrix, int64_t block_row, int64_t block_column) {
  const int64_t out = matrix.size(0), in = matrix.size(1);
  for (int64_t r = block_row * kStoredBlockEdge; r < std::min(out, (block_row + 1) * kStoredBlockEdge); ++r) {
    for (int64_t c = block_column * kStoredBlockEdge; c < std::min(in, (block_column + 1) * kStoredBlockEdge);
         ++c) {
      if (!is_zero(bits_of<Bits>(matrix)[r * in + c])) return true;
    }
  }
  return false;
}

/// Calls body(element of the matrix, element of the values) for all elements of stored blocks that lie in the
/// matrix.
template <class Body>
void for_each_in_blocks(const SparseTensors& stored, Body body) {
  const at::Tensor& columns = stored.parts.at(kBlockColumns);
  const int64_t rows = columns.size(0), count = columns.size(1);
  for (int64_t b = 0; b < rows; ++b) {
    for (int64_t k = 0; k < count; ++k) {
      const int64_t column = columns.data_ptr<int32_t>()[b * count + k];
      if (column < 0) continue;
      const int64_t first = (b * count + k) * kStoredBlockEdge * kStoredBlockEdge;
      for (int64_t r = 0; r < std::min(kStoredBlockEdge, stored.out - b * kStoredBlockEdge); ++r) {
        for (int64_t c = 0; c < std::min(kStoredBlockEdge, stored.in - column * kStoredBlockEdge); ++c)
          body((b * kStoredBlockEdge + r) * stored.in + column * kStoredBlockEdge + c,
               first + r * kStoredBlockEdge + c);
      }
    }
  }
}

template <class Bits>
void encode_blocks(const at::Tensor& matrix, SparseTensors& stored) {
  const int64_t rows = blocks_in(stored.out), columns = blocks_in(stored.in);
  std::vector<std::vector<int32_t>> found(static_cast<size_t>(rows));
  size_t most = 1;
  for (int64_t b = 0; b < rows; ++b) {
    auto& of_row = found[static_cast<size_t>(b)];
    for (int64_t c = 0; c < columns; ++c) {
      if (has_nonzero<Bits>(matrix, b, c)) of_row.push_back(static_cast<int32_t>(c));
    }
    most = std::max(most, of_row.size());
  }
  const auto count = static_cast<int64_t>(most);
  at::Tensor places = at::full({rows, count}, -1, at::kInt);
  for (int64_t b = 0; b < rows; ++b) {
    const auto& of_row = found[static_cast<size_t>(b)];
    std::copy(of_row.begin(), of_row.end(), places.data_ptr<int32_t>() + b * count);
  }
  at::Tensor values = at::zeros({rows, count, kStoredBlockEdge, kStoredBlockEdge}, matrix.options());
  stored.parts = {{kBlockColumns, places}, {kValues, values}};
  auto* to = static_cast<Bits*>(values.data_ptr());
  for_each_in_blocks(stored,
                     [&](int64_t element, int64_t value) { to[value] = bits_of<Bits>(matrix)[element]; });
}

template <class Bits>
void decode_blocks(const SparseTensors& stored, at::Tensor& matrix) {
  const Bits* values = bits_of<Bits>(stored.parts.at(kValues));
  auto* to = static_cast<Bits*>(matrix.data_ptr());
  for_each_in_blocks(stored, [&](int64_t element, int64_t value) { to[element] = values[value]; });
}

void encode_tiles(const at::Tensor& matrix, SparseTensors& stored) {
  const TileGrid grid(stored.out, stored.in);
  std::vector<int32_t> words, offsets{0};
  const uint16_t* from = bits_of<uint16_t>(matrix);
  for (int64_t t = 0; t < grid.count(); ++t) {
    const Tile tile = grid.tile(t);
    int32_t a_zero = -1;
    for (int64_t r = 0; r < kTileRows; ++r) {
      for (int64_t c = 0; c < kTileColumns; ++c) {
        const auto place = static_cast<int32_t>(r * kTileColumns + c);
        const bool inside = tile.row + r < stored.out && tile.column + c < stored.in;
        const uint16_t value = inside ? from[(tile.row + r) * stored.in + tile.column + c] : uint16_t{0};
        if (is_zero(value)) {
          if (a_zero < 0) a_zero = place;
        } else {
          words.push_back(static_cast<int32_t>(value | (static_cast<uint32_t>(place) << 16)));
        }
      }
    }
    while (words.size() % kWordsPerVector != 0)
      words.push_back(static_cast<int32_t>(static_cast<uint32_t>(a_zero) << 16));
    offsets.push_back(static_cast<int32_t>(words.size() / kWordsPerVector));
  }
  offsets.push_back(offsets.back());  // an empty tile behind the last, for readers that look ahead
  stored.parts = {{kWords, at::tensor(words, at::kInt)}, {kTileOffsets, at::tensor(offsets, at::kInt)}};
}

void decode_tiles(const SparseTensors& stored, at::Tensor& matrix) {
  const TileGrid grid(stored.out, stored.in);
  const int32_t* words = stored.parts.at(kWords).data_ptr<int32_t>();
  const int32_t* offsets = stored.parts.at(kTileOffsets).data_ptr<int32_t>();
  auto* to = static_cast<uint16_t*>(matrix.data_ptr());
  for (int64_t t = 0; t < grid.count(); ++t) {
    const Tile tile = grid.tile(t);
    for (int64_t w = kWordsPerVector * offsets[t]; w < kWordsPerVector * offsets[t + 1]; ++w) {
      const auto word = static_cast<uint32_t>(words[w]);
      const int64_t place = word >> 16, r = tile.row + place / kTileColumns,
                    c = tile.column + place % kTileColumns;
      // Padding may stand for an element outside of the matrix.
      if (r < stored.out && c < stored.in) to[r * stored.in + c] = static_cast<uint16_t>(word);
    }
  }
}

std::string shape_text(const at::Tensor& t) {
  return t.defined() ? fmt::format("{} [{}]", dtype_name(t.scalar_type()), fmt::join(t.sizes(), ", "))
                     : "absent";
}

/// What is wrong with the parts of one matrix.
class Check {
 public:
  Check(const SparseTensors& stored, std::string name) : stored_(stored), name_(std::move(name)) {}

  [[noreturn]] void fail(const std::string& part, const std::string& text) const {
    throw CorruptFile(name_ + ".weight" + part, text);
  }

  const at::Tensor& part(const std::string& suffix, at::ScalarType type, at::IntArrayRef shape) const {
    const at::Tensor& tensor = any(suffix);
    if (tensor.scalar_type() != type || tensor.sizes() != shape)
      fail(suffix, fmt::format("must be {} [{}]; it is {}", dtype_name(type), fmt::join(shape, ", "),
                               shape_text(tensor)));
    return tensor;
  }
  const at::Tensor& any(const std::string& suffix) const {
    const auto found = stored_.parts.find(suffix);
    if (found == stored_.parts.end() || !found->second.defined()) fail(suffix, "must be there; it is absent");
    return found->second;
  }
  const at::Tensor& values(at::IntArrayRef shape) const {
    const at::Tensor& tensor = any(kValues);
    if (!is_stored_type(tensor.scalar_type()) || tensor.sizes() != shape) {
      fail(kValues, fmt::format("must be float32, bfloat16 or float16 [{}]; it is {}", fmt::join(shape, ", "),
                                shape_text(tensor)));
    }
    return tensor;
  }
  /// Values in one dimension, of any number that fits.
  int64_t value_count() const {
    const at::Tensor& tensor = any(kValues);
    values({tensor.dim() == 1 ? tensor.size(0) : 0});
    if (tensor.numel() / stored_.out > stored_.in)
      fail(kValues,
           fmt::format("must be at most {} x {}; there are {}", stored_.out, stored_.in, tensor.numel()));
    return tensor.numel();
  }

  void bitmask() const {
    const int64_t count = value_count(), width = mask_bytes(stored_.in);
    const auto* bits = part(kBits, at::kByte, {stored_.out, width}).data_ptr<uint8_t>();
    const auto* offsets = part(kRowOffsets, at::kLong, {stored_.out}).data_ptr<int64_t>();
    const uint32_t spare = stored_.in % 8 == 0 ? 0 : 0xFFU << (stored_.in % 8) & 0xFFU;
    int64_t before = 0;
    for (int64_t r = 0; r < stored_.out; ++r) {
      if (offsets[r] != before)
        fail(kRowOffsets, fmt::format("must count the bits before each row; row {} has {} after {}", r,
                                      offsets[r], before));
      for (int64_t b = 0; b < width; ++b) before += std::popcount(bits[r * width + b]);
      if ((bits[r * width + width - 1] & spare) != 0)
        fail(kBits, fmt::format("must have no bit beyond column {}; row {} has", stored_.in, r));
    }
    if (before != count)
      fail(kValues, fmt::format("must be one per bit; there are {} of {} bits", count, before));
  }

  void csr() const {
    const int64_t count = value_count();
    const auto* columns = part(kColumns, at::kInt, {count}).data_ptr<int32_t>();
    const auto* offsets = part(kRowOffsets, at::kInt, {stored_.out + 1}).data_ptr<int32_t>();
    if (offsets[0] != 0 || offsets[stored_.out] != count)
      fail(kRowOffsets, fmt::format("must begin with 0 and end with {}; they are {} and {}", count,
                                    offsets[0], offsets[stored_.out]));
    for (int64_t r = 0; r < stored_.out; ++r) {
      if (offsets[r + 1] < offsets[r] || offsets[r + 1] > count)
        fail(kRowOffsets, fmt::format("must never decrease nor exceed {}; row {} goes from {} to {}", count,
                                      r, offsets[r], offsets[r + 1]));
      for (int32_t e = offsets[r]; e < offsets[r + 1]; ++e) {
        if (columns[e] <= (e == offsets[r] ? -1 : columns[e - 1]) || columns[e] >= stored_.in)
          fail(kColumns, fmt::format("must ascend within a row and be below {}; row {} has {}", stored_.in, r,
                                     columns[e]));
      }
    }
  }

  void two_of_four() const {
    if (stored_.in % 4 != 0)
      fail(kShape, fmt::format("must have a multiple of 4 columns; it has {}", stored_.in));
    values({stored_.out, stored_.in / 2});
    const int64_t words = position_words(stored_.in);
    const auto* positions = part(kPositions, at::kShort, {stored_.out, words}).data_ptr<int16_t>();
    for (int64_t r = 0; r < stored_.out; ++r) {
      for (int64_t q = 0; q < 4 * words; ++q) {
        const int nibble = static_cast<uint16_t>(positions[r * words + q / 4]) >> (4 * (q % 4)) & 15;
        const bool inside = q < stored_.in / 4;
        if (inside ? (nibble & 3) >= nibble >> 2 : nibble != 0)
          fail(kPositions, fmt::format("must ascend within each four columns; row {} has {} and {}", r,
                                       nibble & 3, nibble >> 2));
      }
    }
  }

  void blocks() const {
    const at::Tensor& columns = any(kBlockColumns);
    const int64_t rows = blocks_in(stored_.out), most = blocks_in(stored_.in);
    const int64_t count = columns.dim() == 2 ? columns.size(1) : 0;
    if (count < 1 || count > most)
      fail(kBlockColumns,
           fmt::format("must have 1 to {} blocks in a row; it is {}", most, shape_text(columns)));
    const auto* column = part(kBlockColumns, at::kInt, {rows, count}).data_ptr<int32_t>();
    values({rows, count, kStoredBlockEdge, kStoredBlockEdge});
    for (int64_t i = 0; i < rows * count; ++i) {
      const int32_t before = i % count == 0 ? -1 : column[i - 1];
      const bool ended = i % count > 0 && before < 0;
      if (column[i] >= most || (column[i] >= 0 && (ended || column[i] <= before))) {
        fail(kBlockColumns, fmt::format("must ascend and be below {}, then -1; row {} has {} after {}", most,
                                        i / count, column[i], before));
      }
    }
  }

  void tiles() const {
    const TileGrid grid(stored_.out, stored_.in);
    const at::Tensor& words = any(kWords);
    const int64_t count = words.dim() == 1 ? words.numel() : 0;
    part(kWords, at::kInt, {count});
    const auto* offsets = part(kTileOffsets, at::kInt, {grid.count() + 2}).data_ptr<int32_t>();
    if (offsets[0] != 0 || count % kWordsPerVector != 0 || offsets[grid.count()] != count / kWordsPerVector ||
        offsets[grid.count() + 1] != offsets[grid.count()])
      fail(kTileOffsets, fmt::format("must go from 0 to the {} words in units of {}, the last one twice",
                                     count, kWordsPerVector));
    for (int64_t t = 0; t < grid.count(); ++t) {
      if (offsets[t + 1] < offsets[t])
        fail(kTileOffsets, fmt::format("must never decrease; tile {} does", t));
    }
    const auto* word = words.data_ptr<int32_t>();
    for (int64_t w = 0; w < count; ++w) {
      if (static_cast<uint32_t>(word[w]) >> 16 >= kTileRows * kTileColumns)
        fail(kWords,
             fmt::format("must have places below {}; word {} has another", kTileRows * kTileColumns, w));
    }
  }

 private:
  const SparseTensors& stored_;
  std::string name_;
};

}  // namespace

int64_t SparseTensors::bytes() const {
  int64_t sum = 0;
  for (const auto& [suffix, tensor] : parts) sum += tensor.numel() * tensor.element_size();
  return sum;
}

std::string_view marker_of(SparseFormat format) {
  switch (format) {
    case SparseFormat::kBitmask:
      return kBits;
    case SparseFormat::kCsr:
      return kColumns;
    case SparseFormat::kTwoOfFour:
      return kPositions;
    case SparseFormat::kBlockedEll:
      return kBlockColumns;
    case SparseFormat::kTiledCsl:
      return kWords;
    case SparseFormat::kDense:
      break;
  }
  return "";
}

bool is_two_of_four(const at::Tensor& matrix) {
  if (matrix.size(1) % 4 != 0) return false;
  return !(matrix.ne(0).reshape({-1, 4}).sum(1) > 2).any().item<bool>();
}

int64_t sparse_bytes(SparseFormat format, int64_t out, int64_t in, int64_t nonzero, int64_t element) {
  constexpr int64_t kShapeBytes = 16;
  switch (format) {
    case SparseFormat::kBitmask:
      return nonzero * element + out * mask_bytes(in) + 8 * out + kShapeBytes;
    case SparseFormat::kCsr:
      return nonzero * (element + 4) + 4 * (out + 1) + kShapeBytes;
    case SparseFormat::kTwoOfFour:
      return out * in / 2 * element + 2 * out * position_words(in) + kShapeBytes;
    case SparseFormat::kBlockedEll: {
      const int64_t of_row = kStoredBlockEdge * kStoredBlockEdge * blocks_in(out);
      return blocked_ell_bytes(out, in, std::max<int64_t>(1, ceil_div(nonzero, of_row)), element);
    }
    case SparseFormat::kTiledCsl: {
      const int64_t tiles = TileGrid(out, in).count();
      return 4 * (nonzero + (kWordsPerVector - 1) * tiles) + 4 * (tiles + 2) + kShapeBytes;
    }
    case SparseFormat::kDense:
      break;
  }
  return out * in * element;
}

int64_t blocked_ell_bytes(int64_t out, int64_t in, int64_t blocks, int64_t element) {
  const int64_t stored = blocks_in(out) * std::min(blocks, blocks_in(in));
  return stored * (kStoredBlockEdge * kStoredBlockEdge * element + 4) + 16;
}

SparseFormat smallest_format(int64_t out, int64_t in, int64_t nonzero, int64_t element, bool two_of_four) {
  SparseFormat best = SparseFormat::kDense;
  for (const SparseFormat format : {SparseFormat::kTwoOfFour, SparseFormat::kBitmask, SparseFormat::kCsr}) {
    if (format == SparseFormat::kTwoOfFour && !two_of_four) continue;
    if (sparse_bytes(format, out, in, nonzero, element) < sparse_bytes(best, out, in, nonzero, element))
      best = format;
  }
  return best;
}

SparseTensors encode(const at::Tensor& given, SparseFormat format) {
  constexpr const char* kWhere = "sparse::encode";
  if (given.dim() != 2 || !is_stored_type(given.scalar_type())) {
    throw InvalidArgument(kWhere,
                          fmt::format("the matrix must be float32, bfloat16 or float16 [out, in]; it is {}",
                                      shape_text(given)));
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (format != SparseFormat::kBitmask && given.numel() > kMost) {
    const int64_t nonzero = given.count_nonzero().item<int64_t>();
    if (nonzero > kMost) {
      throw InvalidArgument(
          kWhere, fmt::format("the matrix must have less than 2^31 elements other than 0 for {}; it has {}",
                              name_of(format), nonzero));
    }
  }
  const at::Tensor matrix = given.contiguous();
  SparseTensors stored{matrix.size(0), matrix.size(1), {}};
  const at::ScalarType type = matrix.scalar_type();
  switch (format) {
    case SparseFormat::kDense:
      stored.parts = {{"", matrix}};
      return stored;
    case SparseFormat::kBitmask:
      with_bits(type, [&](auto bits) { encode_bitmask<decltype(bits)>(matrix, stored); });
      break;
    case SparseFormat::kCsr:
      with_bits(type, [&](auto bits) { encode_csr<decltype(bits)>(matrix, stored); });
      break;
    case SparseFormat::kTwoOfFour:
      if (!is_two_of_four(matrix))
        throw InvalidArgument(
            kWhere,
            "the matrix must have at most two elements other than 0 in each four columns; it has more");
      with_bits(type, [&](auto bits) { encode_two_of_four<decltype(bits)>(matrix, stored); });
      break;
    case SparseFormat::kBlockedEll:
      with_bits(type, [&](auto bits) { encode_blocks<decltype(bits)>(matrix, stored); });
      break;
    case SparseFormat::kTiledCsl:
      if (type == at::kFloat)
        throw InvalidArgument(kWhere, "the matrix must be bfloat16 or float16 for tiled_csl; it is float32");
      encode_tiles(matrix, stored);
      // The words have room for 16 bits of value but not for their type.
      stored.parts[kValues] = at::empty({0}, matrix.options());
      break;
  }
  stored.parts[kShape] = shape_tensor(stored.out, stored.in);
  return stored;
}

at::Tensor decode(const SparseTensors& stored, SparseFormat format) {
  if (format == SparseFormat::kDense) return stored.parts.at("");
  const at::ScalarType type = stored.parts.at(kValues).scalar_type();
  at::Tensor matrix = at::zeros({stored.out, stored.in}, at::TensorOptions(type));
  switch (format) {
    case SparseFormat::kBitmask:
      with_bits(type, [&](auto bits) { decode_bitmask<decltype(bits)>(stored, matrix); });
      break;
    case SparseFormat::kCsr:
      with_bits(type, [&](auto bits) { decode_csr<decltype(bits)>(stored, matrix); });
      break;
    case SparseFormat::kTwoOfFour:
      with_bits(type, [&](auto bits) { decode_two_of_four<decltype(bits)>(stored, matrix); });
      break;
    case SparseFormat::kBlockedEll:
      with_bits(type, [&](auto bits) { decode_blocks<decltype(bits)>(stored, matrix); });
      break;
    case SparseFormat::kTiledCsl:
      decode_tiles(stored, matrix);
      break;
    case SparseFormat::kDense:
      break;
  }
  return matrix;
}

void check_stored(const SparseTensors& stored, SparseFormat format, const std::string& name) {
  const Check check(stored, name);
  if (stored.out < 1 || stored.in < 1 || stored.out > std::numeric_limits<int32_t>::max() ||
      stored.in > std::numeric_limits<int32_t>::max())
    check.fail(kShape,
               fmt::format("must be two numbers from 1 up; they are {} and {}", stored.out, stored.in));
  switch (format) {
    case SparseFormat::kBitmask:
      return check.bitmask();
    case SparseFormat::kCsr:
      return check.csr();
    case SparseFormat::kTwoOfFour:
      return check.two_of_four();
    case SparseFormat::kBlockedEll:
      return check.blocks();
    case SparseFormat::kTiledCsl:
      check.values({0});
      if (stored.parts.at(kValues).scalar_type() == at::kFloat)
        check.fail(kValues, "must be bfloat16 or float16");
      return check.tiles();
    case SparseFormat::kDense:
      break;
  }
}

}  // namespace lcomp::sparse
