#include "lcomp/lowrank/layer_tucker.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "core/one_thread.h"
#include "lcomp/core/error.h"
#include "lcomp/linalg/svd.h"

namespace lcomp::lowrank {
namespace {

/// Added to the eigenvalues of the summed moment, relative to the largest: directions that no layer reads.
constexpr double kUnseen = 1e-9;
constexpr double kTiny = 1e-300;

void check_rank(int64_t rank, int64_t width, const char* what) {
  if (rank < 1 || rank > width) {
    throw InvalidArgument(
        "layer_bases", fmt::format("the rank of the {} must be from 1 to {}; it is {}", what, width, rank));
  }
}

at::Tensor strongest(const at::Tensor& gram, int64_t count) {
  return linalg::largest_eigen(gram, count).vectors.t();
}

}  // namespace

void LayerSums::add(const at::Tensor& weight, const InputMetric& metric, ThreadPool* pool) {
  const at::Tensor w = weight.to(at::kDouble);
  const int64_t out = w.size(0), in = w.size(1);
  if (!outputs.defined()) {
    outputs = at::zeros({out, out}, at::kDouble);
    rows = at::zeros({in, in}, at::kDouble);
    moment = at::zeros({in, in}, at::kDouble);
  }
  if (outputs.size(0) != out || rows.size(0) != in) {
    throw InvalidArgument("LayerSums::add", fmt::format("all layers must be [{}, {}]; one is [{}, {}]",
                                                        outputs.size(0), rows.size(0), out, in));
  }
  const at::Tensor energy = metric.energy(w, pool);
  const double total = energy.trace().item<double>();
  if (!std::isfinite(total))
    throw NumericalError("LayerSums::add", "the outputs of a layer must be finite; they are not");
  if (total <= 0) return;
  outputs += energy / total;
  rows += one_thread_product(w.t(), w) / total;
  moment += metric.weighted(at::eye(in, at::kDouble), pool) / total;
}

LayerBases layer_bases(const LayerSums& sums, int64_t out_rank, int64_t in_rank) {
  check_rank(out_rank, sums.outputs.size(0), "outputs");
  check_rank(in_rank, sums.rows.size(0), "inputs");
  LayerBases bases;
  bases.left = strongest(sums.outputs, out_rank).contiguous();
  // S = P diag(sqrt(values)) of the moment, so S^-T = P diag(1 / sqrt(values)).
  const linalg::Eigen moment = linalg::largest_eigen(sums.moment);
  const double floor = kUnseen * std::max(moment.values.front(), kTiny);
  const at::Tensor root = (at::tensor(moment.values, at::kDouble).clamp_min(0) + floor).sqrt();
  const at::Tensor axes = moment.vectors.t();
  const at::Tensor s = axes * root;
  const at::Tensor directions =
      strongest(one_thread_product(s.t(), one_thread_product(sums.rows, s)), in_rank);
  bases.right = linalg::orthonormal_columns(one_thread_product(axes / root, directions)).contiguous();
  return bases;
}

at::Tensor layer_core(const at::Tensor& weight, const LayerBases& bases, const InputMetric& metric,
                      ThreadPool* pool) {
  const at::Tensor projected = one_thread_product(bases.left.t(), weight.to(at::kDouble));
  Factors core{one_thread_product(projected, bases.right), bases.right.t().contiguous(), {}};
  update_left(core, projected, metric, pool);
  return core.left;
}

double layer_rank_share(int64_t out, int64_t in, int64_t layers, double share) {
  // layers out in r^2 + (out^2 + in^2) r = share layers out in.
  const double cores = static_cast<double>(layers) * static_cast<double>(out) * static_cast<double>(in);
  const double bases =
      static_cast<double>(out) * static_cast<double>(out) + static_cast<double>(in) * static_cast<double>(in);
  const double r = (std::sqrt(bases * bases + 4 * cores * cores * share) - bases) / (2 * cores);
  return std::min(1.0, r);
}

}  // namespace lcomp::lowrank
