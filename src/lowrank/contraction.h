#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace lcomp::lowrank {

/// matrix [r, c] times each of state [batch, c, width]: [batch, r, width], float32.
at::Tensor contract(const at::Tensor& matrix, const at::Tensor& state);

/// Rows of Kronecker products, summed over the rank: vectors[j] is [count, rank, q_j], the result
/// [count, q_1 ... q_d] = sum_r v_1 (x) v_2 ... (x) v_d, the first digit the most significant.
at::Tensor kronecker_rows(const std::vector<at::Tensor>& vectors);

/// Digits of ids in a number system with these bases, the first the most significant: int64 [count] each.
std::vector<at::Tensor> digits_of(const at::Tensor& ids, const std::vector<int64_t>& bases);

/// Calls `piece(begin, count)` for pieces of [0, count) of at most `most` elements.
void in_pieces(int64_t count, int64_t most, const std::function<void(int64_t begin, int64_t size)>& piece);

/// Elements that a temporary of `apply` and `rows` may have: 64 MB of float32.
constexpr int64_t kMostTemporary = int64_t{1} << 24;

/// How many vectors, each of which needs `each` elements of temporary memory, are worked on at a time.
int64_t piece_size(int64_t each);

}  // namespace lcomp::lowrank
