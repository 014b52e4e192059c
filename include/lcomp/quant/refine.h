#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "lcomp/core/threads.h"
#include "lcomp/quant/quantized_weight.h"

namespace lcomp::quant {

struct RefineOptions {
  int64_t sweeps = 2;  ///< passes over all codes
  bool refit = true;   ///< scales too: exactly before the first and after the last sweep, and in each sweep
};

struct RefineResult {
  QuantizedWeight weight;
  double start_loss = 0;   ///< damped loss of the weight that was given
  double damped_loss = 0;  ///< tr(D (H + diag(added)) D^T), D = target - weight: never above start_loss
  double loss = 0;         ///< tr(D H D^T)
};

/// Improves a rounding that is there, by codes and by scales, each time to the exact minimum over what is
/// changed while all else stays:
///     min tr(D A D^T),   D = W - W^,   A = H + diag(added).
/// It is the *damped* loss that never rises, because that is the one that GPTQ minimises (its sum of e^2):
/// damping keeps inputs that the calibration saw too little of from being fitted to.
///
/// Codes (coordinate descent: Egiazarian, Panferov, Kuznedelev et al. 2024, section 3; Tseng et al., QuIP#,
/// ICML 2024, section "fine-tuning": cyclic passes): for every column j in turn
///     q_j <- nearest code to w^_j + (D A)_j / A_jj,
/// which is the best code for that column. Groups are visited one after the other; D A of a group's columns
/// is one matrix product, changes within the group are applied column by column.
///
/// Scales: with the codes c_g (levels: code minus zero) of group g fixed,
///     in each sweep  s_g <- s_g + c_g (D A)_g / (c_g A_gg c_g^T)        for the group at hand;
///     exact refit    the G x G system M ds = r, M_gk = c_g A_gk c_k^T, r_g = c_g (D A)_g, for all groups of
/// a row at once; the rounding of each scale to its stored type is made up for by the scales still to be
/// rounded (back substitution on the factor of M: the same idea as GPTQ's, on scales). Scales that would
/// change their sign, or raise the loss, stay. Zero points stay. With one scale for the whole tensor the
/// scale stays; rows of more than 256 groups skip the exact refit.
///
/// target: W [out, in], any floating-point type. second_moment: H [in, in], float32 or float64, symmetric.
/// added: [in] in the plain order of columns, such as `DampedInverse::added`; empty for none. Group index and
/// zero points of `start` are kept and used.
/// kept: bool [out, in], undefined for all true: codes where it is false stay (those of a pruned matrix's
/// zeros). Cost: 2 out in^2 FLOP per sweep and 3 out in^2 for an exact refit, in float64 GEMM over panels of
/// rows. Rows are independent; the result is the same at any number of threads. Throws InvalidArgument when
/// shapes or types disagree.
RefineResult refine(const at::Tensor& target, const at::Tensor& second_moment,
                    const std::vector<double>& added, const QuantizedWeight& start,
                    const RefineOptions& options = {}, ThreadPool* pool = nullptr,
                    const at::Tensor& kept = {});

}  // namespace lcomp::quant
