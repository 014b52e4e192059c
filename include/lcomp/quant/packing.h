#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lcomp::quant {

/// 32-bit words that `count` codes of `bits` bits take: ceil(count bits / 32).
int64_t packed_words(int64_t count, int bits);

/// Packs signed codes into 32-bit words as compressed-tensors `pack-quantized` does: u = q + 2^(bits-1), then
/// a dense bit stream along `dim`, least significant bit first; codes may cross words; trailing bits are
/// zero. codes: int8 `[rows, cols]` with values in [-2^(bits-1), 2^(bits-1) - 1]; bits 2-8. Returns int32
/// `[rows, packed_words(cols)]` (dim 1) or `[packed_words(rows), cols]` (dim 0).
at::Tensor pack_codes(const at::Tensor& codes, int bits, int64_t dim);

/// The inverse of `pack_codes` for `count` codes along `dim`. Also reads the layout of compressed-tensors
/// before 0.13, which put floor(32 / bits) codes into a word and left the rest of it empty; the two are told
/// apart by the number of words. Throws InvalidArgument when the number of words fits neither.
at::Tensor unpack_codes(const at::Tensor& words, int bits, int64_t count, int64_t dim);

}  // namespace lcomp::quant
