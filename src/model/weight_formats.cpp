#include "model/weight_formats.h"

#include <ATen/ATen.h>

#include <array>

#include "lcomp/quant/quantized_weight.h"

namespace lcomp::model {
namespace {

using quant::NumberFormat;
using quant::QuantizedWeight;

/// The scheme of a quantized weight that saves itself in `format`.
std::optional<StorageGroup> describe_as(std::string_view format, NumberFormat numbers, const Weight& weight) {
  const auto* quantized = dynamic_cast<const QuantizedWeight*>(&weight);
  if (quantized == nullptr || quantized->scheme().format != numbers) return std::nullopt;
  return StorageGroup{.targets = {}, .scheme = quantized->scheme(), .format = std::string(format)};
}

WeightPtr load_packed(const StoredOperator& op, const StorageGroup& group) {
  quant::PackedTensors packed;
  packed.packed = op.read(".weight_packed");
  packed.scale = op.read(".weight_scale");
  packed.shape = op.read_if(".weight_shape");
  packed.zero_point = op.read_if(".weight_zero_point");
  packed.group_index = op.read_if(".weight_g_idx");
  return std::make_shared<QuantizedWeight>(
      QuantizedWeight::from_packed(packed, group.scheme, op.info().name));
}

std::optional<StorageGroup> describe_packed(const Weight& weight) {
  return describe_as("pack-quantized", NumberFormat::kInt, weight);
}

/// Codes of a byte each: int-quantized and float-quantized.
WeightPtr load_plain(const StoredOperator& op, const StorageGroup& group) {
  quant::PlainTensors plain;
  plain.codes = op.read_codes(".weight");
  plain.scale = op.read(".weight_scale");
  plain.zero_point = op.read_if(".weight_zero_point");
  if (group.block_rows > 0) {
    // To every row the scales of its block: then they are the scales of groups of columns.
    const auto rows_of_blocks = [&](const at::Tensor& blocks) {
      const int64_t rows = std::min(plain.codes.size(0), blocks.size(0) * group.block_rows);
      return blocks.repeat_interleave(group.block_rows, 0).narrow(0, 0, rows);
    };
    plain.scale = rows_of_blocks(plain.scale);
    if (plain.zero_point.defined()) plain.zero_point = rows_of_blocks(plain.zero_point);
  }
  return std::make_shared<QuantizedWeight>(QuantizedWeight::from_plain(plain, group.scheme, op.info().name));
}

std::optional<StorageGroup> describe_none(const Weight&) {
  return std::nullopt;
}

std::optional<StorageGroup> describe_float(const Weight& weight) {
  return describe_as("float-quantized", NumberFormat::kFp8E4m3, weight);
}

constexpr std::array kFormats = {
    WeightFormat{"pack-quantized", ".weight_packed", io::StoredDtype::kI32, NumberFormat::kInt, load_packed,
                 describe_packed},
    WeightFormat{"int-quantized", ".weight", io::StoredDtype::kI8, NumberFormat::kInt, load_plain,
                 describe_none},
    WeightFormat{"float-quantized", ".weight", io::StoredDtype::kF8E4M3, NumberFormat::kFp8E4m3, load_plain,
                 describe_float},
};

}  // namespace

bool WeightFormat::is_stored(const io::Checkpoint& checkpoint, const std::string& op) const {
  const std::string tensor = op + std::string(marker);
  return checkpoint.contains(tensor) && checkpoint.info(tensor).dtype == marker_dtype;
}

std::span<const WeightFormat> weight_formats() {
  return kFormats;
}

const WeightFormat* find_weight_format(std::string_view name) {
  for (const WeightFormat& format : kFormats) {
    if (format.name == name) return &format;
  }
  return nullptr;
}

std::optional<StorageGroup> storage_group(const Weight& weight) {
  for (const WeightFormat& format : kFormats) {
    if (auto group = format.describe(weight)) return group;
  }
  return std::nullopt;
}

}  // namespace lcomp::model
