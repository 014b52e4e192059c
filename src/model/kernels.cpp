#include "model/kernels.h"

#include <cblas.h>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/kernels.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h must come before highway.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::model::kernels::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;

/// Calls `body(vector, index)` over [0, count); the last, partial vector is handled through a padded copy, so
/// that a row's result does not depend on where it lies in memory.
template <class Body>
void for_vectors(int64_t count, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) body(i, lanes);
  if (i < count) body(i, count - i);
}

hn::Vec<D> load(const float* from, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  if (count == lanes) return hn::LoadU(D(), from);
  HWY_ALIGN float padded[hn::MaxLanes(D())] = {};
  for (int64_t i = 0; i < count; ++i) padded[i] = from[i];
  return hn::Load(D(), padded);
}

void store(hn::Vec<D> v, float* to, int64_t count) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(D()));
  if (count == lanes) {
    hn::StoreU(v, D(), to);
    return;
  }
  HWY_ALIGN float padded[hn::MaxLanes(D())];
  hn::Store(v, D(), padded);
  for (int64_t i = 0; i < count; ++i) to[i] = padded[i];
}

void rms_norm(const float* x, const float* weight, double eps, int64_t rows, int64_t width, float* y) {
  const D d;
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    float* out = y + r * width;
    auto sum = hn::Zero(d);
    for_vectors(width, [&](int64_t i, int64_t n) {
      const auto v = load(row + i, n);
      sum = hn::MulAdd(v, v, sum);
    });
    const double mean = static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum))) / static_cast<double>(width);
    const auto scale = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean + eps)));
    for_vectors(width, [&](int64_t i, int64_t n) {
      store(hn::Mul(hn::Mul(load(row + i, n), scale), load(weight + i, n)), out + i, n);
    });
  }
}

template <class Activation>
void gated(const float* gate_up, int64_t rows, int64_t width, float* y, const Activation& activation) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* gate = gate_up + r * 2 * width;
    const float* up = gate + width;
    float* out = y + r * width;
    for_vectors(width, [&](int64_t i, int64_t n) {
      store(hn::Mul(activation(load(gate + i, n)), load(up + i, n)), out + i, n);
    });
  }
}

void silu_times(const float* gate_up, int64_t rows, int64_t width, float* y) {
  const D d;
  gated(gate_up, rows, width, y,
        [&](auto g) { return hn::Div(g, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, hn::Neg(g)))); });
}

void gelu_tanh_times(const float* gate_up, int64_t rows, int64_t width, float* y) {
  const D d;
  // 0.5 g (1 + tanh(u)) = g / (1 + exp(-2 u)), u = sqrt(2/pi) (g + 0.044715 g^3)
  gated(gate_up, rows, width, y, [&](auto g) {
    const auto cube = hn::Mul(hn::Mul(g, g), g);
    const auto u2 = hn::Mul(hn::Set(d, 1.5957691216057308F), hn::MulAdd(hn::Set(d, 0.044715F), cube, g));
    return hn::Div(g, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, hn::Neg(u2))));
  });
}

void rotate_half(float* head, const float* cosines, const float* sines, int64_t dims, int64_t head_dim,
                 float scale) {
  const D d;
  const auto s = hn::Set(d, scale);
  const int64_t half = dims / 2;
  for_vectors(half, [&](int64_t i, int64_t n) {
    const auto a = load(head + i, n);
    const auto b = load(head + half + i, n);
    const auto c = load(cosines + i, n);
    const auto si = load(sines + i, n);
    store(hn::Mul(s, hn::Sub(hn::Mul(a, c), hn::Mul(b, si))), head + i, n);
    store(hn::Mul(s, hn::Add(hn::Mul(b, c), hn::Mul(a, si))), head + half + i, n);
  });
  for_vectors(head_dim - dims,
              [&](int64_t i, int64_t n) { store(hn::Mul(s, load(head + dims + i, n)), head + dims + i, n); });
}

void softmax_row(float* row, int64_t first, int64_t last) {
  const D d;
  float* x = row + first;
  const int64_t count = last - first;
  auto peak = hn::Set(d, x[0]);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) peak = hn::Max(peak, hn::LoadU(d, x + i));
  float top = hn::GetLane(hn::MaxOfLanes(d, peak));
  for (; i < count; ++i) top = std::max(top, x[i]);
  const auto shift = hn::Set(d, top);
  auto sum = hn::Zero(d);
  float tail = 0.0F;
  for (i = 0; i + lanes <= count; i += lanes) {
    const auto e = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), shift));
    hn::StoreU(e, d, x + i);
    sum = hn::Add(sum, e);
  }
  for (; i < count; ++i) {
    x[i] = std::exp(x[i] - top);
    tail += x[i];
  }
  const float inverse = 1.0F / (hn::GetLane(hn::SumOfLanes(d, sum)) + tail);
  const auto factor = hn::Set(d, inverse);
  for_vectors(count, [&](int64_t j, int64_t n) { store(hn::Mul(load(x + j, n), factor), x + j, n); });
}

void softmax_rows(float* scores, int64_t rows, int64_t cols, const int64_t* first, const int64_t* last) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * cols;
    std::fill(row, row + first[r], 0.0F);
    softmax_row(row, first[r], last[r]);
    std::fill(row + last[r], row + cols, 0.0F);
  }
}

void add(const float* x, int64_t count, float* y) {
  for_vectors(count, [&](int64_t i, int64_t n) { store(hn::Add(load(x + i, n), load(y + i, n)), y + i, n); });
}

}  // namespace lcomp::model::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::model::kernels {

HWY_EXPORT(rms_norm);
HWY_EXPORT(silu_times);
HWY_EXPORT(gelu_tanh_times);
HWY_EXPORT(rotate_half);
HWY_EXPORT(softmax_rows);
HWY_EXPORT(add);

void rms_norm(const float* x, const float* weight, double eps, int64_t rows, int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, eps, rows, width, y);
}

void silu_times(const float* gate_up, int64_t rows, int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(silu_times)(gate_up, rows, width, y);
}

void gelu_tanh_times(const float* gate_up, int64_t rows, int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(gelu_tanh_times)(gate_up, rows, width, y);
}

void rotate_half(float* head, const float* cosines, const float* sines, int64_t dims, int64_t head_dim,
                 float scale) {
  HWY_DYNAMIC_DISPATCH(rotate_half)(head, cosines, sines, dims, head_dim, scale);
}

void softmax_rows(float* scores, int64_t rows, int64_t cols, const int64_t* first, const int64_t* last) {
  HWY_DYNAMIC_DISPATCH(softmax_rows)(scores, rows, cols, first, last);
}

void add(const float* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(add)(x, count, y);
}

void add_bias(const float* bias, int64_t rows, int64_t width, float* y) {
  for (int64_t r = 0; r < rows; ++r) add(bias, width, y + r * width);
}

void causal_attention(const AttentionShape& shape, const float* q, const float* k, const float* v,
                      float* context, linalg::Scratch& scratch, size_t slot) {
  constexpr int64_t kQueryTile = 128;
  const int64_t group = shape.heads / shape.kv_heads;
  const auto dim = static_cast<int>(shape.head_dim);
  const int64_t context_stride = shape.heads * shape.head_dim;
  float* scores = scratch.floats(slot, kQueryTile * shape.tokens);
  int64_t first[kQueryTile];
  int64_t last[kQueryTile];
  for (int64_t begin = 0; begin < shape.tokens; begin += kQueryTile) {
    const int64_t rows = std::min(kQueryTile, shape.tokens - begin);
    const int64_t end = begin + rows;
    const int64_t key_begin = shape.window > 0 ? std::max<int64_t>(0, begin - shape.window + 1) : 0;
    const int64_t keys = end - key_begin;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t oldest = shape.window > 0 ? std::max<int64_t>(0, begin + r - shape.window + 1) : 0;
      first[r] = oldest - key_begin;
      last[r] = begin + r + 1 - key_begin;
    }
    for (int64_t head = 0; head < shape.heads; ++head) {
      const float* q_tile = q + begin * shape.q_stride + head * shape.head_dim;
      const int64_t kv_offset = key_begin * shape.kv_stride + head / group * shape.head_dim;
      const auto m = static_cast<int>(rows);
      const auto n = static_cast<int>(keys);
      const auto q_ld = static_cast<int>(shape.q_stride);
      const auto kv_ld = static_cast<int>(shape.kv_stride);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, m, n, dim, 1.0F, q_tile, q_ld, k + kv_offset,
                  kv_ld, 0.0F, scores, n);
      softmax_rows(scores, rows, keys, first, last);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, dim, n, 1.0F, scores, n, v + kv_offset, kv_ld,
                  0.0F, context + begin * context_stride + head * shape.head_dim,
                  static_cast<int>(context_stride));
    }
  }
}

}  // namespace lcomp::model::kernels
#endif
