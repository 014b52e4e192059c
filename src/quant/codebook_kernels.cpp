#include "quant/codebook_kernels.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "quant/codebook_kernels.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h, as Highway asks.
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::quant::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
// Eight codes of up to 4 bits fit one 32-bit word, so vectors have at most eight lanes.
using D = hn::CappedTag<float, 8>;
using DU = hn::RebindToUnsigned<D>;
using V = hn::Vec<D>;
constexpr int64_t kBlock = 8;

/// Reads codes by the eight: word b holds the codes 8 b .. 8 b + 7 from its lowest bit on.
class Blocks {
 public:
  explicit Blocks(const CodeRow& row)
      : from_(reinterpret_cast<const uint8_t*>(row.words)),
        bytes_((row.count * row.bits + 31) / 32 * 4),
        bits_(row.bits) {}

  uint32_t word(int64_t block) const {
    const int64_t offset = block * bits_;
    uint32_t word = 0;
    std::memcpy(&word, from_ + offset, static_cast<size_t>(std::min<int64_t>(4, bytes_ - offset)));
    return word;
  }

 private:
  const uint8_t* from_;
  int64_t bytes_;
  int64_t bits_;
};

/// Looks up the lanes' codes in a table of 2^bits entries, which lies in one to four registers.
HWY_INLINE V Lookup(const float* table, hn::Vec<DU> codes, int64_t entries) {
  const D d;
  const DU du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lane = hn::IndicesFromVec(d, hn::And(codes, hn::Set(du, static_cast<uint32_t>(lanes - 1))));
  V out = hn::TableLookupLanes(hn::LoadU(d, table), lane);
  for (int64_t t = lanes; t < entries; t += lanes) {
    const auto above = hn::RebindMask(d, hn::Gt(codes, hn::Set(du, static_cast<uint32_t>(t - 1))));
    out = hn::IfThenElse(above, hn::TableLookupLanes(hn::LoadU(d, table + t), lane), out);
  }
  return out;
}

/// Codes [part lanes, (part + 1) lanes) of a block.
HWY_INLINE hn::Vec<DU> Unpack(uint32_t word, int64_t part, int64_t bits) {
  const DU du;
  const auto lanes = static_cast<int64_t>(hn::Lanes(du));
  const auto index = hn::Iota(du, static_cast<uint32_t>(part * lanes));
  const auto shift = hn::Mul(index, hn::Set(du, static_cast<uint32_t>(bits)));
  return hn::And(hn::Shr(hn::Set(du, word), shift), hn::Set(du, (1U << bits) - 1));
}

/// The same with the number of bits known when compiling, so that shifts and tables are constants.
template <int64_t kBits, class Use>
HWY_INLINE void ForBlocks(const CodeRow& row, const Use& use) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  const Blocks blocks(row);
  for (int64_t j = 0; j < row.count; j += kBlock) {
    const uint32_t word = blocks.word(j / kBlock);
    for (int64_t part = 0; part * lanes < kBlock; ++part) {
      use(j + part * lanes, Lookup(row.table, Unpack(word, part, kBits), int64_t{1} << kBits));
    }
  }
}

/// More than 4 bits: one code after the other.
template <class Use>
void ForCodes(const CodeRow& row, const Use& use) {
  const auto* words = reinterpret_cast<const uint32_t*>(row.words);
  uint64_t pending = 0;
  int64_t filled = 0;
  for (int64_t j = 0; j < row.count; ++j) {
    if (filled < row.bits) {
      pending |= static_cast<uint64_t>(*words++) << filled;
      filled += 32;
    }
    use(j, row.table[pending & ((1U << row.bits) - 1)]);
    pending >>= row.bits;
    filled -= row.bits;
  }
}

template <int64_t kBits>
void DecodeBlocks(const CodeRow& row, float* out) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  ForBlocks<kBits>(row, [&](int64_t j, V values) HWY_ATTR {
    if (j + lanes <= row.count) {
      hn::StoreU(values, d, out + j);
      return;
    }
    HWY_ALIGN float padded[kBlock];
    hn::Store(values, d, padded);
    for (int64_t i = j; i < row.count; ++i) out[i] = padded[i - j];
  });
}

void DecodeRow(const CodeRow& row, float* out) {
  if (row.bits == 2) return DecodeBlocks<2>(row, out);
  if (row.bits == 3) return DecodeBlocks<3>(row, out);
  if (row.bits == 4) return DecodeBlocks<4>(row, out);
  ForCodes(row, [&](int64_t j, float value) { out[j] = value; });
}

template <int64_t kBits>
float DotBlocks(const CodeRow& row, const float* x) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sum = hn::Zero(d);
  float rest = 0;
  ForBlocks<kBits>(row, [&](int64_t j, V values) HWY_ATTR {
    if (j + lanes <= row.count) {
      sum = hn::MulAdd(values, hn::LoadU(d, x + j), sum);
      return;
    }
    HWY_ALIGN float padded[kBlock];
    hn::Store(values, d, padded);
    for (int64_t i = j; i < row.count; ++i) rest += padded[i - j] * x[i];
  });
  return hn::GetLane(hn::SumOfLanes(d, sum)) + rest;
}

float DotRow(const CodeRow& row, const float* x) {
  if (row.bits == 2) return DotBlocks<2>(row, x);
  if (row.bits == 3) return DotBlocks<3>(row, x);
  if (row.bits == 4) return DotBlocks<4>(row, x);
  float sum = 0;
  ForCodes(row, [&](int64_t j, float value) { sum += value * x[j]; });
  return sum;
}

float Dot(const float* a, const float* x, int64_t count) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t j = 0;
  for (; j + 2 * lanes <= count; j += 2 * lanes) {
    even = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, x + j), even);
    odd = hn::MulAdd(hn::LoadU(d, a + j + lanes), hn::LoadU(d, x + j + lanes), odd);
  }
  float rest = 0;
  for (; j < count; ++j) rest += a[j] * x[j];
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd))) + rest;
}

}  // namespace HWY_NAMESPACE
}  // namespace lcomp::quant::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::quant::kernels {

HWY_EXPORT(DecodeRow);
HWY_EXPORT(DotRow);
HWY_EXPORT(Dot);

void decode_row(const CodeRow& row, float* out) {
  HWY_DYNAMIC_DISPATCH(DecodeRow)(row, out);
}

float dot_row(const CodeRow& row, const float* x) {
  return HWY_DYNAMIC_DISPATCH(DotRow)(row, x);
}

float dot(const float* a, const float* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(Dot)(a, x, count);
}

}  // namespace lcomp::quant::kernels
#endif
