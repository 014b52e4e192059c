#include "lcomp/quant/quantized_weight.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lcomp/core/checked.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/quant/nf4_storage.h"
#include "lcomp/quant/packing.h"

namespace lcomp::quant {
namespace {

std::string shape_text(const at::Tensor& tensor) {
  return fmt::format("[{}] of {}", fmt::join(tensor.sizes().begin(), tensor.sizes().end(), ", "),
                     dtype_name(tensor.scalar_type()));
}

void require(bool holds, const std::string& what, const at::Tensor& came) {
  if (!holds)
    throw InvalidArgument("QuantizedWeight", fmt::format("{}; received {}", what, shape_text(came)));
}

void require_stored(bool holds, const std::string& tensor, const std::string& what, const at::Tensor& came) {
  if (!holds) throw CorruptFile(tensor, fmt::format("{}; it has {}", what, shape_text(came)));
}

bool holds_codes(const at::Tensor& tensor, const QuantScheme& scheme) {
  if (scheme.format == NumberFormat::kFp8E4m3) return !tensor.bitwise_and(0x7F).eq(0x7F).any().item<bool>();
  return tensor.min().item<int64_t>() >= scheme.lowest_code() &&
         tensor.max().item<int64_t>() <= scheme.highest_code();
}

/// The scheme must be one for a matrix of the size that `tensor` says.
void require_stored_size(const QuantScheme& scheme, int64_t out, int64_t in, const std::string& tensor) {
  try {
    scheme.validate({out, in}, tensor);
  } catch (const InvalidArgument& error) {
    throw CorruptFile(error);
  }
}

/// out and in from `weight_shape`.
std::pair<int64_t, int64_t> stored_shape(const PackedTensors& tensors, const std::string& name) {
  const std::string where = name + ".weight_shape";
  if (!tensors.shape.defined())
    throw CorruptFile(where, "a packed weight must have its shape; the tensor is missing");
  require_stored(tensors.shape.numel() == 2 && at::isIntegralType(tensors.shape.scalar_type(), false), where,
                 "must hold two integers, out and in", tensors.shape);
  const at::Tensor shape = tensors.shape.to(at::kLong).contiguous();
  const int64_t out = shape.data_ptr<int64_t>()[0], in = shape.data_ptr<int64_t>()[1];
  constexpr int64_t kLargest = int64_t{1} << 31;
  if (out < 1 || in < 1 || out > kLargest || in > kLargest) {
    throw CorruptFile(where,
                      fmt::format("out and in must be positive and below 2^31; they are {} and {}", out, in));
  }
  return {out, in};
}

at::Tensor stored_codes(const PackedTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in,
                        const std::string& name) {
  const std::string where = name + ".weight_packed";
  const int bits = static_cast<int>(scheme.bits);
  if (!tensors.packed.defined())
    throw CorruptFile(where, "a packed weight must have its codes; the tensor is missing");
  const int64_t dense = packed_words(in, bits), per_word = 32 / bits, padded = ceil_div(in, per_word);
  const at::Tensor& packed = tensors.packed;
  const bool fits = packed.dim() == 2 && packed.scalar_type() == at::kInt && packed.size(0) == out &&
                    (packed.size(1) == dense || packed.size(1) == padded);
  require_stored(fits, where,
                 fmt::format("must be [{}, {}] of int32, as weight_shape and {} bits ask", out, dense, bits),
                 packed);
  return unpack_codes(packed, bits, in, 1);
}

at::Tensor stored_scale(const PackedTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in,
                        const std::string& name) {
  const std::string where = name + ".weight_scale";
  if (!tensors.scale.defined())
    throw CorruptFile(where, "a packed weight must have its scales; the tensor is missing");
  const int64_t rows = scheme.scale_rows(out), groups = scheme.groups(in);
  const at::Tensor& scale = tensors.scale;
  const bool flat = groups == 1 && scale.dim() == 1 && scale.size(0) == rows;
  const bool fits = flat || (scale.dim() == 2 && scale.size(0) == rows && scale.size(1) == groups);
  require_stored(
      fits && scale.is_floating_point(), where,
      fmt::format("must be [{}, {}] of a floating-point type, as '{}' asks", rows, groups, scheme.describe()),
      scale);
  if (!at::isfinite(scale).all().item<bool>()) throw CorruptFile(where, "scales must be finite; one is not");
  return scale.reshape({rows, groups});
}

/// Undefined for a symmetric scheme, whose zero points, if stored at all, must be zero.
at::Tensor stored_zero(const PackedTensors& tensors, const QuantScheme& scheme, int64_t out, int64_t in,
                       const std::string& name) {
  const std::string where = name + ".weight_zero_point";
  const int bits = static_cast<int>(scheme.bits);
  const int64_t rows = scheme.scale_rows(out), groups = scheme.groups(in);
  const at::Tensor& stored = tensors.zero_point;
  if (!stored.defined()) {
    if (scheme.symmetric) return {};
    throw CorruptFile(where, "an asymmetric scheme must have zero points; the tensor is missing");
  }
  at::Tensor zero;
  if (stored.scalar_type() == at::kChar && stored.numel() == rows * groups) {
    zero = stored.reshape({rows, groups});
  } else {
    const int64_t words = packed_words(rows, bits), per_word = 32 / bits, padded = ceil_div(rows, per_word);
    const bool fits = stored.dim() == 2 && stored.scalar_type() == at::kInt && stored.size(1) == groups &&
                      (stored.size(0) == words || stored.size(0) == padded);
    require_stored(fits, where,
                   fmt::format("must be [{}, {}] of int32 (packed along the rows)", words, groups), stored);
    zero = unpack_codes(stored, bits, rows, 0);
  }
  if (!scheme.symmetric) {
    if (!holds_codes(zero, scheme))
      throw CorruptFile(where, fmt::format("zero points must fit {} bits; one does not", bits));
    return zero;
  }
  if (at::count_nonzero(zero).item<int64_t>() != 0) {
    throw CorruptFile(where, "a symmetric scheme must have zero points of 0; one differs");
  }
  return {};
}

/// Undefined in plain order, which older libraries also mark by -1.
at::Tensor stored_group_index(const PackedTensors& tensors, const QuantScheme& scheme, int64_t in,
                              const std::string& name) {
  const at::Tensor& index = tensors.group_index;
  if (!index.defined()) return {};
  const std::string where = name + ".weight_g_idx";
  require_stored(index.dim() == 1 && index.size(0) == in && at::isIntegralType(index.scalar_type(), false),
                 where, fmt::format("must hold the group of each of the {} columns", in), index);
  if (index.eq(-1).any().item<bool>()) return {};
  const int64_t lowest = index.min().item<int64_t>(), highest = index.max().item<int64_t>(),
                groups = scheme.groups(in);
  if (lowest < 0 || highest >= groups) {
    throw CorruptFile(
        where, fmt::format("groups must be in [0, {}]; they are in [{}, {}]", groups - 1, lowest, highest));
  }
  return index.to(at::kInt);
}

}  // namespace

QuantizedWeight::QuantizedWeight(const QuantScheme& scheme, at::Tensor codes, at::Tensor scale,
                                 at::Tensor zero, at::Tensor group_index)
    : QuantizedWeight(scheme, std::move(codes), Grid{std::move(scale), std::move(zero), scheme.format},
                      std::move(group_index)) {}

QuantizedWeight::QuantizedWeight(const QuantScheme& scheme, at::Tensor codes, const Grid& grid,
                                 at::Tensor group_index)
    : scheme_(scheme),
      codes_(std::move(codes)),
      scale_(grid.scale),
      zero_(grid.zero),
      group_index_(std::move(group_index)),
      nested_(grid.nested) {
  require(codes_.dim() == 2 && codes_.scalar_type() == at::kChar, "codes must be an int8 matrix [out, in]",
          codes_);
  scheme_.validate(codes_.sizes(), "QuantizedWeight");
  if (!holds_codes(codes_, scheme_) && scheme_.format == NumberFormat::kFp8E4m3)
    throw InvalidArgument("QuantizedWeight", "codes of E4M3 must be finite; received NaN (0x7F or 0xFF)");
  if (!holds_codes(codes_, scheme_)) {
    throw InvalidArgument(
        "QuantizedWeight",
        fmt::format("codes must be in [{}, {}]; received [{}, {}]", scheme_.lowest_code(),
                    scheme_.highest_code(), codes_.min().item<int64_t>(), codes_.max().item<int64_t>()));
  }
  const int64_t rows = scheme_.scale_rows(codes_.size(0)), groups = scheme_.groups(codes_.size(1));
  const std::vector<int64_t> expected = {rows, groups};
  require(scale_.is_floating_point() && scale_.sizes() == expected,
          fmt::format("scales must be [{}, {}] of a floating-point type", rows, groups), scale_);
  if (zero_.defined() == scheme_.symmetric) {
    throw InvalidArgument("QuantizedWeight",
                          scheme_.symmetric ? "a symmetric scheme must have no zero points; received some"
                                            : "an asymmetric scheme must have zero points; received none");
  }
  if (zero_.defined()) {
    require(zero_.scalar_type() == at::kChar && zero_.sizes() == expected,
            fmt::format("zero points must be [{}, {}] of int8", rows, groups), zero_);
  }
  if (group_index_.defined()) {
    require(group_index_.scalar_type() == at::kInt && group_index_.dim() == 1 &&
                group_index_.size(0) == codes_.size(1),
            fmt::format("the group index must be [{}] of int32", codes_.size(1)), group_index_);
  }
  if (nested_.defined() != scheme_.double_quant) {
    throw InvalidArgument("QuantizedWeight", scheme_.double_quant
                                                 ? "double_quant must have nested scales; received none"
                                                 : "nested scales must have double_quant; it is false");
  }
}

QuantizedWeight QuantizedWeight::from_packed(const PackedTensors& tensors, const QuantScheme& scheme,
                                             const std::string& name) {
  const auto [out, in] = stored_shape(tensors, name);
  require_stored_size(scheme, out, in, name + ".weight_shape");
  at::Tensor codes = stored_codes(tensors, scheme, out, in, name);
  at::Tensor scale = stored_scale(tensors, scheme, out, in, name);
  at::Tensor zero = stored_zero(tensors, scheme, out, in, name);
  return {scheme, std::move(codes), std::move(scale), std::move(zero),
          stored_group_index(tensors, scheme, in, name)};
}

QuantizedWeight QuantizedWeight::from_plain(const PlainTensors& tensors, const QuantScheme& scheme,
                                            const std::string& name) {
  const std::string where = name + ".weight";
  if (!tensors.codes.defined())
    throw CorruptFile(where, "a quantized weight must have its codes; the tensor is missing");
  require_stored(tensors.codes.dim() == 2 && c10::elementSize(tensors.codes.scalar_type()) == 1, where,
                 "must be a matrix of bytes [out, in]", tensors.codes);
  const int64_t out = tensors.codes.size(0), in = tensors.codes.size(1);
  require_stored_size(scheme, out, in, where);
  const at::Tensor codes = tensors.codes.view(at::kChar);
  if (!holds_codes(codes, scheme)) {
    throw CorruptFile(where, scheme.format == NumberFormat::kInt
                                 ? fmt::format("codes must fit {} bits; one does not", scheme.bits)
                                 : "E4M3 numbers must be finite; one is NaN");
  }
  PackedTensors rest;
  rest.scale = tensors.scale;
  rest.zero_point = tensors.zero_point;
  at::Tensor scale = stored_scale(rest, scheme, out, in, name);
  return {scheme, codes, std::move(scale), stored_zero(rest, scheme, out, in, name)};
}

at::Tensor QuantizedWeight::dense() const {
  const int64_t out = out_features(), in = in_features(), groups = scheme_.groups(in);
  // (q - z) s in float32; in float64 for float64 scales, so that the only rounding is the last.
  const auto type = scale_.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor scale = scale_.to(type);
  if (group_index_.defined()) {
    const at::Tensor column_group = group_index_.to(at::kLong);
    at::Tensor q = code_values(codes_, scheme_.format, type);
    if (zero_.defined()) q.sub_(zero_.to(type).index_select(1, column_group));
    return q.mul_(scale.index_select(1, column_group)).to(at::kFloat);
  }
  at::Tensor q = code_values(codes_, scheme_.format, type).reshape({out, groups, in / groups});
  if (zero_.defined()) q.sub_(zero_.to(type).unsqueeze(2));
  return q.mul_(scale.unsqueeze(2)).reshape({out, in}).to(at::kFloat);
}

int64_t QuantizedWeight::bytes() const {
  const int64_t index = group_index_.defined() ? in_features() * 4 : 0;
  return packed_bytes(scheme_, out_features(), in_features(), scale_.scalar_type()) + index;
}

PackedTensors QuantizedWeight::pack() const {
  const int bits = static_cast<int>(scheme_.bits);
  const bool per_tensor = scheme_.granularity == Granularity::kTensor;
  PackedTensors tensors;
  tensors.packed = pack_codes(codes_, bits, 1);
  tensors.scale = per_tensor ? scale_.reshape({1}) : scale_;
  tensors.shape = at::tensor({out_features(), in_features()}, at::kLong);
  // The reference packs zero points of groups and channels only.
  if (zero_.defined()) tensors.zero_point = per_tensor ? zero_.reshape({1}) : pack_codes(zero_, bits, 0);
  tensors.group_index = group_index_;
  return tensors;
}

void QuantizedWeight::save_plain(TensorSink& sink, const std::string& name) const {
  const bool per_tensor = scheme_.granularity == Granularity::kTensor;
  if (scheme_.format == NumberFormat::kInt) {
    sink.add(name + ".weight", codes_);
  } else {
    sink.add_float8_e4m3(name + ".weight", codes_);
  }
  sink.add(name + ".weight_scale", per_tensor ? scale_.reshape({1}) : scale_);
  if (zero_.defined()) sink.add(name + ".weight_zero_point", per_tensor ? zero_.reshape({1}) : zero_);
}

void QuantizedWeight::save(TensorSink& sink, const std::string& name) const {
  if (scheme_.format == NumberFormat::kFp8E4m3) return save_plain(sink, name);
  if (scheme_.format == NumberFormat::kNf4) return save_nf4(*this, sink, name);
  const PackedTensors tensors = pack();
  sink.add(name + ".weight_packed", tensors.packed);
  sink.add(name + ".weight_scale", tensors.scale);
  sink.add(name + ".weight_shape", tensors.shape);
  if (tensors.zero_point.defined()) sink.add(name + ".weight_zero_point", tensors.zero_point);
  if (tensors.group_index.defined()) sink.add(name + ".weight_g_idx", tensors.group_index);
}

int64_t packed_bytes(const QuantScheme& scheme, int64_t out, int64_t in, c10::ScalarType scale_type) {
  if (scheme.format == NumberFormat::kNf4) return nf4_bytes(scheme, out, in);
  const int bits = static_cast<int>(scheme.bits);
  const int64_t rows = scheme.scale_rows(out), groups = scheme.groups(in);
  const int64_t scales = rows * groups * static_cast<int64_t>(c10::elementSize(scale_type));
  if (scheme.format == NumberFormat::kFp8E4m3) return out * in + scales;
  const int64_t codes = out * packed_words(in, bits) * 4;
  const bool per_tensor = scheme.granularity == Granularity::kTensor;
  const int64_t zeros = scheme.symmetric ? 0 : per_tensor ? 1 : packed_words(rows, bits) * groups * 4;
  return codes + scales + zeros + 2 * 8;
}

}  // namespace lcomp::quant
