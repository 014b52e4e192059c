#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/core/threads.h"
#include "lcomp/lowrank/low_rank.h"

/// Stacked-layer Tucker decomposition: the matrices W_l [out, in] that all layers have in one place are
/// slices of a tensor [layers, out, in], which is cut in the last two modes,
///     W_l ~ U C_l V^T,
/// with bases U and V that all layers share and a core C_l of each. A partial Tucker decomposition; what the
/// inputs of each layer count for is in it.
namespace lcomp::lowrank {

/// What the bases follow from: sums over the layers, of each divided by the energy of its outputs
/// tr(W H W^T), so that all layers count alike. Memory 8 (out^2 + 2 in^2) bytes, whatever the depth.
struct LayerSums {
  at::Tensor outputs;  ///< float64 [out, out], sum of W H W^T
  at::Tensor rows;     ///< float64 [in, in], sum of W^T W
  at::Tensor moment;   ///< float64 [in, in], sum of H

  /// weight: [out, in]. Throws InvalidArgument for another shape than that of the layers before,
  /// NumericalError for a layer whose outputs are not finite. A layer without any output adds nothing.
  void add(const at::Tensor& weight, const InputMetric& metric, ThreadPool* pool = nullptr);
};

/// The bases that all layers share.
struct LayerBases {
  at::Tensor left;   ///< U, float64 [out, out_rank], orthonormal columns
  at::Tensor right;  ///< V, float64 [in, in_rank], orthonormal columns
};

/// U: the strongest directions of the outputs of all layers together. V: the rows of the strongest directions
/// of all layers in the metric S of the summed moment: with sum W_l^T W_l = R and S^T R S = Q diag(s) Q^T,
/// the span of S^-T Q. Of one layer at equal ranks these are the spaces of `low_rank`'s factors. Throws
/// InvalidArgument for ranks outside [1, out] and [1, in].
LayerBases layer_bases(const LayerSums& sums, int64_t out_rank, int64_t in_rank);

/// The core that changes the outputs of a layer least: min over C of tr((W - U C V^T) H (W - U C V^T)^T),
/// C = U^T W H V (V^T H V)^-1. float64 [out_rank, in_rank].
at::Tensor layer_core(const at::Tensor& weight, const LayerBases& bases, const InputMetric& metric,
                      ThreadPool* pool = nullptr);

/// The share r of both modes, with ranks r out and r in, at which bases and cores of all layers take `share`
/// of the layers' numbers; at most 1.
double layer_rank_share(int64_t out, int64_t in, int64_t layers, double share);

}  // namespace lcomp::lowrank
