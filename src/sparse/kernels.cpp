#include "sparse/kernels.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

// Accumulators are arrays of vectors, which vectors of unknown size cannot be.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse/kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, as Highway asks.
#include <hwy/highway.h>

#ifndef LCOMP_SPARSE_KERNEL_TABLES
#define LCOMP_SPARSE_KERNEL_TABLES
namespace lcomp::sparse::kernels {

struct Bfloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

/// For a mask of eight lanes: which of consecutive values each lane gets.
constexpr std::array<std::array<uint8_t, 8>, 256> kExpandLanes = [] {
  std::array<std::array<uint8_t, 8>, 256> table{};
  for (size_t mask = 0; mask < 256; ++mask) {
    uint8_t next = 0;
    for (size_t lane = 0; lane < 8; ++lane) table[mask][lane] = (mask >> lane & 1) != 0 ? next++ : uint8_t{0};
  }
  return table;
}();

/// For two nibbles of positions of 2:4: the mask of the eight columns.
constexpr std::array<uint8_t, 256> kPositionMask = [] {
  std::array<uint8_t, 256> table{};
  const auto of_four = [](size_t nibble) { return size_t{1} << (nibble & 3) | size_t{1} << (nibble >> 2); };
  for (size_t byte = 0; byte < 256; ++byte)
    table[byte] = static_cast<uint8_t>(of_four(byte & 15) | of_four(byte >> 4) << 4);
  return table;
}();

}  // namespace lcomp::sparse::kernels
#endif

HWY_BEFORE_NAMESPACE();
namespace lcomp::sparse::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
constexpr int64_t kLanes = HWY_LANES(float);
/// Values that an expansion may read beyond those it uses.
constexpr int64_t kReadAhead = 16;

template <class DF>
HWY_INLINE hn::Vec<DF> Widened(DF d, const float* from) {
  return hn::LoadU(d, from);
}
template <class DF>
HWY_INLINE hn::Vec<DF> Widened(DF d, const Bfloat16* from) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<uint16_t, DF> d16;
  const auto bits = hn::LoadU(d16, reinterpret_cast<const uint16_t*>(from));
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}
template <class DF>
HWY_INLINE hn::Vec<DF> Widened(DF d, const Half* from) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  return hn::PromoteTo(d, hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(from)));
}

template <class T>
HWY_INLINE float One(const T* from) {
  const hn::CappedTag<float, 1> d;
  return hn::GetLane(Widened(d, from));
}

template <class T>
HWY_INLINE void WidenRun(const T* from, int64_t count, float* to) {
  const D d;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(Widened(d, from + i), d, to + i);
  for (; i < count; ++i) to[i] = One(from + i);
}

/// Consecutive values in the lanes of a mask, 0 in the others.
template <class T>
HWY_INLINE V Expanded(uint32_t mask, const T* values) {
  const D d;
  const V packed = Widened(d, values);
#if HWY_TARGET <= HWY_AVX3
  return V{_mm512_maskz_expand_ps(static_cast<__mmask16>(mask), packed.raw)};
#else
  const DU du;
  const hn::Rebind<uint8_t, D> d8;
  const auto lane = hn::PromoteTo(du, hn::LoadU(d8, kExpandLanes[mask & 0xFF].data()));
  const auto bit = hn::Shl(hn::Set(du, 1), hn::Iota(du, 0));
  const auto kept = hn::RebindMask(d, hn::TestBit(hn::Set(du, mask), bit));
  return hn::IfThenElseZero(kept, hn::TableLookupLanes(packed, hn::IndicesFromVec(d, lane)));
#endif
}

/// The lanes of a and b, one after the other, that indices below 2 kLanes name.
HWY_INLINE V LookedUp(V a, V b, hn::Vec<DU> index) {
#if HWY_TARGET <= HWY_AVX3
  return V{_mm512_permutex2var_ps(a.raw, index.raw, b.raw)};
#else
  const D d;
  const DU du;
  const auto lane = hn::IndicesFromVec(d, hn::And(index, hn::Set(du, static_cast<uint32_t>(kLanes - 1))));
  const auto above = hn::RebindMask(d, hn::Gt(index, hn::Set(du, static_cast<uint32_t>(kLanes - 1))));
  return hn::IfThenElse(above, hn::TableLookupLanes(b, lane), hn::TableLookupLanes(a, lane));
#endif
}

/// Up to 64 bits from a byte on.
HWY_INLINE uint64_t BitsFrom(const uint8_t* bytes, int64_t count) {
  uint64_t bits = 0;
  if (count >= 8) {
    std::memcpy(&bits, bytes, 8);
  } else {
    std::memcpy(&bits, bytes, static_cast<size_t>(count));
  }
  return bits;
}

HWY_INLINE uint32_t LaneMask(uint64_t bits, int64_t part) {
  return static_cast<uint32_t>(bits >> (part * kLanes)) & ((1U << kLanes) - 1);
}

/// The values from `begin` on, with kReadAhead readable ones behind `end`.
template <class T>
const T* Readable(const T* values, int64_t begin, int64_t end, int64_t count, std::vector<T>& padded) {
  if (end + kReadAhead <= count) return values + begin;
  padded.assign(static_cast<size_t>(end - begin + kReadAhead), T{});
  std::copy(values + begin, values + end, padded.begin());
  return padded.data();
}

template <class T>
const T* RowValues(const BitmaskRows& w, int64_t r, std::vector<T>& padded) {
  const int64_t end = r + 1 < w.out ? w.offsets[r + 1] : w.count;
  return Readable(static_cast<const T*>(w.values), w.offsets[r], end, w.count, padded);
}

/// Column c of token t.
template <int kTokens>
HWY_INLINE const float* InputAt(const float* x, int64_t c, int64_t t) {
  return x + (c / kInputChunk * kTokens + t) * kInputChunk + c % kInputChunk;
}

/// Chains of sums for each token, so that no addition waits for the one before.
template <int kTokens>
constexpr int kChainsFor = kTokens == 1   ? 4
                           : kTokens == 2 ? 2
                                          : 1;

/// Through memory: variable places in the arrays of sums would keep these out of registers all along.
template <int kRows, int kTokens, int kChains>
HWY_INLINE void Totals(const V (&sums)[kRows][kTokens][kChains], float (&totals)[kRows][kTokens]) {
  const D d;
  HWY_ALIGN float lanes[kRows * kTokens * kLanes];
  for (int i = 0; i < kRows; ++i) {
    for (int t = 0; t < kTokens; ++t) {
      V sum = sums[i][t][0];
      for (int chain = 1; chain < kChains; ++chain) sum = hn::Add(sum, sums[i][t][chain]);
      hn::Store(sum, d, lanes + (i * kTokens + t) * kLanes);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int t = 0; t < kTokens; ++t)
      totals[i][t] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, lanes + (i * kTokens + t) * kLanes)));
  }
}

template <class T, int kTokens>
void DotBitmaskRows(const BitmaskRows& w, int64_t first, int64_t last, const float* x, int64_t tokens,
                    float* y, int64_t y_stride) {
  constexpr int kChains = kChainsFor<kTokens>;
  const D d;
  const int64_t width = (w.in + 7) / 8;
  std::vector<T> padded;
  for (int64_t r = first; r < last; ++r) {
    const T* values = RowValues(w, r, padded);
    V sums[1][kTokens][kChains];
    for (int t = 0; t < kTokens; ++t) {
      for (int chain = 0; chain < kChains; ++chain) sums[0][t][chain] = hn::Zero(d);
    }
    for (int64_t c = 0; c < w.in; c += 64) {
      const uint64_t bits = BitsFrom(w.mask + r * width + c / 8, width - c / 8);
      for (int64_t part = 0; part < 64 / kLanes; part += kChains) {
        for (int chain = 0; chain < kChains; ++chain) {
          const uint32_t mask = LaneMask(bits, part + chain);
          const V elements = Expanded(mask, values);
          values += hwy::PopCount(mask);
          const float* at = InputAt<kTokens>(x, c + (part + chain) * kLanes, 0);
          for (int t = 0; t < kTokens; ++t)
            sums[0][t][chain] = hn::MulAdd(elements, hn::LoadU(d, at + t * kInputChunk), sums[0][t][chain]);
        }
      }
    }
    float totals[1][kTokens];
    Totals(sums, totals);
    for (int64_t t = 0; t < tokens; ++t) y[t * y_stride + r] = totals[0][t];
  }
}

/// kRows rows for each vector of inputs.
template <class T, int kTokens, int kRows>
HWY_INLINE void DotTwoOfFourStep(const TwoOfFourRows& w, int64_t r, const float* x, int64_t tokens, float* y,
                                 int64_t y_stride) {
  constexpr int kChains = kChainsFor<kTokens>;
  constexpr int64_t kStep = 2 * kLanes;
  const D d;
  const DU du;
  const auto lanes = hn::Iota(du, 0);
  const auto shift = hn::Add(lanes, lanes);
  const auto quadruple = hn::ShiftLeft<2>(hn::ShiftRight<1>(lanes));
  const auto three = hn::Set(du, 3);
  const int64_t words = (w.in / 4 + 3) / 4, half = w.in / 2;
  const T* values = static_cast<const T*>(w.values) + r * half;
  const auto* positions = reinterpret_cast<const uint8_t*>(w.positions + r * words);
  V sums[kRows][kTokens][kChains];
  for (int i = 0; i < kRows; ++i) {
    for (int t = 0; t < kTokens; ++t) {
      for (int chain = 0; chain < kChains; ++chain) sums[i][t][chain] = hn::Zero(d);
    }
  }
  int64_t c = 0;
  // Vectors of fewer lanes do not hold the whole of four columns.
  for (; kLanes >= 4 && c + kStep <= w.in; c += kChains * kStep) {
    for (int chain = 0; chain < kChains; ++chain) {
      const int64_t at = c + chain * kStep;
      if (at + kStep > w.in) continue;
      V elements[kRows];
      hn::Vec<DU> index[kRows];
      for (int i = 0; i < kRows; ++i) {
        uint32_t bits = 0;
        std::memcpy(&bits, positions + i * 2 * words + at / 8, kStep / 8);
        index[i] = hn::Or(hn::And(hn::Shr(hn::Set(du, bits), shift), three), quadruple);
        elements[i] = Widened(d, values + i * half + at / 2);
      }
      const float* low_at = InputAt<kTokens>(x, at, 0);
      const float* high_at = InputAt<kTokens>(x, at + kLanes, 0);
      for (int t = 0; t < kTokens; ++t) {
        const V low = hn::LoadU(d, low_at + t * kInputChunk), high = hn::LoadU(d, high_at + t * kInputChunk);
        for (int i = 0; i < kRows; ++i)
          sums[i][t][chain] = hn::MulAdd(elements[i], LookedUp(low, high, index[i]), sums[i][t][chain]);
      }
    }
  }
  const int64_t done = kLanes >= 4 ? w.in / kStep * kStep : 0;
  float totals[kRows][kTokens];
  Totals(sums, totals);
  for (int i = 0; i < kRows; ++i) {
    for (int64_t t = 0; t < tokens; ++t) {
      float sum = totals[i][t];
      for (int64_t e = done / 2; e < half; ++e) {
        const int place = positions[i * 2 * words + e / 4] >> (2 * (e % 4)) & 3;
        sum += One(values + i * half + e) * *InputAt<kTokens>(x, e / 2 * 4 + place, t);
      }
      y[t * y_stride + r + i] = sum;
    }
  }
}

template <class T, int kTokens>
void DotTwoOfFourRows(const TwoOfFourRows& w, int64_t first, int64_t last, const float* x, int64_t tokens,
                      float* y, int64_t y_stride) {
  constexpr int kRows = kTokens == 8 && kLanes >= 16 ? 2 : 1;  // as there are registers
  int64_t r = first;
  for (; r + kRows <= last; r += kRows) DotTwoOfFourStep<T, kTokens, kRows>(w, r, x, tokens, y, y_stride);
  for (; r < last; ++r) DotTwoOfFourStep<T, kTokens, 1>(w, r, x, tokens, y, y_stride);
}

template <class T>
void DotCsrRows(const CsrRows& w, int64_t first, int64_t last, const float* x, float* y) {
  constexpr int kChains = 4;
  const T* values = static_cast<const T*>(w.values);
  for (int64_t r = first; r < last; ++r) {
    float sums[kChains] = {};
    int64_t e = w.offsets[r];
    for (; e + kChains <= w.offsets[r + 1]; e += kChains) {
      for (int chain = 0; chain < kChains; ++chain)
        sums[chain] += One(values + e + chain) * x[w.columns[e + chain]];
    }
    for (; e < w.offsets[r + 1]; ++e) sums[0] += One(values + e) * x[w.columns[e]];
    y[r] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

/// y [kWidth] = sum over elements of value x panel [column].
template <int kWidth>
HWY_INLINE void SumOfColumns(const float* values, const int32_t* columns, int64_t count, const float* panel,
                             float* y) {
  const hn::CappedTag<float, kWidth> d;
  using VW = hn::Vec<decltype(d)>;
  constexpr int kVectors = kWidth / static_cast<int>(HWY_MIN(kLanes, kWidth));
  constexpr int kVectorLanes = kWidth / kVectors;
  constexpr int kChains = kVectors >= 4 ? 1 : 4 / kVectors;
  VW sums[kChains][kVectors];
  for (auto& chain : sums) {
    for (VW& sum : chain) sum = hn::Zero(d);
  }
  int64_t e = 0;
  for (; e + kChains <= count; e += kChains) {
    for (int chain = 0; chain < kChains; ++chain) {
      const VW value = hn::Set(d, values[e + chain]);
      const float* column = panel + int64_t{columns[e + chain]} * kWidth;
      for (int v = 0; v < kVectors; ++v)
        sums[chain][v] = hn::MulAdd(value, hn::LoadU(d, column + v * kVectorLanes), sums[chain][v]);
    }
  }
  for (; e < count; ++e) {
    const VW value = hn::Set(d, values[e]);
    const float* column = panel + int64_t{columns[e]} * kWidth;
    for (int v = 0; v < kVectors; ++v)
      sums[0][v] = hn::MulAdd(value, hn::LoadU(d, column + v * kVectorLanes), sums[0][v]);
  }
  for (int v = 0; v < kVectors; ++v) {
    for (int chain = 1; chain < kChains; ++chain) sums[0][v] = hn::Add(sums[0][v], sums[chain][v]);
    hn::StoreU(sums[0][v], d, y + v * kVectorLanes);
  }
}

template <class T, int kWidth>
void CsrRowsTimesPanel(const CsrRows& w, int64_t first, int64_t last, const float* panel, float* y,
                       float* scratch) {
  for (int64_t r = first; r < last; ++r) {
    const int64_t begin = w.offsets[r], count = w.offsets[r + 1] - begin;
    WidenRun(static_cast<const T*>(w.values) + begin, count, scratch);
    SumOfColumns<kWidth>(scratch, w.columns + begin, count, panel, y + (r - first) * kWidth);
  }
}

/// Appends the columns that a mask names.
HWY_INLINE void StoreColumns(int64_t c, uint32_t mask, int32_t* to) {
  const hn::RebindToSigned<D> di;
  const auto columns = hn::Add(hn::Iota(di, 0), hn::Set(di, static_cast<int32_t>(c)));
#if HWY_TARGET <= HWY_AVX3
  // Through a register: compression into memory is slow on some processors.
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(mask), columns.raw));
#else
  const auto bit = hn::Shl(hn::Set(di, 1), hn::Iota(di, 0));
  hn::CompressStore(columns, hn::TestBit(hn::Set(di, static_cast<int32_t>(mask)), bit), di, to);
#endif
}

/// The columns of a row's elements in `columns`; how many there are.
HWY_INLINE int64_t ColumnsOf(const BitmaskRows& w, int64_t r, int32_t* columns) {
  const int64_t width = (w.in + 7) / 8;
  int32_t* next = columns;
  for (int64_t c = 0; c < w.in; c += 64) {
    const uint64_t bits = BitsFrom(w.mask + r * width + c / 8, width - c / 8);
    for (int64_t part = 0; part < 64 / kLanes; ++part) {
      const uint32_t mask = LaneMask(bits, part);
      StoreColumns(c + part * kLanes, mask, next);
      next += hwy::PopCount(mask);
    }
  }
  return next - columns;
}

template <class T, int kWidth>
void BitmaskRowsTimesPanel(const BitmaskRows& w, int64_t first, int64_t last, const float* panel, float* y,
                           float* scratch, int32_t* columns) {
  for (int64_t r = first; r < last; ++r) {
    const int64_t count = ColumnsOf(w, r, columns);
    WidenRun(static_cast<const T*>(w.values) + w.offsets[r], count, scratch);
    SumOfColumns<kWidth>(scratch, columns, count, panel, y + (r - first) * kWidth);
  }
}

/// 64 columns of a row; the values behind those that they have.
template <class T>
HWY_INLINE const T* ExpandColumns(uint64_t bits, const T* values, float* to) {
  const D d;
  for (int64_t part = 0; part < 64 / kLanes; ++part) {
    const uint32_t mask = LaneMask(bits, part);
    hn::StoreU(Expanded(mask, values), d, to + part * kLanes);
    values += hwy::PopCount(mask);
  }
  return values;
}

template <class T>
void ExpandBitmaskRows(const BitmaskRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  const int64_t width = (w.in + 7) / 8;
  std::vector<T> padded;
  for (int64_t r = first; r < last; ++r) {
    const T* values = RowValues(w, r, padded);
    for (int64_t c = 0; c < w.in; c += 64) {
      const uint64_t bits = BitsFrom(w.mask + r * width + c / 8, width - c / 8);
      values = ExpandColumns(bits, values, tile + (r - first) * stride + c);
    }
  }
}

template <class T>
void ExpandTwoOfFourRows(const TwoOfFourRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  std::vector<T> padded;
  const int64_t words = (w.in / 4 + 3) / 4, half = w.in / 2;
  for (int64_t r = first; r < last; ++r) {
    const T* values = Readable(static_cast<const T*>(w.values), r * half, (r + 1) * half, w.count, padded);
    const auto* positions = reinterpret_cast<const uint8_t*>(w.positions + r * words);
    for (int64_t c = 0; c < w.in; c += 64) {
      const int64_t columns = std::min<int64_t>(64, w.in - c);
      const uint64_t packed = BitsFrom(positions + c / 8, (columns + 7) / 8);
      uint64_t bits = 0;
      for (int byte = 0; byte < 8; ++byte)
        bits |= uint64_t{kPositionMask[packed >> (8 * byte) & 0xFF]} << (8 * byte);
      if (columns < 64) bits &= (uint64_t{1} << columns) - 1;
      values = ExpandColumns(bits, values, tile + (r - first) * stride + c);
    }
  }
}

/// kRows rows of a tile times kVectors vectors of tokens, sums in registers.
template <int kRows, int kVectors, class DW>
HWY_INLINE void TileStep(DW d, const float* tile, int64_t columns, int64_t stride, const float* panel,
                         int64_t width, float* y, bool accumulate) {
  using VW = hn::Vec<DW>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VW sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v)
      sums[r][v] = accumulate ? hn::LoadU(d, y + r * width + v * lanes) : hn::Zero(d);
  }
  for (int64_t c = 0; c < columns; ++c) {
    VW inputs[kVectors];
    for (int v = 0; v < kVectors; ++v) inputs[v] = hn::LoadU(d, panel + c * width + v * lanes);
    for (int r = 0; r < kRows; ++r) {
      const VW element = hn::Set(d, tile[r * stride + c]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(element, inputs[v], sums[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) hn::StoreU(sums[r][v], d, y + r * width + v * lanes);
  }
}

template <int kWidth>
void TileTimesWidth(const float* tile, int64_t rows, int64_t columns, int64_t stride, const float* panel,
                    float* y, bool accumulate) {
  const hn::CappedTag<float, kWidth> d;
  constexpr int64_t kVectorLanes = HWY_MIN(kLanes, kWidth);
  constexpr int kVectors = HWY_MIN(2, kWidth / kVectorLanes);
  constexpr int kRows = kLanes >= 16 ? kTileStep : 4;  // as many sums as there are registers for
  static_assert(kTileStep % kRows == 0);
  for (int64_t t = 0; t < kWidth; t += kVectors * kVectorLanes) {
    for (int64_t r = 0; r < rows; r += kRows)
      TileStep<kRows, kVectors>(d, tile + r * stride, columns, stride, panel + t, kWidth, y + r * kWidth + t,
                                accumulate);
  }
}

template <class T>
void AddTileDotsOf(const T* tile, int64_t rows, const float* x, float* sums) {
  constexpr int64_t kColumns = 64;
  const D d;
  for (int64_t r = 0; r < rows; ++r) {
    V even = hn::LoadU(d, sums + r * 16), odd = hn::Zero(d);
    for (int64_t c = 0; c < kColumns; c += 2 * kLanes) {
      even = hn::MulAdd(Widened(d, tile + r * kColumns + c), hn::LoadU(d, x + c), even);
      odd = hn::MulAdd(Widened(d, tile + r * kColumns + c + kLanes), hn::LoadU(d, x + c + kLanes), odd);
    }
    hn::StoreU(hn::Add(even, odd), d, sums + r * 16);
  }
}

/// Calls body with a value of the stored type.
template <class Body>
void WithElement(Element element, const Body& body) {
  switch (element) {
    case Element::kFloat:
      return body(float{});
    case Element::kBfloat16:
      return body(Bfloat16{});
    case Element::kHalf:
      return body(Half{});
  }
}

/// Calls body with a constant, the smallest of 1, 2, 4, 8 that is not below the number of tokens.
template <class Body>
void WithTokens(int64_t tokens, const Body& body) {
  if (tokens <= 1) return body(std::integral_constant<int, 1>());
  if (tokens <= 2) return body(std::integral_constant<int, 2>());
  if (tokens <= 4) return body(std::integral_constant<int, 4>());
  body(std::integral_constant<int, 8>());
}

template <class Body>
void WithWidth(int64_t width, const Body& body) {
  if (width == 8) return body(std::integral_constant<int, 8>());
  if (width == 16) return body(std::integral_constant<int, 16>());
  if (width == 32) return body(std::integral_constant<int, 32>());
  body(std::integral_constant<int, 64>());
}

void DotBitmask(const BitmaskRows& w, int64_t first, int64_t last, const float* x, int64_t tokens, float* y,
                int64_t y_stride) {
  WithElement(w.element, [&](auto element) {
    WithTokens(tokens, [&](auto count) {
      DotBitmaskRows<decltype(element), count>(w, first, last, x, tokens, y, y_stride);
    });
  });
}

void DotTwoOfFour(const TwoOfFourRows& w, int64_t first, int64_t last, const float* x, int64_t tokens,
                  float* y, int64_t y_stride) {
  WithElement(w.element, [&](auto element) {
    WithTokens(tokens, [&](auto count) {
      DotTwoOfFourRows<decltype(element), count>(w, first, last, x, tokens, y, y_stride);
    });
  });
}

void DotCsr(const CsrRows& w, int64_t first, int64_t last, const float* x, float* y) {
  WithElement(w.element, [&](auto element) { DotCsrRows<decltype(element)>(w, first, last, x, y); });
}

void CsrTimesPanel(const CsrRows& w, int64_t first, int64_t last, const float* panel, int64_t width, float* y,
                   float* scratch) {
  WithElement(w.element, [&](auto element) {
    WithWidth(width, [&](auto constant) {
      CsrRowsTimesPanel<decltype(element), constant>(w, first, last, panel, y, scratch);
    });
  });
}

void BitmaskTimesPanel(const BitmaskRows& w, int64_t first, int64_t last, const float* panel, int64_t width,
                       float* y, float* scratch, int32_t* columns) {
  WithElement(w.element, [&](auto element) {
    WithWidth(width, [&](auto constant) {
      BitmaskRowsTimesPanel<decltype(element), constant>(w, first, last, panel, y, scratch, columns);
    });
  });
}

void ExpandBitmask(const BitmaskRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  WithElement(w.element,
              [&](auto element) { ExpandBitmaskRows<decltype(element)>(w, first, last, stride, tile); });
}

void ExpandTwoOfFour(const TwoOfFourRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  WithElement(w.element,
              [&](auto element) { ExpandTwoOfFourRows<decltype(element)>(w, first, last, stride, tile); });
}

void Widen(Element element, const void* from, int64_t count, float* to) {
  WithElement(element, [&](auto type) { WidenRun(static_cast<const decltype(type)*>(from), count, to); });
}

void TileTimesPanel(const float* tile, int64_t rows, int64_t columns, int64_t stride, const float* panel,
                    int64_t width, float* y, bool accumulate) {
  WithWidth(width, [&](auto constant) {
    TileTimesWidth<constant>(tile, rows, columns, stride, panel, y, accumulate);
  });
}

void AddTileDots(Element element, const void* tile, int64_t rows, const float* x, float* sums) {
  WithElement(element,
              [&](auto type) { AddTileDotsOf(static_cast<const decltype(type)*>(tile), rows, x, sums); });
}

void SumLanes(const float* sums, int64_t rows, float* y) {
  const D d;
  for (int64_t r = 0; r < rows; ++r) y[r] = hn::GetLane(hn::SumOfLanes(d, hn::LoadU(d, sums + r * 16)));
}

HWY_INLINE void TransposeFew(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to,
                             int64_t to_stride) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[j * to_stride + i] = from[i * from_stride + j];
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Up to four rows and columns.
HWY_INLINE void TransposeBlock(const float* from, int64_t rows, int64_t columns, int64_t from_stride,
                               float* to, int64_t to_stride) {
  if (rows < 4 || columns < 4) return TransposeFew(from, rows, columns, from_stride, to, to_stride);
  const hn::CappedTag<float, 4> d;
  const auto a = hn::LoadU(d, from), b = hn::LoadU(d, from + from_stride);
  const auto c = hn::LoadU(d, from + 2 * from_stride), e = hn::LoadU(d, from + 3 * from_stride);
  const auto ac = hn::InterleaveLower(d, a, c), be = hn::InterleaveLower(d, b, e);
  const auto ac_upper = hn::InterleaveUpper(d, a, c), be_upper = hn::InterleaveUpper(d, b, e);
  hn::StoreU(hn::InterleaveLower(d, ac, be), d, to);
  hn::StoreU(hn::InterleaveUpper(d, ac, be), d, to + to_stride);
  hn::StoreU(hn::InterleaveLower(d, ac_upper, be_upper), d, to + 2 * to_stride);
  hn::StoreU(hn::InterleaveUpper(d, ac_upper, be_upper), d, to + 3 * to_stride);
}
#endif

void Transpose(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to,
               int64_t to_stride) {
#if HWY_TARGET == HWY_SCALAR
  TransposeFew(from, rows, columns, from_stride, to, to_stride);
#else
  // Along the side that lies wider apart, so that its lines are used up before they leave the cache.
  const auto blocks_of = [](int64_t count) { return (count + 3) / 4; };
  const bool along_columns = from_stride >= to_stride;
  const int64_t inner = blocks_of(along_columns ? columns : rows);
  for (int64_t b = 0; b < blocks_of(rows) * blocks_of(columns); ++b) {
    const int64_t i = 4 * (along_columns ? b / inner : b % inner);
    const int64_t j = 4 * (along_columns ? b % inner : b / inner);
    TransposeBlock(from + i * from_stride + j, std::min<int64_t>(4, rows - i),
                   std::min<int64_t>(4, columns - j), from_stride, to + j * to_stride + i, to_stride);
  }
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::sparse::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::sparse::kernels {

HWY_EXPORT(DotBitmask);
HWY_EXPORT(DotTwoOfFour);
HWY_EXPORT(DotCsr);
HWY_EXPORT(CsrTimesPanel);
HWY_EXPORT(BitmaskTimesPanel);
HWY_EXPORT(ExpandBitmask);
HWY_EXPORT(ExpandTwoOfFour);
HWY_EXPORT(Widen);
HWY_EXPORT(TileTimesPanel);
HWY_EXPORT(AddTileDots);
HWY_EXPORT(SumLanes);
HWY_EXPORT(Transpose);

void dot_bitmask(const BitmaskRows& w, int64_t first, int64_t last, const float* x, int64_t tokens, float* y,
                 int64_t y_stride) {
  HWY_DYNAMIC_DISPATCH(DotBitmask)(w, first, last, x, tokens, y, y_stride);
}

void dot_two_of_four(const TwoOfFourRows& w, int64_t first, int64_t last, const float* x, int64_t tokens,
                     float* y, int64_t y_stride) {
  HWY_DYNAMIC_DISPATCH(DotTwoOfFour)(w, first, last, x, tokens, y, y_stride);
}

void dot_csr(const CsrRows& w, int64_t first, int64_t last, const float* x, float* y) {
  HWY_DYNAMIC_DISPATCH(DotCsr)(w, first, last, x, y);
}

void csr_times_panel(const CsrRows& w, int64_t first, int64_t last, const float* panel, int64_t width,
                     float* y, float* scratch) {
  HWY_DYNAMIC_DISPATCH(CsrTimesPanel)(w, first, last, panel, width, y, scratch);
}

void bitmask_times_panel(const BitmaskRows& w, int64_t first, int64_t last, const float* panel, int64_t width,
                         float* y, float* scratch, int32_t* columns) {
  HWY_DYNAMIC_DISPATCH(BitmaskTimesPanel)(w, first, last, panel, width, y, scratch, columns);
}

void expand_bitmask(const BitmaskRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  HWY_DYNAMIC_DISPATCH(ExpandBitmask)(w, first, last, stride, tile);
}

void expand_two_of_four(const TwoOfFourRows& w, int64_t first, int64_t last, int64_t stride, float* tile) {
  HWY_DYNAMIC_DISPATCH(ExpandTwoOfFour)(w, first, last, stride, tile);
}

void widen(Element element, const void* from, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(Widen)(element, from, count, to);
}

void tile_times_panel(const float* tile, int64_t rows, int64_t columns, int64_t stride, const float* panel,
                      int64_t width, float* y, bool accumulate) {
  HWY_DYNAMIC_DISPATCH(TileTimesPanel)(tile, rows, columns, stride, panel, width, y, accumulate);
}

void add_tile_dots(Element element, const void* tile, int64_t rows, const float* x, float* sums) {
  HWY_DYNAMIC_DISPATCH(AddTileDots)(element, tile, rows, x, sums);
}

void sum_lanes(const float* sums, int64_t rows, float* y) {
  HWY_DYNAMIC_DISPATCH(SumLanes)(sums, rows, y);
}

void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_stride, float* to,
               int64_t to_stride) {
  HWY_DYNAMIC_DISPATCH(Transpose)(from, rows, columns, from_stride, to, to_stride);
}

}  // namespace lcomp::sparse::kernels
#endif
