#include "lcomp/quant/llm_int8.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <mutex>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/core/option_ranges.h"
#include "lcomp/linalg/int8_product.h"
#include "lcomp/quant/grid.h"
#include "linalg/value_range.h"
#include "quant/activation_kernels.h"
#include "quant/int8_scratch.h"

namespace lcomp::quant {
namespace {

constexpr const char* kOutlierWeight = "OutlierInt8Weight";
void require(bool holds, const char* what, const at::Tensor& tensor) {
  if (holds) return;
  throw InvalidArgument(kOutlierWeight, fmt::format("{}; received {} dimensions of {}", what, tensor.dim(),
                                                    dtype_name(tensor.scalar_type())));
}

/// Columns of x with an element of at least the threshold. Throws when an element is not finite.
std::vector<int64_t> outlier_columns(const float* x, int64_t tokens, int64_t in, double threshold) {
  std::vector<float> largest(static_cast<size_t>(in), 0);
  for (int64_t t = 0; t < tokens; ++t) {
    float lowest = 0, highest = 0;
    if (!linalg::value_range(x + t * in, in, &lowest, &highest))
      throw NumericalError(kOutlierWeight,
                           fmt::format("the input must be finite; that of token {} is not", t));
    // Most tokens have none: their columns need no look.
    if (std::max(-lowest, highest) < static_cast<float>(threshold)) continue;
    for (int64_t j = 0; j < in; ++j)
      largest[static_cast<size_t>(j)] = std::max(largest[static_cast<size_t>(j)], std::abs(x[t * in + j]));
  }
  std::vector<int64_t> columns;
  for (int64_t j = 0; j < in; ++j) {
    if (largest[static_cast<size_t>(j)] >= static_cast<float>(threshold)) columns.push_back(j);
  }
  return columns;
}

/// The elements of one token in `columns`, set to 0 in `inliers` and handed out; returns the largest
/// magnitude below the threshold among them.
float take_outliers(const std::vector<int64_t>& columns, float threshold, float* inliers, float* outliers) {
  float below = 0;
  for (size_t k = 0; k < columns.size(); ++k) {
    const float value = std::exchange(inliers[columns[k]], 0.0F);
    outliers[k] = value;
    if (std::abs(value) < threshold) below = std::max(below, std::abs(value));
  }
  return below;
}

}  // namespace

void LlmInt8Options::visit(FieldVisitor& v) {
  v.field("threshold", threshold, {1e-6, 1e9},
          "magnitude from which an activation makes its column an outlier column");
  v.field(
      "outlier_weights", outlier_weights,
      "weights that multiply outlier columns: the original ones of the columns that the calibration found "
      "(calibrated) or of all (original), or the decoded ones (dequantized)");
  v.field("outlier_maximum", outlier_maximum,
          "elements that set the scale of a token: those outside of outlier columns (columns), or all below "
          "the threshold (elements)");
}

struct OutlierInt8Weight::Layout {
  std::once_flag made;
  std::optional<linalg::Int8Matrix> codes;
  std::vector<int64_t> kept;  // per column: its position among the kept ones, or -1
};

OutlierInt8Weight::OutlierInt8Weight(const LlmInt8Options& options, at::Tensor codes, at::Tensor scale,
                                     at::Tensor index, at::Tensor original)
    : options_(options),
      codes_(std::move(codes)),
      scale_(std::move(scale)),
      index_(std::move(index)),
      original_(std::move(original)),
      layout_(std::make_shared<Layout>()) {
  check_ranges([this](FieldVisitor& v) { options_.visit(v); }, kOutlierWeight);
  require(codes_.dim() == 2 && codes_.scalar_type() == at::kChar, "codes must be an int8 matrix [out, in]",
          codes_);
  const int64_t out = codes_.size(0), in = codes_.size(1);
  require(
      scale_.scalar_type() == at::kFloat && scale_.dim() == 2 && scale_.size(0) == out && scale_.size(1) == 1,
      "scales must be float32 [out, 1]", scale_);
  if (index_.defined() != original_.defined()) {
    throw InvalidArgument(kOutlierWeight, "an index of outlier columns and their weights must come together");
  }
  if (!index_.defined()) return;
  require(index_.dim() == 1 && index_.scalar_type() == at::kInt, "the outlier index must be int32 [kept]",
          index_);
  require(original_.dim() == 2 && original_.is_floating_point() && original_.size(0) == out &&
              original_.size(1) == index_.size(0),
          "outlier weights must be [out, kept] of a floating-point type", original_);
  index_ = index_.contiguous();
  for (int64_t k = 0, before = -1; k < index_.size(0); ++k) {
    const int64_t column = index_.data_ptr<int32_t>()[k];
    if (column <= before || column >= in) {
      throw InvalidArgument(
          kOutlierWeight,
          fmt::format("outlier columns must ascend and be below {}; {} came after {}", in, column, before));
    }
    before = column;
  }
}

at::Tensor OutlierInt8Weight::dense() const {
  return codes_.to(at::kFloat).mul_(scale_);
}

const OutlierInt8Weight::Layout& OutlierInt8Weight::layout() const {
  std::call_once(layout_->made, [this] {
    layout_->codes.emplace(codes_);
    layout_->kept.assign(static_cast<size_t>(in_features()), -1);
    for (int64_t k = 0; index_.defined() && k < index_.size(0); ++k)
      layout_->kept[static_cast<size_t>(index_.data_ptr<int32_t>()[k])] = k;
  });
  return *layout_;
}

/// [out, columns], float32: original where kept, else decoded.
at::Tensor OutlierInt8Weight::outlier_columns_of_weight(const std::vector<int64_t>& columns) const {
  std::vector<at::Tensor> parts;
  for (const int64_t column : columns) {
    const int64_t kept = layout().kept[static_cast<size_t>(column)];
    parts.push_back(kept >= 0 ? original_.select(1, kept).to(at::kFloat)
                              : codes_.select(1, column).to(at::kFloat).mul_(scale_.select(1, 0)));
  }
  return at::stack(parts, 1);
}

at::Tensor OutlierInt8Weight::apply(const at::Tensor& x) const {
  const int64_t in = in_features(), out = out_features();
  require(x.dim() == 2 && x.size(1) == in && x.scalar_type() == at::kFloat,
          "x must be a float32 matrix [tokens, in]", x);
  const at::Tensor plain = x.contiguous();
  const int64_t tokens = plain.size(0);
  const float* values = plain.data_ptr<float>();
  const std::vector<int64_t> columns = outlier_columns(values, tokens, in, options_.threshold);
  const auto outliers = static_cast<int64_t>(columns.size());
  const auto threshold = static_cast<float>(options_.threshold);

  at::Tensor taken = at::empty({tokens, outliers}, at::kFloat);
  at::Tensor y = at::empty({tokens, out}, at::kFloat);
  linalg::Scratch scratch;
  auto* codes = reinterpret_cast<int8_t*>(scratch.floats(kCodes, (kTokenChunk * in + 3) / 4));
  auto* sums = reinterpret_cast<int32_t*>(scratch.floats(kSums, kTokenChunk * out));
  float* inliers = scratch.floats(kInliers, in);
  std::vector<float> scales(static_cast<size_t>(kTokenChunk));
  const Layout& made = layout();
  for (int64_t begin = 0; begin < tokens; begin += kTokenChunk) {
    const int64_t rows = std::min(kTokenChunk, tokens - begin);
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(values + (begin + r) * in, in, inliers);
      const float below =
          take_outliers(columns, threshold, inliers, taken.data_ptr<float>() + (begin + r) * outliers);
      float lowest = 0, highest = 0;
      linalg::value_range(inliers, in, &lowest, &highest);
      float largest = std::max(-lowest, highest);
      if (options_.outlier_maximum == OutlierMaximum::kElements) largest = std::max(largest, below);
      // A token without anything but outliers has codes 0 whatever its scale.
      const float scale = largest > 0 ? largest / 127 : 1.0F;
      scales[static_cast<size_t>(r)] = scale;
      kernels::encode_values(inliers, in, scale, 0, -127, 127, codes + r * in);
    }
    made.codes->multiply(codes, rows, sums, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      kernels::scale_sums(sums + r * out, out, {scales[static_cast<size_t>(r)], 0, 0}, made.codes->row_sums(),
                          scale_.data_ptr<float>(), nullptr, y.data_ptr<float>() + (begin + r) * out);
    }
  }
  if (outliers == 0) return y;
  const linalg::PackedMatrix weights({outlier_columns_of_weight(columns)}, linalg::Precision::kF32);
  weights.multiply(taken.data_ptr<float>(), tokens, y.data_ptr<float>(), true, scratch);
  return y;
}

int64_t llm_int8_bytes(int64_t out, int64_t in, int64_t kept, at::ScalarType stored) {
  return out * in + out * 4 + kept * 4 + kept * out * static_cast<int64_t>(c10::elementSize(stored));
}

int64_t OutlierInt8Weight::bytes() const {
  return index_.defined()
             ? llm_int8_bytes(out_features(), in_features(), index_.size(0), original_.scalar_type())
             : llm_int8_bytes(out_features(), in_features(), 0, at::kFloat);
}

std::string OutlierInt8Weight::describe() const {
  const std::string kept =
      index_.defined() ? fmt::format("{} columns of {}", index_.size(0), dtype_name(original_.scalar_type()))
                       : "none";
  return fmt::format("llm.int8, outliers from {}, kept: {}", options_.threshold, kept);
}

void OutlierInt8Weight::save(TensorSink& sink, const std::string& name) const {
  sink.add(name + ".weight", codes_);
  sink.add(name + ".weight_scale", scale_);
  if (!index_.defined()) return;
  sink.add(name + ".weight_outlier_index", index_);
  sink.add(name + ".weight_outliers", original_);
}

OutlierInt8Weight llm_int8(const at::Tensor& weight, const LlmInt8Options& options,
                           const at::Tensor& calibrated, at::ScalarType stored) {
  if (weight.dim() != 2 || !weight.is_floating_point() || weight.numel() == 0) {
    throw InvalidArgument("llm_int8", fmt::format("the weight must be a floating-point matrix [out, in]; "
                                                  "received {} dimensions of {}",
                                                  weight.dim(), dtype_name(weight.scalar_type())));
  }
  check_finite(weight, "llm_int8");
  const at::Tensor w = weight.to(at::kDouble);
  // Codes are those of the stored scale.
  at::Tensor scale = (w.abs().amax(1, true) / 127).to(at::kFloat);
  scale.masked_fill_(scale == 0, std::numeric_limits<float>::epsilon());
  at::Tensor codes = (w / scale.to(at::kDouble)).round_().clamp_(-127, 127).to(at::kChar);
  at::Tensor kept;
  if (options.outlier_weights == OutlierWeights::kOriginal) {
    kept = at::arange(weight.size(1), at::kLong);
  } else if (options.outlier_weights == OutlierWeights::kCalibrated && calibrated.defined()) {
    if (calibrated.dim() != 1 || calibrated.size(0) != weight.size(1))
      throw InvalidArgument("llm_int8", fmt::format("the calibrated columns must be [{}]; received [{}]",
                                                    weight.size(1), fmt::join(calibrated.sizes(), ", ")));
    kept = calibrated.nonzero().flatten();
  }
  if (!kept.defined() || kept.numel() == 0) return {options, codes, scale};
  return {options, codes, scale, kept.to(at::kInt), weight.index_select(1, kept).to(stored).contiguous()};
}

}  // namespace lcomp::quant
