#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/core/threads.h"
#include "lcomp/core/weight.h"

namespace lcomp::quant {

/// Which weights multiply the outlier columns of an input.
enum class OutlierWeights {
  kCalibrated,   ///< the original ones of columns that had outliers in the calibration, which are stored
                 ///< beside the codes; the decoded ones of columns that turn up later
  kOriginal,     ///< the original ones of all columns: the paper. Stores the whole matrix a second time
  kDequantized,  ///< the decoded ones: the authors' code, where the original is gone
};

/// Over which elements the largest magnitude of a token is taken.
enum class OutlierMaximum {
  kColumns,   ///< those outside of the outlier columns: the paper
  kElements,  ///< all below the threshold, those in outlier columns too: the authors' code
};

struct LlmInt8Options {
  double threshold = 6.0;
  OutlierWeights outlier_weights = OutlierWeights::kCalibrated;
  OutlierMaximum outlier_maximum = OutlierMaximum::kColumns;

  void visit(FieldVisitor& v);
};

/// LLM.int8(): Dettmers, Lewis, Belkada, Zettlemoyer, *LLM.int8(): 8-bit Matrix Multiplication for
/// Transformers at Scale*, NeurIPS 2022, section 3. With O the input columns j that have some |x_tj| >=
/// threshold among the tokens at hand,
///   y = (c_x / 127) (c_w / 127) (q_x q_w^T over the columns not in O) + X_O W_O^T,
/// q_x = round(127 x / c_x), c_x the largest magnitude of the token outside of the outliers; q_w = round(127
/// w / c_w), c_w the largest magnitude of the row. The first product is exact in 32-bit integers, the second
/// is in float32. Nothing is minimised.
///
/// The set O depends on the tokens of one call to `apply`: those of one sequence.
/// Stored as `<name>.weight` int8 [out, in], `<name>.weight_scale` float32 [out, 1] = c_w / 127 and, as far
/// as original columns are kept, `<name>.weight_outlier_index` int32 [kept] and `<name>.weight_outliers`
/// [out, kept].
class OutlierInt8Weight final : public Weight {
 public:
  /// codes: int8 [out, in] in [-127, 127]. scale: float32 [out, 1]. index: int32 [kept], ascending, or
  /// undefined for none; original: [out, kept], of a floating-point type. Throws InvalidArgument when a
  /// shape, type or index disagrees.
  OutlierInt8Weight(const LlmInt8Options& options, at::Tensor codes, at::Tensor scale, at::Tensor index = {},
                    at::Tensor original = {});

  int64_t out_features() const override { return codes_.size(0); }
  int64_t in_features() const override { return codes_.size(1); }
  bool quantizes_input() const override { return true; }
  /// The decoded codes.
  at::Tensor dense() const override;
  /// Throws NumericalError when x has NaN or infinity.
  at::Tensor apply(const at::Tensor& x) const override;
  int64_t bytes() const override;
  std::string describe() const override;
  void save(TensorSink& sink, const std::string& name) const override;

  const LlmInt8Options& options() const { return options_; }
  const at::Tensor& codes() const { return codes_; }
  const at::Tensor& scale() const { return scale_; }
  const at::Tensor& outlier_index() const { return index_; }
  const at::Tensor& outlier_weight() const { return original_; }

 private:
  struct Layout;

  const Layout& layout() const;
  at::Tensor outlier_columns_of_weight(const std::vector<int64_t>& columns) const;

  LlmInt8Options options_;
  at::Tensor codes_;
  at::Tensor scale_;
  at::Tensor index_;
  at::Tensor original_;
  std::shared_ptr<Layout> layout_;  // made by the first `apply`; copies share it
};

/// weight: [out, in], any floating-point type. `calibrated`: bool [in], the columns that had outliers in the
/// calibration; only read for kCalibrated, where undefined means none. `stored`: the type of kept columns.
/// Rows of zeros get the scale 2^-23. Cost O(out in). Throws InvalidArgument("[llm_int8] ...") for weights
/// that are no finite matrix.
OutlierInt8Weight llm_int8(const at::Tensor& weight, const LlmInt8Options& options,
                           const at::Tensor& calibrated = {}, at::ScalarType stored = at::kHalf);

/// Bytes that `save` stores for a matrix [out, in] of which `kept` columns keep their original weights.
int64_t llm_int8_bytes(int64_t out, int64_t in, int64_t kept, at::ScalarType stored);

}  // namespace lcomp::quant

namespace lcomp {

template <>
struct EnumNames<quant::OutlierWeights> {
  static constexpr std::array<std::string_view, 3> names = {"calibrated", "original", "dequantized"};
};
template <>
struct EnumNames<quant::OutlierMaximum> {
  static constexpr std::array<std::string_view, 2> names = {"columns", "elements"};
};

}  // namespace lcomp
