#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lcomp/model/block.h"

namespace lcomp::model {

/// Which row of its absorber makes each input channel of a group: int64 `[in]`. Channel j is row j, but for
/// the attention's output under grouped query attention, where the query heads that read one value head share
/// its rows. Scales of channels with the same row must be equal. Undefined when the group has no absorber.
at::Tensor absorber_rows(const Block& block, size_t group);

/// Divides what makes the input of `group` by `scale` and multiplies the columns of the operators that read
/// it by the same, which leaves the function of the block as it is:
///
///     norm -> linears        g' = g / s,           W' = W diag(s)     (every operator of the group)
///     v_proj -> o_proj       rows and bias of v / s: attention mixes tokens, not channels
///     up_proj -> down_proj   rows and bias of up / s: act(gate) * up is linear in up
///
/// Norms and biases keep the type they are stored in, often bfloat16. The divided one is rounded to it once,
/// and the columns are multiplied by the quotient of the old and the new stored value: that is the scale that
/// was really applied, and it is returned (float64 `[in]`). So the product is exact whatever the type. Where
/// the quotient is no use (a value of 0, or one that leaves the type's range) the channel keeps its scale
/// (bias) or gets scale 1 (norm). Weights become dense float32; whoever stores them rounds them.
///
/// scale: `[in]`, positive and finite, equal where `absorber_rows` says the same row. Cost O(parameters of
/// the group and its absorber). Errors: InvalidArgument for another shape, values or unequal sharers, and for
/// a group without absorber.
at::Tensor fold_input_scale(Block& block, size_t group, const at::Tensor& scale);

}  // namespace lcomp::model
