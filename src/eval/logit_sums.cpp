#include "eval/logit_sums.h"

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "eval/logit_sums.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h must come before highway.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace lcomp::eval::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;

float largest(const float* x, int64_t count) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto top = hn::Set(d, x[0]);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) top = hn::Max(top, hn::LoadU(d, x + i));
  float out = hn::GetLane(hn::MaxOfLanes(d, top));
  for (; i < count; ++i) out = std::max(out, x[i]);
  return out;
}

double exp_sum(const float* x, int64_t count, float shift) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto s = hn::Set(d, shift);
  auto sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) sum = hn::Add(sum, hn::Exp(d, hn::Sub(hn::LoadU(d, x + i), s)));
  double out = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < count; ++i) out += std::exp(x[i] - shift);
  return out;
}

/// sum exp(p - shift) and sum exp(p - shift) (p - q).
void exp_sums(const float* p, const float* q, int64_t count, float shift, double* sum_out,
              double* cross_out) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto s = hn::Set(d, shift);
  auto sum = hn::Zero(d);
  auto cross = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto pv = hn::LoadU(d, p + i);
    const auto e = hn::Exp(d, hn::Sub(pv, s));
    sum = hn::Add(sum, e);
    cross = hn::MulAdd(e, hn::Sub(pv, hn::LoadU(d, q + i)), cross);
  }
  *sum_out = hn::GetLane(hn::SumOfLanes(d, sum));
  *cross_out = hn::GetLane(hn::SumOfLanes(d, cross));
  for (; i < count; ++i) {
    const double e = std::exp(p[i] - shift);
    *sum_out += e;
    *cross_out += e * (p[i] - q[i]);
  }
}

}  // namespace lcomp::eval::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lcomp::eval {

HWY_EXPORT(largest);
HWY_EXPORT(exp_sum);
HWY_EXPORT(exp_sums);

namespace {

/// Moves the sums to the largest logit of the tile when that is a new maximum; returns the factor of the old
/// sums.
double raise_max(const float* logits, int64_t first_id, int64_t count, LogitSums& sums) {
  const float top = HWY_DYNAMIC_DISPATCH(largest)(logits, count);
  if (!(top > sums.max)) return 1.0;
  const double factor = std::exp(sums.max - top);
  sums.max = top;
  sums.best = first_id + (std::find(logits, logits + count, top) - logits);
  return factor;
}

}  // namespace

double LogitSums::log_normalizer() const {
  return max + std::log(sum);
}

double ReferenceSums::divergence(const LogitSums& model) const {
  return cross / own.sum - own.log_normalizer() + model.log_normalizer();
}

void add_tile(const float* logits, int64_t first_id, int64_t count, LogitSums& sums) {
  const double factor = raise_max(logits, first_id, count, sums);
  sums.sum = sums.sum * factor + HWY_DYNAMIC_DISPATCH(exp_sum)(logits, count, static_cast<float>(sums.max));
}

void add_tile(const float* reference, const float* model, int64_t first_id, int64_t count,
              ReferenceSums& sums) {
  const double factor = raise_max(reference, first_id, count, sums.own);
  double sum = 0;
  double cross = 0;
  HWY_DYNAMIC_DISPATCH(exp_sums)(reference, model, count, static_cast<float>(sums.own.max), &sum, &cross);
  sums.own.sum = sums.own.sum * factor + sum;
  sums.cross = sums.cross * factor + cross;
}

}  // namespace lcomp::eval
#endif
