#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "lcomp/core/options.h"

namespace lcomp::sparse {

/// How a matrix with many zeros is stored. Byte layouts: docs/formats.md.
enum class SparseFormat {
  kDense,       ///< as it is
  kBitmask,     ///< the non-zero values, and one bit per element
  kCsr,         ///< the non-zero values, and the column of each
  kTwoOfFour,   ///< two values for each four columns, and two bits of position for each
  kBlockedEll,  ///< whole blocks of 64 x 64, as many in each row of blocks
  kTiledCsl,    ///< tiles of 128 x 64, one word of value and place per non-zero element (Flash-LLM); 16-bit
                ///< types only
};

/// Rows and columns of a block of Blocked-ELL.
inline constexpr int64_t kStoredBlockEdge = 64;

/// The parts of a stored matrix, by the suffix of their names ("_values").
struct SparseTensors {
  int64_t out = 0;
  int64_t in = 0;
  std::map<std::string, at::Tensor> parts;

  int64_t bytes() const;
};

/// The suffix of a part that only this format has. kDense has none.
std::string_view marker_of(SparseFormat format);

/// Whether every four consecutive columns of each row have at most two elements other than 0.
bool is_two_of_four(const at::Tensor& matrix);

/// Bytes of the stored parts of an [out, in] matrix with `nonzero` elements of `element` bytes. Of tiled CSL
/// the most that padding can take.
int64_t sparse_bytes(SparseFormat format, int64_t out, int64_t in, int64_t nonzero, int64_t element);

/// Bytes of Blocked-ELL with `blocks` blocks in each row of blocks.
int64_t blocked_ell_bytes(int64_t out, int64_t in, int64_t blocks, int64_t element);

/// The format that takes least; dense where no other is smaller. `two_of_four` says whether kTwoOfFour may be
/// taken; Blocked-ELL and tiled CSL
/// are only taken when they are asked for.
SparseFormat smallest_format(int64_t out, int64_t in, int64_t nonzero, int64_t element, bool two_of_four);

/// matrix: [out, in] of float32, bfloat16 or float16. The round trip is exact to the bit, but that -0 becomes
/// 0. Throws InvalidArgument for other types, for a matrix that is not 2:4 where that is asked for, and for
/// kTiledCsl of float32.
SparseTensors encode(const at::Tensor& matrix, SparseFormat format);

/// The matrix again, in its own type.
at::Tensor decode(const SparseTensors& stored, SparseFormat format);

/// Checks parts as they come from a file, before anything computes with them;
/// CorruptFile("<name>.weight<suffix>") says what must hold. Nothing is allocated that the parts themselves
/// do not have.
void check_stored(const SparseTensors& stored, SparseFormat format, const std::string& name);

}  // namespace lcomp::sparse

namespace lcomp {
template <>
struct EnumNames<sparse::SparseFormat> {
  static constexpr std::array<std::string_view, 6> names = {"dense", "bitmask",     "csr",
                                                            "2:4",   "blocked_ell", "tiled_csl"};
};
}  // namespace lcomp
