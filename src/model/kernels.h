#pragma once

#include <cstdint>

#include "lcomp/linalg/gemm.h"
#include "lcomp/model/architecture.h"

/// The element-wise parts of a forward pass, float32, single-threaded, vectorised with instructions chosen at
/// run time.
namespace lcomp::model::kernels {

/// y = x * rsqrt(mean(x^2) + eps) * weight, for `rows` rows of `width` (RMSNorm). x and y may be the same.
void rms_norm(const float* x, const float* weight, double eps, int64_t rows, int64_t width, float* y);

/// y = (x - mean(x)) * rsqrt(variance(x) + eps) * weight + bias (LayerNorm), otherwise as rms_norm.
void layer_norm(const float* x, const float* weight, const float* bias, double eps, int64_t rows,
                int64_t width, float* y);

/// gate_up `[rows, 2 * width]` holds gate | up; y `[rows, width]` = activation(gate) * up.
void gate(Activation activation, const float* gate_up, int64_t rows, int64_t width, float* y);

/// y = activation(x), for `count` values. x and y may be the same.
void activate(Activation activation, const float* x, int64_t count, float* y);

/// Rotates pairs (i, i + dims/2) of one head vector by the angles whose cosines and sines are given (`dims/2`
/// each), and multiplies the whole head by `scale`; elements from `dims` to `head_dim` are only scaled.
void rotate_half(float* head, const float* cosines, const float* sines, int64_t dims, int64_t head_dim,
                 float scale);

/// Row r of the `[rows, cols]` matrix becomes the softmax over its columns [first[r], last[r]), but for the
/// factor `inverse_sums[r]`, which is cheaper to apply behind the product with the values; the other columns
/// become 0.
void exp_rows(float* scores, int64_t rows, int64_t cols, const int64_t* first, const int64_t* last,
              float* inverse_sums);

/// y += x.
void add(const float* x, int64_t count, float* y);

/// Adds `bias` `[width]` to every row.
void add_bias(const float* bias, int64_t rows, int64_t width, float* y);

/// Attention of one sample with rotated, scaled queries.
/// q `[tokens, heads * head_dim]`, k and v `[tokens, kv_heads * head_dim]` with row strides in floats; query
/// head h reads key head h / (heads / kv_heads). `window` > 0 lets a token see that many keys, itself
/// included; 0 lets it see all. context `[tokens, heads * head_dim]`. Queries go in tiles, so there is no
/// tokens x tokens matrix; with `causal` they skip what is above the diagonal, half the work.
struct AttentionShape {
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t window = 0;
  bool causal = true;
  int64_t q_stride = 0;
  int64_t kv_stride = 0;
};
void attention(const AttentionShape& shape, const float* q, const float* k, const float* v, float* context,
               linalg::Scratch& scratch, size_t slot);

}  // namespace lcomp::model::kernels
