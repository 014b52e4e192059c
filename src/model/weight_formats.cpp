#include "model/weight_formats.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

#include "io/json_util.h"
#include "lcomp/core/error.h"
#include "lcomp/core/product_weight.h"
#include "lcomp/core/shared_weight.h"
#include "lcomp/core/sum_weight.h"
#include "lcomp/lowrank/identity_rows_weight.h"
#include "lcomp/lowrank/kronecker_sum_weight.h"
#include "lcomp/lowrank/morpheme_weight.h"
#include "lcomp/lowrank/row_patch_weight.h"
#include "lcomp/lowrank/tensor_train_weight.h"
#include "lcomp/quant/codebook_weight.h"
#include "lcomp/quant/llm_int8.h"
#include "lcomp/quant/nf4_storage.h"
#include "lcomp/quant/quantized_input_weight.h"
#include "lcomp/quant/quantized_weight.h"
#include "lcomp/sparse/sparse_weight.h"
#include "lowrank/stored_parts.h"

namespace lcomp::model {
namespace {

using quant::NumberFormat;
using quant::QuantizedInputWeight;
using quant::QuantizedWeight;

/// The tensor that says how bitsandbytes' 4-bit weight is to be read.
constexpr std::string_view kNf4State = ".weight.quant_state.bitsandbytes__nf4";

constexpr const char* kLlmInt8 = "lcomp-llm-int8";

/// The group of a quantized weight, or of one that quantizes its input too, when that is `with_input`.
std::optional<StorageGroup> describe_as(std::string_view format, NumberFormat numbers, bool with_input,
                                        const Weight& weight) {
  const auto* whole = dynamic_cast<const QuantizedInputWeight*>(&weight);
  if ((whole != nullptr) != with_input) return std::nullopt;
  const auto* quantized = whole != nullptr ? &whole->weight() : dynamic_cast<const QuantizedWeight*>(&weight);
  if (quantized == nullptr || quantized->scheme().format != numbers) return std::nullopt;
  StorageGroup group{.targets = {}, .scheme = quantized->scheme(), .format = std::string(format)};
  if (whole != nullptr) group.input_activations = whole->activations();
  return group;
}

/// The calibrated grid of the input, as `<operator>.input_scale` and `.input_zero_point` say.
quant::ActivationGrid load_grid(const StoredOperator& op, const quant::ActivationScheme& scheme) {
  const auto one = [&](std::string_view suffix) {
    const at::Tensor tensor = op.read(suffix);
    if (tensor.numel() == 1) return tensor.to(at::kDouble).item<double>();
    throw CorruptFile(op.tensor(suffix), fmt::format("must hold one number; it has {}", tensor.numel()));
  };
  quant::ActivationGrid grid{static_cast<float>(one(".input_scale")), 0};
  if (!(grid.scale > 0))
    throw CorruptFile(op.tensor(".input_scale"), fmt::format("must be positive; it is {}", grid.scale));
  if (!scheme.symmetric) grid.zero = static_cast<int32_t>(one(".input_zero_point"));
  if (grid.zero < scheme.lowest_code() || grid.zero > scheme.highest_code()) {
    throw CorruptFile(op.tensor(".input_zero_point"),
                      fmt::format("must lie in [{}, {}]; it is {}", scheme.lowest_code(),
                                  scheme.highest_code(), grid.zero));
  }
  return grid;
}

/// The weight itself, or with the quantization of its input when the group has one.
WeightPtr with_input(const StoredOperator& op, const StorageGroup& group, QuantizedWeight weight) {
  if (!group.input_activations) return std::make_shared<QuantizedWeight>(std::move(weight));
  std::optional<quant::ActivationGrid> grid;
  if (!group.input_activations->dynamic) grid = load_grid(op, *group.input_activations);
  return std::make_shared<QuantizedInputWeight>(std::move(weight), *group.input_activations, grid);
}

WeightPtr load_packed(const StoredOperator& op, const StorageGroup& group) {
  quant::PackedTensors packed;
  packed.packed = op.read(".weight_packed");
  packed.scale = op.read(".weight_scale");
  packed.shape = op.read_if(".weight_shape");
  packed.zero_point = op.read_if(".weight_zero_point");
  packed.group_index = op.read_if(".weight_g_idx");
  return with_input(op, group, QuantizedWeight::from_packed(packed, group.scheme, op.info().name));
}

std::optional<StorageGroup> describe_packed(const Weight& weight) {
  if (auto group = describe_as("pack-quantized", NumberFormat::kInt, false, weight)) return group;
  auto group = describe_as("pack-quantized", NumberFormat::kInt, true, weight);
  return group && group->scheme.code_bits() < 8 ? group : std::nullopt;
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
  return with_input(op, group, QuantizedWeight::from_plain(plain, group.scheme, op.info().name));
}

std::optional<StorageGroup> describe_plain(const Weight& weight) {
  auto group = describe_as("int-quantized", NumberFormat::kInt, true, weight);
  return group && group->scheme.code_bits() == 8 ? group : std::nullopt;
}

std::optional<StorageGroup> describe_float(const Weight& weight) {
  if (auto group = describe_as("float-quantized", NumberFormat::kFp8E4m3, false, weight)) return group;
  return describe_as("float-quantized", NumberFormat::kFp8E4m3, true, weight);
}

/// A number of the group, which must be a whole one below `count`.
template <class Enum>
Enum read_choice(const StoredOperator& op, const StorageGroup& group, const std::string& name) {
  const auto found = group.numbers.find(name);
  constexpr auto count = static_cast<double>(EnumNames<Enum>::names.size());
  for (double value = 0; found != group.numbers.end() && value < count; ++value) {
    if (found->second == value) return static_cast<Enum>(static_cast<size_t>(value));
  }
  throw CorruptFile(op.info().name,
                    fmt::format("the group's '{}' must be a whole number below {}", name, count));
}

WeightPtr load_llm_int8(const StoredOperator& op, const StorageGroup& group) {
  quant::LlmInt8Options options;
  const auto threshold = group.numbers.find("threshold");
  if (threshold == group.numbers.end())
    throw CorruptFile(op.info().name, "the group must have a 'threshold'; there is none");
  options.threshold = threshold->second;
  options.outlier_weights = read_choice<quant::OutlierWeights>(op, group, "outlier_weights");
  options.outlier_maximum = read_choice<quant::OutlierMaximum>(op, group, "outlier_maximum");
  try {
    return std::make_shared<quant::OutlierInt8Weight>(
        options, op.read_codes(".weight").view(at::kChar), op.read(".weight_scale"),
        op.read_if(".weight_outlier_index"), op.read_if(".weight_outliers"));
  } catch (const InvalidArgument& error) {
    throw CorruptFile(op.info().name, fmt::format("the stored parts must fit together; {}", error.what()));
  }
}

std::optional<StorageGroup> describe_llm_int8(const Weight& weight) {
  const auto* outliers = dynamic_cast<const quant::OutlierInt8Weight*>(&weight);
  if (outliers == nullptr) return std::nullopt;
  const quant::LlmInt8Options& options = outliers->options();
  StorageGroup group{
      .targets = {}, .scheme = {.bits = 8, .granularity = quant::Granularity::kChannel}, .format = kLlmInt8};
  group.numbers = {{"threshold", options.threshold},
                   {"outlier_weights", static_cast<double>(options.outlier_weights)},
                   {"outlier_maximum", static_cast<double>(options.outlier_maximum)}};
  return group;
}

/// bitsandbytes' description of a 4-bit weight.
quant::Nf4Tensors read_nf4_state(const StoredOperator& op) {
  const std::string where = op.tensor(kNf4State);
  const at::Tensor bytes = op.read_codes(kNf4State);
  const std::string text(reinterpret_cast<const char*>(bytes.data_ptr<uint8_t>()),
                         static_cast<size_t>(bytes.numel()));
  const io::Json json = io::parse_json(text, where);
  const io::JsonView state(json, where);
  quant::Nf4Tensors tensors;
  const std::string type = state.at("quant_type").text();
  if (type != "nf4") state.fail(fmt::format("quant_type must be nf4; it is '{}'", type));
  const std::vector<int64_t> shape = state.at("shape").integers(1, int64_t{1} << 31);
  if (shape.size() != 2)
    state.fail(fmt::format("shape must hold out and in; it has {} numbers", shape.size()));
  tensors.out = shape[0];
  tensors.in = shape[1];
  tensors.block_size = state.at("blocksize").integer(1, int64_t{1} << 62);
  if (!state.find("nested_offset")) return tensors;
  tensors.nested.offset = static_cast<float>(state.at("nested_offset").number());
  const int64_t nested_block = state.at("nested_blocksize").integer();
  if (nested_block != quant::NestedScales::kBlock) {
    throw Unsupported(where, fmt::format("nested_blocksize must be {}; it is {}", quant::NestedScales::kBlock,
                                         nested_block));
  }
  return tensors;
}

WeightPtr load_nf4(const StoredOperator& op, const StorageGroup&) {
  quant::Nf4Tensors tensors = read_nf4_state(op);
  tensors.packed = op.read_codes(".weight");
  const at::Tensor values = op.read(".weight.quant_map").to(at::kDouble);
  const at::Tensor known = at::tensor(c10::ArrayRef<double>(quant::kNf4Values), at::kDouble);
  if (!values.equal(known))
    throw CorruptFile(op.tensor(".weight.quant_map"), "must hold the 16 values of NF4; it holds others");
  if (op.contains(".weight.nested_absmax")) {
    tensors.nested.codes = op.read_codes(".weight.absmax");
    tensors.nested.absmax = op.read(".weight.nested_absmax");
    tensors.nested.map = op.read(".weight.nested_quant_map");
  } else {
    tensors.absmax = op.read(".weight.absmax");
  }
  return quant::from_nf4(tensors, op.info().name);
}

std::optional<StorageGroup> describe_nf4(const Weight& weight) {
  return describe_as("lcomp-nf4", NumberFormat::kNf4, false, weight);
}

WeightPtr load_codebook(const StoredOperator& op, const StorageGroup& group) {
  return std::make_shared<quant::CodebookWeight>(quant::CodebookWeight::from_stored(
      {op.read(".weight_codes"),
       op.read(".weight_codebook"),
       op.read(".weight_shape"),
       {op.read_if(".weight_sparse_offsets"), op.read_if(".weight_sparse_columns"),
        op.read_if(".weight_sparse_values")}},
      group.scheme.bits, op.info().name));
}

/// Of the scheme only the bits mean something: a code book is no grid.
std::optional<StorageGroup> describe_codebook(const Weight& weight) {
  const auto* book = dynamic_cast<const quant::CodebookWeight*>(&weight);
  if (book == nullptr) return std::nullopt;
  return StorageGroup{.targets = {},
                      .scheme = {.bits = book->bits(), .granularity = quant::Granularity::kChannel},
                      .format = "lcomp-codebook"};
}

std::string sparse_format_name(sparse::SparseFormat format) {
  switch (format) {
    case sparse::SparseFormat::kBitmask:
      return "lcomp-bitmask";
    case sparse::SparseFormat::kCsr:
      return "lcomp-csr";
    case sparse::SparseFormat::kTwoOfFour:
      return "lcomp-2-of-4";
    case sparse::SparseFormat::kBlockedEll:
      return "lcomp-blocked-ell";
    case sparse::SparseFormat::kTiledCsl:
      return "lcomp-tiled-csl";
    case sparse::SparseFormat::kDense:
      break;
  }
  return "";
}

template <sparse::SparseFormat format>
WeightPtr load_sparse(const StoredOperator& op, const StorageGroup&) {
  sparse::SparseTensors stored;
  for (const char* suffix : {"_values", "_shape", "_bitmask", "_row_offsets", "_columns", "_positions",
                             "_block_columns", "_tile_words", "_tile_offsets"}) {
    const std::string name = std::string(".weight") + suffix;
    if (!op.contains(name)) continue;
    const bool bytes = std::string_view(suffix) == "_bitmask";
    stored.parts[suffix] = bytes ? op.read_codes(name) : op.read(name);
  }
  return std::make_shared<sparse::SparseWeight>(
      sparse::SparseWeight::from_stored(std::move(stored), format, op.info().name));
}

template <sparse::SparseFormat format>
std::optional<StorageGroup> describe_sparse(const Weight& weight) {
  const auto* pruned = dynamic_cast<const sparse::SparseWeight*>(&weight);
  if (pruned == nullptr || pruned->format() != format) return std::nullopt;
  return StorageGroup{.targets = {}, .scheme = {}, .format = sparse_format_name(format)};
}

/// The group of a part; a dense one has the format "dense".
StorageGroup part_group(const Weight& part) {
  if (auto group = storage_group(part)) return *group;
  return {.targets = {}, .scheme = {}, .format = "dense"};
}

/// Its format and those of the weights that it is made of.
StorageGroup composed_group(const char* format, const std::vector<WeightPtr>& parts) {
  StorageGroup group{.targets = {}, .scheme = {}, .format = format};
  for (const WeightPtr& part : parts) group.parts.push_back(part_group(*part));
  return group;
}

/// Throws CorruptFile unless the tensor by which the format is known is there, in its type.
void require_marker(const StoredOperator& part, const WeightFormat& format) {
  const auto type = part.type_of(format.marker);
  if (type == format.marker_dtype) return;
  throw CorruptFile(part.tensor(format.marker), fmt::format("must be {}, as the config has {} here; it is {}",
                                                            name_of(format.marker_dtype), format.name,
                                                            type ? name_of(*type) : "missing"));
}

/// A weight that another is made of. It has no more rows and columns than the operator has of either: a few
/// stored numbers could otherwise stand for a matrix that fits into no memory.
WeightPtr load_part(const StoredOperator& part, const StorageGroup& group) {
  const WeightFormat* format = find_weight_format(group.format);
  if (format != nullptr) require_marker(part, *format);
  WeightPtr weight = format == nullptr ? load_matrix(part) : format->load(part, group);
  const OperatorInfo& whole = part.info();
  const int64_t most = std::max(whole.out_features, whole.in_features);
  if (std::max(weight->out_features(), weight->in_features()) <= most) return weight;
  throw CorruptFile(whole.name, fmt::format("must have at most {} rows and columns, as a part of a [{}, {}] "
                                            "operator; it is [{}, {}]",
                                            most, whole.out_features, whole.in_features,
                                            weight->out_features(), weight->in_features()));
}

/// What several stored weights make; `count` is the tensor with their number, `name_of` where each is stored.
template <class Composed>
WeightPtr load_composed(const StoredOperator& op, const StorageGroup& group, std::string_view count,
                        std::string (*name_of)(const std::string&, size_t)) {
  const at::Tensor stored = op.read(count);
  const auto expected = static_cast<int64_t>(group.parts.size());
  const bool fits = stored.scalar_type() == at::kLong && stored.dim() == 1 && stored.numel() == 1;
  if (!fits || stored.item<int64_t>() != expected) {
    throw CorruptFile(op.tensor(count),
                      fmt::format("must be the number of parts in the config, which has {}", expected));
  }
  std::vector<WeightPtr> parts;
  for (size_t i = 0; i < group.parts.size(); ++i)
    parts.push_back(load_part(op.part(name_of(op.info().name, i)), group.parts[i]));
  try {
    return std::make_shared<Composed>(std::move(parts));
  } catch (const InvalidArgument& error) {
    throw CorruptFile(op.info().name, fmt::format("the stored parts must fit together; {}", error.what()));
  }
}

std::optional<StorageGroup> describe_sum(const Weight& weight) {
  const auto* sum = dynamic_cast<const SumWeight*>(&weight);
  if (sum == nullptr) return std::nullopt;
  return composed_group("lcomp-sum", sum->parts());
}

WeightPtr load_sum(const StoredOperator& op, const StorageGroup& group) {
  return load_composed<SumWeight>(op, group, ".weight_parts", SumWeight::part_name);
}

std::optional<StorageGroup> describe_product(const Weight& weight) {
  const auto* product = dynamic_cast<const ProductWeight*>(&weight);
  if (product == nullptr) return std::nullopt;
  return composed_group("lcomp-product", product->factors());
}

WeightPtr load_product(const StoredOperator& op, const StorageGroup& group) {
  return load_composed<ProductWeight>(op, group, ".weight_factors", ProductWeight::factor_name);
}

std::optional<StorageGroup> describe_identity_rows(const Weight& weight) {
  const auto* pivoted = dynamic_cast<const lowrank::IdentityRowsWeight*>(&weight);
  if (pivoted == nullptr) return std::nullopt;
  return composed_group("lcomp-identity-rows", {pivoted->rest()});
}

WeightPtr load_identity_rows(const StoredOperator& op, const StorageGroup& group) {
  const std::string rest = lowrank::IdentityRowsWeight::rest_name(op.info().name);
  try {
    return std::make_shared<lowrank::IdentityRowsWeight>(op.read(".weight_pivots"),
                                                         load_part(op.part(rest), group.parts.at(0)));
  } catch (const InvalidArgument& error) {
    throw CorruptFile(op.info().name, fmt::format("the stored parts must fit together; {}", error.what()));
  }
}

std::optional<StorageGroup> describe_shared(const Weight& weight) {
  const auto* shared = dynamic_cast<const SharedWeight*>(&weight);
  if (shared == nullptr) return std::nullopt;
  return composed_group("lcomp-shared", {shared->weight()});
}

WeightPtr load_shared(const StoredOperator& op, const StorageGroup& group) {
  const at::Tensor text = op.read_codes(".weight_shared_with");
  std::string owner(reinterpret_cast<const char*>(text.data_ptr<uint8_t>()),
                    static_cast<size_t>(text.numel()));
  if (text.dim() != 1 || owner.empty())
    throw CorruptFile(op.tensor(".weight_shared_with"),
                      "must name a weight; it is empty or no list of bytes");
  const WeightFormat* format = find_weight_format(group.parts.at(0).format);
  const std::string_view marker = format == nullptr ? ".weight" : format->marker;
  if (!op.part(owner).contains(marker)) {
    throw CorruptFile(op.tensor(".weight_shared_with"),
                      fmt::format("must name a weight that is stored; {} is not",
                                  io::quote_name(owner + std::string(marker))));
  }
  WeightPtr weight = load_part(op.part(owner), group.parts.at(0));
  const SharedBy by = op.is_in_block_of(owner) ? SharedBy::kInput : SharedBy::kModel;
  return std::make_shared<SharedWeight>(std::move(owner), std::move(weight), by);
}

template <class Kind>
std::optional<StorageGroup> describe_kind(const char* format, const Weight& weight) {
  if (dynamic_cast<const Kind*>(&weight) == nullptr) return std::nullopt;
  return StorageGroup{.targets = {}, .scheme = {}, .format = format};
}

std::optional<StorageGroup> describe_tensor_train(const Weight& weight) {
  return describe_kind<lowrank::TensorTrainWeight>("lcomp-tensor-train", weight);
}

WeightPtr load_tensor_train(const StoredOperator& op, const StorageGroup&) {
  using lowrank::TensorTrainWeight;
  lowrank::TensorTrainParts parts;
  parts.shape = op.read(".weight_tt_shape");
  const int64_t cores = TensorTrainWeight::core_count(parts.shape, op.info().name);
  for (int64_t k = 0; k < cores; ++k) parts.cores.push_back(op.read(fmt::format(".weight_tt_core{}", k)));
  parts.input_scale = op.read_if(".weight_tt_input_scale");
  return std::make_shared<TensorTrainWeight>(
      TensorTrainWeight::from_stored(std::move(parts), op.info().name));
}

std::optional<StorageGroup> describe_kronecker(const Weight& weight) {
  return describe_kind<lowrank::KroneckerSumWeight>("lcomp-kronecker-sum", weight);
}

WeightPtr load_kronecker(const StoredOperator& op, const StorageGroup&) {
  using lowrank::KroneckerSumWeight;
  return std::make_shared<KroneckerSumWeight>(KroneckerSumWeight::from_stored(
      {op.read(".weight_kronecker_leaf"), op.read(".weight_kronecker_shape")}, op.info().name));
}

std::optional<StorageGroup> describe_morphemes(const Weight& weight) {
  return describe_kind<lowrank::MorphemeWeight>("lcomp-morphemes", weight);
}

WeightPtr load_morphemes(const StoredOperator& op, const StorageGroup&) {
  using lowrank::MorphemeWeight;
  return std::make_shared<MorphemeWeight>(
      MorphemeWeight::from_stored({op.read(".weight_morpheme_tables"), op.read(".weight_morpheme_index"),
                                   op.read(".weight_morpheme_shape")},
                                  op.info().name));
}

std::optional<StorageGroup> describe_row_patch(const Weight& weight) {
  return describe_kind<lowrank::RowPatchWeight>("lcomp-row-patch", weight);
}

WeightPtr load_row_patch(const StoredOperator& op, const StorageGroup&) {
  using lowrank::RowPatchWeight;
  return std::make_shared<RowPatchWeight>(RowPatchWeight::from_stored(
      {op.read(".weight_patch_rows"), op.read(".weight_patch_values"), op.read(".weight_patch_shape")},
      op.info().name));
}

using sparse::SparseFormat;

constexpr std::array kFormats = {
    WeightFormat{"pack-quantized", ".weight_packed", io::StoredDtype::kI32, NumberFormat::kInt, load_packed,
                 describe_packed},
    WeightFormat{"int-quantized", ".weight", io::StoredDtype::kI8, NumberFormat::kInt, load_plain,
                 describe_plain},
    WeightFormat{"float-quantized", ".weight", io::StoredDtype::kF8E4M3, NumberFormat::kFp8E4m3, load_plain,
                 describe_float},
    WeightFormat{"lcomp-nf4", kNf4State, io::StoredDtype::kU8, NumberFormat::kNf4, load_nf4, describe_nf4},
    WeightFormat{kLlmInt8, ".weight", io::StoredDtype::kI8, NumberFormat::kInt, load_llm_int8,
                 describe_llm_int8},
    WeightFormat{"lcomp-codebook", ".weight_codes", io::StoredDtype::kI32, NumberFormat::kInt, load_codebook,
                 describe_codebook},
    WeightFormat{"lcomp-bitmask", ".weight_bitmask", io::StoredDtype::kU8, std::nullopt,
                 load_sparse<SparseFormat::kBitmask>, describe_sparse<SparseFormat::kBitmask>},
    WeightFormat{"lcomp-csr", ".weight_columns", io::StoredDtype::kI32, std::nullopt,
                 load_sparse<SparseFormat::kCsr>, describe_sparse<SparseFormat::kCsr>},
    WeightFormat{"lcomp-2-of-4", ".weight_positions", io::StoredDtype::kI16, std::nullopt,
                 load_sparse<SparseFormat::kTwoOfFour>, describe_sparse<SparseFormat::kTwoOfFour>},
    WeightFormat{"lcomp-blocked-ell", ".weight_block_columns", io::StoredDtype::kI32, std::nullopt,
                 load_sparse<SparseFormat::kBlockedEll>, describe_sparse<SparseFormat::kBlockedEll>},
    WeightFormat{"lcomp-sum", ".weight_parts", io::StoredDtype::kI64, std::nullopt, load_sum, describe_sum, 2,
                 16},
    WeightFormat{"lcomp-product", ".weight_factors", io::StoredDtype::kI64, std::nullopt, load_product,
                 describe_product, 2, 16},
    WeightFormat{"lcomp-identity-rows", ".weight_pivots", io::StoredDtype::kI32, std::nullopt,
                 load_identity_rows, describe_identity_rows, 1, 1},
    WeightFormat{"lcomp-shared", ".weight_shared_with", io::StoredDtype::kU8, std::nullopt, load_shared,
                 describe_shared, 1, 1},
    WeightFormat{"lcomp-kronecker-sum", ".weight_kronecker_shape", io::StoredDtype::kI64, std::nullopt,
                 load_kronecker, describe_kronecker},
    WeightFormat{"lcomp-morphemes", ".weight_morpheme_shape", io::StoredDtype::kI64, std::nullopt,
                 load_morphemes, describe_morphemes},
    WeightFormat{"lcomp-row-patch", ".weight_patch_shape", io::StoredDtype::kI64, std::nullopt,
                 load_row_patch, describe_row_patch},
    WeightFormat{"lcomp-tensor-train", ".weight_tt_shape", io::StoredDtype::kI64, std::nullopt,
                 load_tensor_train, describe_tensor_train},
    WeightFormat{"lcomp-tiled-csl", ".weight_tile_words", io::StoredDtype::kI32, std::nullopt,
                 load_sparse<SparseFormat::kTiledCsl>, describe_sparse<SparseFormat::kTiledCsl>},
};

}  // namespace

bool StoredOperator::is_in_block_of(const std::string& other) const {
  for (int64_t block = 0; block < model_.size(); ++block) {
    const std::string prefix = model_.architecture().block_prefix(block);
    if (op_.name.starts_with(prefix)) return other.starts_with(prefix);
  }
  return false;
}

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

WeightPtr load_matrix(const StoredOperator& op) {
  at::Tensor matrix = op.read(".weight");
  if (matrix.dim() == 2 && matrix.numel() > 0 && matrix.is_floating_point())
    return std::make_shared<DenseWeight>(std::move(matrix));
  throw CorruptFile(
      op.tensor(".weight"),
      fmt::format("must be a floating-point matrix that is not empty; it is {}", lowrank::part_text(matrix)));
}

std::optional<StorageGroup> storage_group(const Weight& weight) {
  for (const WeightFormat& format : kFormats) {
    if (auto group = format.describe(weight)) return group;
  }
  return std::nullopt;
}

}  // namespace lcomp::model
