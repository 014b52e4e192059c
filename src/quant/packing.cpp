#include "lcomp/quant/packing.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"

namespace lcomp::quant {
namespace {

void check_arguments(const char* where, const at::Tensor& tensor, at::ScalarType type, int bits,
                     int64_t dim) {
  if (tensor.dim() != 2 || tensor.scalar_type() != type) {
    throw InvalidArgument(
        where, fmt::format("the tensor must be an {} matrix; received {} dimensions of {}", dtype_name(type),
                           tensor.dim(), dtype_name(tensor.scalar_type())));
  }
  if (bits < 2 || bits > 8)
    throw InvalidArgument(where, fmt::format("bits must be in [2, 8]; received {}", bits));
  if (dim != 0 && dim != 1) throw InvalidArgument(where, fmt::format("dim must be 0 or 1; received {}", dim));
}

void pack_row(const int8_t* codes, int64_t count, int bits, uint32_t* words) {
  const int offset = 1 << (bits - 1);
  uint64_t pending = 0;  // bits not yet written, lowest first
  int filled = 0;
  for (int64_t j = 0; j < count; ++j) {
    pending |= static_cast<uint64_t>(codes[j] + offset) << filled;
    filled += bits;
    if (filled >= 32) {
      *words++ = static_cast<uint32_t>(pending);
      pending >>= 32;
      filled -= 32;
    }
  }
  if (filled > 0) *words = static_cast<uint32_t>(pending);
}

void unpack_dense_row(const uint32_t* words, int64_t count, int bits, int8_t* codes) {
  const int offset = 1 << (bits - 1);
  const uint64_t mask = (1u << bits) - 1;
  uint64_t pending = 0;
  int filled = 0;
  for (int64_t j = 0; j < count; ++j) {
    if (filled < bits) {
      pending |= static_cast<uint64_t>(*words++) << filled;
      filled += 32;
    }
    codes[j] = static_cast<int8_t>(static_cast<int>(pending & mask) - offset);
    pending >>= bits;
    filled -= bits;
  }
}

void unpack_padded_row(const uint32_t* words, int64_t count, int bits, int8_t* codes) {
  const int offset = 1 << (bits - 1);
  const uint32_t mask = (1u << bits) - 1;
  const int64_t per_word = 32 / bits;
  for (int64_t j = 0; j < count; ++j) {
    const uint32_t code = words[j / per_word] >> (bits * (j % per_word)) & mask;
    codes[j] = static_cast<int8_t>(static_cast<int>(code) - offset);
  }
}

}  // namespace

int64_t packed_words(int64_t count, int bits) {
  return ceil_div(count * bits, 32);
}

at::Tensor pack_codes(const at::Tensor& codes, int bits, int64_t dim) {
  check_arguments("pack_codes", codes, at::kChar, bits, dim);
  if (dim == 0) return pack_codes(codes.t(), bits, 1).t().contiguous();
  const at::Tensor in = codes.contiguous();
  const int64_t rows = in.size(0), cols = in.size(1), width = packed_words(cols, bits);
  at::Tensor out = at::empty({rows, width}, at::kInt);
  auto* words = reinterpret_cast<uint32_t*>(out.data_ptr<int32_t>());
  for (int64_t r = 0; r < rows; ++r)
    pack_row(in.data_ptr<int8_t>() + r * cols, cols, bits, words + r * width);
  return out;
}

at::Tensor unpack_codes(const at::Tensor& words, int bits, int64_t count, int64_t dim) {
  check_arguments("unpack_codes", words, at::kInt, bits, dim);
  if (dim == 0) return unpack_codes(words.t(), bits, count, 1).t().contiguous();
  const int64_t dense = packed_words(count, bits), padded = ceil_div(count, 32 / bits), width = words.size(1);
  if (width != dense && width != padded) {
    throw InvalidArgument(
        "unpack_codes",
        fmt::format("{} codes of {} bits must take {} words{}; received {}", count, bits, dense,
                    padded == dense ? "" : fmt::format(" (or {} in the old layout)", padded), width));
  }
  const at::Tensor in = words.contiguous();
  const auto* from = reinterpret_cast<const uint32_t*>(in.data_ptr<int32_t>());
  at::Tensor out = at::empty({in.size(0), count}, at::kChar);
  const auto unpack_row = width == dense ? unpack_dense_row : unpack_padded_row;
  for (int64_t r = 0; r < in.size(0); ++r) {
    unpack_row(from + r * width, count, bits, out.data_ptr<int8_t>() + r * count);
  }
  return out;
}

}  // namespace lcomp::quant
