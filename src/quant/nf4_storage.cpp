#include "lcomp/quant/nf4_storage.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>

#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"

namespace lcomp::quant {
namespace {

constexpr int64_t kStateBytes = 256;

at::Tensor pack_nibbles(const at::Tensor& codes) {
  const at::Tensor flat = codes.contiguous();
  const int64_t count = flat.numel();
  at::Tensor packed = at::zeros({ceil_div(count, 2), 1}, at::kByte);
  const int8_t* from = flat.data_ptr<int8_t>();
  auto* to = packed.data_ptr<uint8_t>();
  for (int64_t i = 0; i < count; ++i)
    to[i / 2] = static_cast<uint8_t>(to[i / 2] | from[i] << (i % 2 == 0 ? 4 : 0));
  return packed;
}

/// int8 [out, in]
at::Tensor unpack_nibbles(const at::Tensor& packed, int64_t out, int64_t in) {
  const at::Tensor bytes = packed.contiguous();
  at::Tensor codes = at::empty({out, in}, at::kChar);
  const uint8_t* from = bytes.data_ptr<uint8_t>();
  for (int64_t i = 0; i < out * in; ++i)
    codes.data_ptr<int8_t>()[i] = static_cast<int8_t>(from[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15);
  return codes;
}

/// The description that bitsandbytes reads, with white space up to a fixed length.
at::Tensor state_text(const QuantizedWeight& weight, int64_t block_size) {
  std::string text =
      fmt::format(R"({{"quant_type": "nf4", "blocksize": {}, "dtype": "float32", "shape": [{}, {}])",
                  block_size, weight.out_features(), weight.in_features());
  const NestedScales& nested = weight.nested_scales();
  if (nested.defined()) {
    text += fmt::format(R"(, "nested_blocksize": {}, "nested_dtype": "float32", "nested_offset": {:.9g})",
                        NestedScales::kBlock, nested.offset);
  }
  text += '}';
  text.resize(kStateBytes, ' ');
  at::Tensor bytes = at::empty({kStateBytes}, at::kByte);
  std::memcpy(bytes.data_ptr<uint8_t>(), text.data(), text.size());
  return bytes;
}

void require_stored(bool holds, const std::string& tensor, const std::string& what, int64_t came) {
  if (!holds) throw CorruptFile(tensor, fmt::format("{}; it has {}", what, came));
}

/// Sizes and types; afterwards everything may be indexed.
void check(const Nf4Tensors& t, const std::string& name) {
  const int64_t count = t.out * t.in, blocks = ceil_div(count, t.block_size);
  require_stored(
      t.packed.scalar_type() == at::kByte && t.packed.numel() == ceil_div(count, 2), name + ".weight",
      fmt::format("must hold {} bytes for [{}, {}]", ceil_div(count, 2), t.out, t.in), t.packed.numel());
  const std::string absmax = name + ".weight.absmax";
  const at::Tensor& scales = t.nested.defined() ? t.nested.codes : t.absmax;
  require_stored(
      scales.scalar_type() == (t.nested.defined() ? at::kByte : at::kFloat) && scales.numel() == blocks,
      absmax, fmt::format("must hold {} {}", blocks, t.nested.defined() ? "bytes" : "float32 numbers"),
      scales.numel());
  if (!t.nested.defined()) return;
  const int64_t nested_blocks = ceil_div(blocks, NestedScales::kBlock);
  require_stored(t.nested.absmax.scalar_type() == at::kFloat && t.nested.absmax.numel() == nested_blocks,
                 name + ".weight.nested_absmax", fmt::format("must hold {} float32 numbers", nested_blocks),
                 t.nested.absmax.numel());
  require_stored(t.nested.map.scalar_type() == at::kFloat && t.nested.map.numel() == 256,
                 name + ".weight.nested_quant_map", "must hold 256 float32 numbers", t.nested.map.numel());
}

/// The granularity whose groups are the blocks; nothing when blocks reach from one row into the next.
std::optional<QuantScheme> scheme_of(const Nf4Tensors& t) {
  QuantScheme scheme;
  scheme.format = NumberFormat::kNf4;
  scheme.double_quant = t.nested.defined();
  scheme.group_size = t.block_size;
  if (t.in % t.block_size == 0) return scheme;
  if (t.block_size < t.out * t.in) return std::nullopt;
  scheme.granularity = Granularity::kTensor;
  return scheme;
}

}  // namespace

WeightPtr from_nf4(const Nf4Tensors& t, const std::string& name) {
  check(t, name);
  const at::Tensor codes = unpack_nibbles(t.packed, t.out, t.in);
  Grid grid{t.nested.defined() ? unnest_scales(t.nested) : t.absmax, {}, NumberFormat::kNf4, t.nested};
  if (!at::isfinite(grid.scale).all().item<bool>())
    throw CorruptFile(name + ".weight.absmax", "scales must be finite; one is not");
  if (const auto scheme = scheme_of(t)) {
    const std::vector<int64_t> shape = {scheme->scale_rows(t.out), scheme->groups(t.in)};
    grid.scale = grid.scale.reshape(shape);
    if (grid.nested.defined()) grid.nested.codes = grid.nested.codes.reshape(shape);
    return std::make_shared<QuantizedWeight>(*scheme, codes, grid);
  }
  const at::Tensor of_element =
      grid.scale.flatten().repeat_interleave(t.block_size).narrow(0, 0, t.out * t.in).reshape({t.out, t.in});
  return std::make_shared<DenseWeight>(code_values(codes, NumberFormat::kNf4, at::kFloat).mul_(of_element));
}

void save_nf4(const QuantizedWeight& weight, TensorSink& sink, const std::string& name) {
  const std::string prefix = name + ".weight";
  const int64_t elements = weight.out_features() * weight.in_features();
  sink.add(prefix, pack_nibbles(weight.codes()));
  sink.add(prefix + ".quant_map", at::tensor(c10::ArrayRef<double>(kNf4Values), at::kFloat));
  sink.add(prefix + ".quant_state.bitsandbytes__nf4", state_text(weight, elements / weight.scale().numel()));
  const NestedScales& nested = weight.nested_scales();
  if (!nested.defined()) {
    sink.add(prefix + ".absmax", weight.scale().flatten());
    return;
  }
  sink.add(prefix + ".absmax", nested.codes.flatten());
  sink.add(prefix + ".nested_absmax", nested.absmax);
  sink.add(prefix + ".nested_quant_map", nested.map);
}

int64_t nf4_bytes(const QuantScheme& scheme, int64_t out, int64_t in) {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t scales = scheme.scale_rows(out) * scheme.groups(in);
  const int64_t fixed = ceil_div(out * in, 2) + 16 * kFloat + kStateBytes;
  if (!scheme.double_quant) return fixed + scales * kFloat;
  return fixed + scales + ceil_div(scales, NestedScales::kBlock) * kFloat + 256 * kFloat;
}

}  // namespace lcomp::quant
