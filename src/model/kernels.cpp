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

void layer_norm(const float* x, const float* weight, const float* bias, double eps, int64_t rows,
                int64_t width, float* y) {
  const D d;
  const auto mean_of = [&](hn::Vec<D> sum) {
    return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum))) / static_cast<double>(width);
  };
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x + r * width;
    float* out = y + r * width;
    auto sum = hn::Zero(d);
    for_vectors(width, [&](int64_t i, int64_t n) { sum = hn::Add(sum, load(row + i, n)); });
    const auto mean = hn::Set(d, static_cast<float>(mean_of(sum)));
    auto squares = hn::Zero(d);
    for_vectors(width, [&](int64_t i, int64_t n) {
      const auto valid = hn::FirstN(d, static_cast<size_t>(n));
      const auto v = hn::IfThenElseZero(valid, hn::Sub(load(row + i, n), mean));
      squares = hn::MulAdd(v, v, squares);
    });
    const auto scale = hn::Set(d, static_cast<float>(1.0 / std::sqrt(mean_of(squares) + eps)));
    for_vectors(width, [&](int64_t i, int64_t n) {
      const auto v = hn::Mul(hn::Sub(load(row + i, n), mean), scale);
      store(hn::MulAdd(v, load(weight + i, n), load(bias + i, n)), out + i, n);
    });
  }
}

/// x / (1 + exp(-u)). Beyond the bounds, outside of which `hn::Exp` is undefined, exp(-u) is infinite or 0.
hn::Vec<D> times_logistic(hn::Vec<D> x, hn::Vec<D> u) {
  const D d;
  const auto bound = hn::Set(d, 104.0F);
  const auto exponent = hn::Min(hn::Max(hn::Neg(u), hn::Neg(bound)), bound);
  return hn::Div(x, hn::Add(hn::Set(d, 1.0F), hn::Exp(d, exponent)));
}

struct Silu {
  hn::Vec<D> operator()(hn::Vec<D> x) const { return times_logistic(x, x); }
};

/// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2 u)), u = sqrt(2/pi) (x + 0.044715 x^3)
struct GeluTanh {
  hn::Vec<D> operator()(hn::Vec<D> x) const {
    const D d;
    const auto cube = hn::Mul(hn::Mul(x, x), x);
    const auto u2 = hn::Mul(hn::Set(d, 1.5957691216057308F), hn::MulAdd(hn::Set(d, 0.044715F), cube, x));
    return times_logistic(x, u2);
  }
};

/// x P(X < x) of a standard normal X. erfc(|x| / sqrt(2)) by Abramowitz and Stegun (1964), 7.1.26, whose
/// error is below 1.5e-7.
struct Gelu {
  hn::Vec<D> operator()(hn::Vec<D> x) const {
    const D d;
    const auto z = hn::Mul(hn::Abs(x), hn::Set(d, 0.70710678118654752F));
    const auto one = hn::Set(d, 1.0F);
    const auto t = hn::Div(one, hn::MulAdd(hn::Set(d, 0.3275911F), z, one));
    auto series = hn::Set(d, 1.061405429F);
    for (const float term : {-1.453152027F, 1.421413741F, -0.284496736F, 0.254829592F})
      series = hn::MulAdd(series, t, hn::Set(d, term));
    const auto tail = hn::Mul(hn::Mul(series, t), hn::Exp(d, hn::Neg(hn::Mul(z, z))));
    const auto half = hn::Mul(hn::Set(d, 0.5F), tail);  // P(X > |x|)
    return hn::Mul(x, hn::IfThenElse(hn::Lt(x, hn::Zero(d)), half, hn::Sub(one, half)));
  }
};

struct Relu {
  hn::Vec<D> operator()(hn::Vec<D> x) const { return hn::Max(x, hn::Zero(D())); }
};

/// Calls `body` with the function that `activation` names.
template <class Body>
void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::kSilu:
      return body(Silu());
    case Activation::kGeluTanh:
      return body(GeluTanh());
    case Activation::kGelu:
      return body(Gelu());
    case Activation::kRelu:
      return body(Relu());
  }
}

void gate(Activation activation, const float* gate_up, int64_t rows, int64_t width, float* y) {
  with_activation(activation, [&](const auto& function) {
    for (int64_t r = 0; r < rows; ++r) {
      const float* gates = gate_up + r * 2 * width;
      const float* ups = gates + width;
      float* out = y + r * width;
      for_vectors(width, [&](int64_t i, int64_t n) {
        store(hn::Mul(function(load(gates + i, n)), load(ups + i, n)), out + i, n);
      });
    }
  });
}

void activate(Activation activation, const float* x, int64_t count, float* y) {
  with_activation(activation, [&](const auto& function) {
    for_vectors(count, [&](int64_t i, int64_t n) { store(function(load(x + i, n)), y + i, n); });
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

/// Row [first, last) becomes exp(x - its largest); returns 1 / its sum.
float exp_row(float* x, int64_t count) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t whole = count / lanes * lanes;
  auto peak = hn::Set(d, x[0]);
  for (int64_t i = 0; i < whole; i += lanes) peak = hn::Max(peak, hn::LoadU(d, x + i));
  float top = hn::GetLane(hn::MaxOfLanes(d, peak));
  for (int64_t i = whole; i < count; ++i) top = std::max(top, x[i]);
  const auto shift = hn::Set(d, top);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < whole; i += lanes) {
    const auto e = hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), shift));
    hn::StoreU(e, d, x + i);
    sum = hn::Add(sum, e);
  }
  if (whole < count) {
    const auto valid = hn::FirstN(d, static_cast<size_t>(count - whole));
    const auto e = hn::IfThenElseZero(valid, hn::Exp(d, hn::Sub(load(x + whole, count - whole), shift)));
    store(e, x + whole, count - whole);
    sum = hn::Add(sum, e);
  }
  return 1.0F / hn::GetLane(hn::SumOfLanes(d, sum));
}

void exp_rows(float* scores, int64_t rows, int64_t cols, const int64_t* first, const int64_t* last,
              float* inverse_sums) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * cols;
    std::fill(row, row + first[r], 0.0F);
    inverse_sums[r] = exp_row(row + first[r], last[r] - first[r]);
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
HWY_EXPORT(layer_norm);
HWY_EXPORT(gate);
HWY_EXPORT(activate);
HWY_EXPORT(rotate_half);
HWY_EXPORT(exp_rows);
HWY_EXPORT(add);

void rms_norm(const float* x, const float* weight, double eps, int64_t rows, int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(rms_norm)(x, weight, eps, rows, width, y);
}

void layer_norm(const float* x, const float* weight, const float* bias, double eps, int64_t rows,
                int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(layer_norm)(x, weight, bias, eps, rows, width, y);
}

void gate(Activation activation, const float* gate_up, int64_t rows, int64_t width, float* y) {
  HWY_DYNAMIC_DISPATCH(gate)(activation, gate_up, rows, width, y);
}

void activate(Activation activation, const float* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(activate)(activation, x, count, y);
}

void rotate_half(float* head, const float* cosines, const float* sines, int64_t dims, int64_t head_dim,
                 float scale) {
  HWY_DYNAMIC_DISPATCH(rotate_half)(head, cosines, sines, dims, head_dim, scale);
}

void exp_rows(float* scores, int64_t rows, int64_t cols, const int64_t* first, const int64_t* last,
              float* inverse_sums) {
  HWY_DYNAMIC_DISPATCH(exp_rows)(scores, rows, cols, first, last, inverse_sums);
}

void add(const float* x, int64_t count, float* y) {
  HWY_DYNAMIC_DISPATCH(add)(x, count, y);
}

void add_bias(const float* bias, int64_t rows, int64_t width, float* y) {
  for (int64_t r = 0; r < rows; ++r) add(bias, width, y + r * width);
}

namespace {

/// Rows of one product of the attention; their scores over 2048 keys take 0.8 MB and stay in a second-level
/// cache.
constexpr int64_t kAttentionRows = 96;

}  // namespace

void attention(const AttentionShape& shape, const float* q, const float* k, const float* v, float* context,
               linalg::Scratch& scratch, size_t slot) {
  // The query heads that share a key head go through one product, which then packs keys and values once for
  // all of them.
  const int64_t group = shape.heads / shape.kv_heads;
  const int64_t tile = std::max<int64_t>(1, kAttentionRows / group);
  const int64_t width = group * shape.head_dim;  // of the heads of one group, which lie side by side
  float* queries = scratch.floats(slot, tile * (group * shape.tokens + 2 * width));
  float* contexts = queries + tile * width;
  float* scores = contexts + tile * width;
  std::vector<int64_t> first(static_cast<size_t>(tile * group));
  std::vector<int64_t> last(first.size());
  std::vector<float> inverse_sums(first.size());
  const auto dim = static_cast<int>(shape.head_dim);
  const auto kv_stride = static_cast<int>(shape.kv_stride);
  for (int64_t begin = 0; begin < shape.tokens; begin += tile) {
    const int64_t end = std::min(begin + tile, shape.tokens);
    const auto oldest = [&](int64_t token) {
      return shape.window > 0 ? std::max<int64_t>(0, token - shape.window + 1) : 0;
    };
    const int64_t key_begin = oldest(begin);
    for (int64_t row = 0; row < (end - begin) * group; ++row) {
      const int64_t token = begin + row / group;
      first[static_cast<size_t>(row)] = oldest(token) - key_begin;
      last[static_cast<size_t>(row)] = (shape.causal ? token + 1 : shape.tokens) - key_begin;
    }
    const auto rows = static_cast<int>((end - begin) * group);
    const auto keys = static_cast<int>((shape.causal ? end : shape.tokens) - key_begin);
    for (int64_t head = 0; head < shape.kv_heads; ++head) {
      const int64_t kv_offset = key_begin * shape.kv_stride + head * shape.head_dim;
      for (int64_t t = begin; t < end; ++t)
        std::copy_n(q + t * shape.q_stride + head * width, width, queries + (t - begin) * width);
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, keys, dim, 1.0F, queries, dim, k + kv_offset,
                  kv_stride, 0.0F, scores, keys);
      exp_rows(scores, rows, keys, first.data(), last.data(), inverse_sums.data());
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, dim, keys, 1.0F, scores, keys,
                  v + kv_offset, kv_stride, 0.0F, contexts, dim);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t token = begin + row / group;
        const int64_t out = (token * shape.heads + head * group + row % group) * shape.head_dim;
        for (int64_t j = 0; j < dim; ++j)
          context[out + j] = contexts[row * dim + j] * inverse_sums[static_cast<size_t>(row)];
      }
    }
  }
}

}  // namespace lcomp::model::kernels
#endif
