#pragma once

#include <cstdint>

/// The inner loops of products with quantized activations: float32, single-threaded, vectorised with
/// instructions chosen at run time. Results do not depend on the vector length.
namespace lcomp::quant::kernels {

/// codes = round(clamp(x / scale + zero)), halves to even: the order in which compressed-tensors does it.
void encode_values(const float* x, int64_t count, float scale, float zero, float lowest_code,
                   float highest_code, int8_t* codes);

/// x^ = (codes - zero) scale.
void decode_values(const int8_t* codes, int64_t count, float scale, int32_t zero, float* x);

/// One token of an int8 product: y[o] = (sums[o] - zero row_sums[o] - weight_zeros[o] sum) (scale
/// weight_scales[o]), where `sum` is that of the token's codes minus `count` times its zero point.
/// `weight_zeros` is null for symmetric weights.
struct TokenScale {
  float scale = 1;
  int32_t zero = 0;
  int32_t sum = 0;
};
void scale_sums(const int32_t* sums, int64_t out, const TokenScale& token, const int32_t* row_sums,
                const float* weight_scales, const int32_t* weight_zeros, float* y);

/// Sum of `count` codes.
int32_t sum_codes(const int8_t* codes, int64_t count);

}  // namespace lcomp::quant::kernels
