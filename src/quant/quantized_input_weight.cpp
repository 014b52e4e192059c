#include "lcomp/quant/quantized_input_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <mutex>
#include <vector>

#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/linalg/int8_product.h"
#include "linalg/value_range.h"
#include "quant/activation_kernels.h"
#include "quant/int8_scratch.h"

namespace lcomp::quant {
namespace {

constexpr const char* kRoundingWeight = "QuantizedInputWeight";
/// |(q_x - z_x) (q_w - z_w)| is at most 2^14, 2^15 with one zero point, 2^16 with two.
void check_columns(int64_t in, bool zero_of_input, bool zero_of_weight) {
  const int64_t most = ((int64_t{1} << 31) - 1) >> (14 + (zero_of_input ? 1 : 0) + (zero_of_weight ? 1 : 0));
  if (in <= most) return;
  throw InvalidArgument(
      kRoundingWeight,
      fmt::format("the weight must have at most {} columns, so that sums fit 32 bits; it has {}", most, in));
}

void check_input(const at::Tensor& x, int64_t in) {
  if (x.dim() == 2 && x.size(1) == in && x.scalar_type() == at::kFloat) return;
  throw InvalidArgument(
      kRoundingWeight,
      fmt::format("x must be a float32 matrix [tokens, {}]; received {} dimensions of {}, {} "
                  "elements",
                  in, x.dim(), dtype_name(x.scalar_type()), x.numel()));
}

void token_ranges(const float* x, int64_t tokens, int64_t in, float* lowest, float* highest) {
  for (int64_t t = 0; t < tokens; ++t) {
    if (linalg::value_range(x + t * in, in, lowest + t, highest + t)) continue;
    throw NumericalError(kRoundingWeight,
                         fmt::format("the input must be finite; that of token {} is not", t));
  }
}

/// Eight bits are stored a byte each, which is what other programs expect beside quantized activations.
bool stores_bytes(const QuantScheme& scheme) {
  return scheme.code_bits() == 8;
}

}  // namespace

struct QuantizedInputWeight::Layout {
  std::once_flag made;
  std::optional<linalg::Int8Matrix> codes;
  std::vector<float> scales;                    // [out]
  std::vector<int32_t> zeros;                   // [out]; empty when symmetric
  std::optional<linalg::PackedMatrix> decoded;  // for simulation
};

QuantizedInputWeight::QuantizedInputWeight(QuantizedWeight weight, const ActivationScheme& activations,
                                           const std::optional<ActivationGrid>& grid)
    : weight_(std::move(weight)),
      activations_(activations),
      grid_(grid),
      layout_(std::make_shared<Layout>()) {
  activations_.validate(kRoundingWeight);
  if (weight_.scheme().format == NumberFormat::kNf4) {
    throw InvalidArgument(kRoundingWeight,
                          fmt::format("the weight must be of integers or E4M3 numbers; its format is {}",
                                      name_of(weight_.scheme().format)));
  }
  if (activations_.dynamic == grid_.has_value()) {
    throw InvalidArgument(kRoundingWeight,
                          activations_.dynamic
                              ? "dynamic activations must have no calibrated grid; received one"
                              : "static activations must have a calibrated grid; received none");
  }
  check_columns(in_features(), !activations_.symmetric, !weight_.scheme().symmetric);
}

bool QuantizedInputWeight::has_int8_product() const {
  const bool integers =
      weight_.scheme().format == NumberFormat::kInt && activations_.format == NumberFormat::kInt;
  return integers && weight_.scheme().granularity != Granularity::kGroup;
}

const QuantizedInputWeight::Layout& QuantizedInputWeight::layout() const {
  std::call_once(layout_->made, [this] {
    if (!has_int8_product()) {
      layout_->decoded.emplace(std::vector{dense()}, linalg::Precision::kF32);
      return;
    }
    layout_->codes.emplace(weight_.codes());
    const at::Tensor scales = weight_.scale().to(at::kFloat).expand({out_features(), 1}).contiguous();
    layout_->scales.assign(scales.data_ptr<float>(), scales.data_ptr<float>() + out_features());
    if (!weight_.zero().defined()) return;
    const at::Tensor zeros = weight_.zero().to(at::kInt).expand({out_features(), 1}).contiguous();
    layout_->zeros.assign(zeros.data_ptr<int32_t>(), zeros.data_ptr<int32_t>() + out_features());
  });
  return *layout_;
}

at::Tensor QuantizedInputWeight::apply(const at::Tensor& x) const {
  check_input(x, in_features());
  if (has_int8_product()) return int8_product(x.contiguous());
  const at::Tensor rounded =
      dequantize_activations(quantize_activations(x, activations_, grid_)).contiguous();
  at::Tensor y = at::empty({x.size(0), out_features()}, at::kFloat);
  linalg::Scratch scratch;
  layout().decoded->multiply(rounded.data_ptr<float>(), x.size(0), y.data_ptr<float>(), false, scratch);
  return y;
}

at::Tensor QuantizedInputWeight::simulate(const at::Tensor& x) const {
  check_input(x, in_features());
  return at::matmul(dequantize_activations(quantize_activations(x, activations_, grid_)), dense().t());
}

at::Tensor QuantizedInputWeight::int8_product(const at::Tensor& x) const {
  const Layout& made = layout();
  const int64_t tokens = x.size(0), in = in_features(), out = out_features();
  const float* values = x.data_ptr<float>();
  std::vector<float> lowest(static_cast<size_t>(tokens)), highest(static_cast<size_t>(tokens));
  token_ranges(values, tokens, in, lowest.data(), highest.data());
  ActivationGrid grid;
  if (grid_) {
    grid = *grid_;
  } else if (activations_.granularity == ActivationGranularity::kTensor && tokens > 0) {
    grid = activation_grid(*std::min_element(lowest.begin(), lowest.end()),
                           *std::max_element(highest.begin(), highest.end()), activations_);
  }
  const auto least = static_cast<float>(activations_.lowest_code());
  const auto most = static_cast<float>(activations_.highest_code());
  const bool per_token = activations_.granularity == ActivationGranularity::kToken;
  const int32_t* weight_zeros = made.zeros.empty() ? nullptr : made.zeros.data();

  at::Tensor y = at::empty({tokens, out}, at::kFloat);
  linalg::Scratch scratch;
  auto* codes = reinterpret_cast<int8_t*>(scratch.floats(kCodes, (kTokenChunk * in + 3) / 4));
  auto* sums = reinterpret_cast<int32_t*>(scratch.floats(kSums, kTokenChunk * out));
  std::vector<kernels::TokenScale> token_scales(static_cast<size_t>(kTokenChunk));
  for (int64_t begin = 0; begin < tokens; begin += kTokenChunk) {
    const int64_t rows = std::min(kTokenChunk, tokens - begin);
    for (int64_t r = 0; r < rows; ++r) {
      const auto t = static_cast<size_t>(begin + r);
      if (per_token) grid = activation_grid(lowest[t], highest[t], activations_);
      kernels::encode_values(values + (begin + r) * in, in, grid.scale, static_cast<float>(grid.zero), least,
                             most, codes + r * in);
      kernels::TokenScale& token = token_scales[static_cast<size_t>(r)];
      token = {grid.scale, grid.zero, 0};
      if (weight_zeros != nullptr)
        token.sum = kernels::sum_codes(codes + r * in, in) - static_cast<int32_t>(in) * grid.zero;
    }
    made.codes->multiply(codes, rows, sums, scratch);
    for (int64_t r = 0; r < rows; ++r) {
      kernels::scale_sums(sums + r * out, out, token_scales[static_cast<size_t>(r)], made.codes->row_sums(),
                          made.scales.data(), weight_zeros, y.data_ptr<float>() + (begin + r) * out);
    }
  }
  return y;
}

int64_t QuantizedInputWeight::bytes() const {
  return quantized_input_bytes(weight_.scheme(), activations_, out_features(), in_features(),
                               weight_.scale().scalar_type());
}

std::string QuantizedInputWeight::describe() const {
  return weight_.describe() + "; " + activations_.describe();
}

void QuantizedInputWeight::save(TensorSink& sink, const std::string& name) const {
  if (stores_bytes(weight_.scheme())) {
    weight_.save_plain(sink, name);
  } else {
    weight_.save(sink, name);
  }
  if (!grid_) return;
  sink.add(name + ".input_scale", at::tensor({grid_->scale}).to(weight_.scale().scalar_type()));
  if (!activations_.symmetric)
    sink.add(name + ".input_zero_point", at::tensor({grid_->zero}, at::kInt).to(at::kChar));
}

int64_t quantized_input_bytes(const QuantScheme& scheme, const ActivationScheme& activations, int64_t out,
                              int64_t in, at::ScalarType scale_type) {
  int64_t bytes = packed_bytes(scheme, out, in, scale_type);
  if (stores_bytes(scheme)) {
    const int64_t scales = scheme.scale_rows(out) * scheme.groups(in);
    bytes =
        out * in + scales * (static_cast<int64_t>(c10::elementSize(scale_type)) + (scheme.symmetric ? 0 : 1));
  }
  if (activations.dynamic) return bytes;
  return bytes + static_cast<int64_t>(c10::elementSize(scale_type)) + (activations.symmetric ? 0 : 1);
}

}  // namespace lcomp::quant
