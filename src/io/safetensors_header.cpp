#include "io/safetensors_header.h"

#include <algorithm>
#include <tuple>

#include "io/json_util.h"
#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

/// LibTorch computes strides without checks, so the product of the non-zero dimensions must fit as well:
/// [0, 2^40, 2^40] has no bytes and no valid strides.
bool strides_fit(const std::vector<int64_t>& shape) {
  uint64_t product = 1;
  for (const int64_t dim : shape) {
    const auto next = checked_mul(product, static_cast<uint64_t>(std::max<int64_t>(dim, 1)));
    if (!next || *next > static_cast<uint64_t>(INT64_MAX)) return false;
    product = *next;
  }
  return true;
}

TensorInfo parse_tensor(const std::string& name, const JsonView& entry) {
  TensorInfo info;
  info.name = name;
  const JsonView dtype = entry.at("dtype");
  const auto known = find_stored_dtype(dtype.text());
  if (!known)
    dtype.fail(fmt::format("must be a dtype of the format, such as BF16 or F32; it is {}",
                           quote_name(dtype.text())));
  info.dtype = *known;
  info.shape = entry.at("shape").integers(0);

  const JsonView offsets = entry.at("data_offsets");
  const std::vector<int64_t> range = offsets.integers(0);
  if (range.size() != 2)
    offsets.fail(fmt::format("must be the two numbers [begin, end]; it has {}", range.size()));
  if (range[1] < range[0])
    offsets.fail(fmt::format("must not end before it begins; it is [{}, {}]", range[0], range[1]));
  info.begin = static_cast<uint64_t>(range[0]);
  info.end = static_cast<uint64_t>(range[1]);

  if (!strides_fit(info.shape))
    entry.fail("the product of the shape must fit 63 bits; it is " + describe(info));
  const auto bits =
      checked_mul(static_cast<uint64_t>(info.elements()), static_cast<uint64_t>(bits_of(info.dtype)));
  if (!bits) entry.fail("the bits of the tensor must be countable in 64 bits; it is " + describe(info));
  if (*bits % 8 != 0) entry.fail("the elements must fill whole bytes; it is " + describe(info));
  if (*bits / 8 != info.bytes())
    entry.fail(fmt::format("must have as many bytes as {} takes, {}; data_offsets span {}", describe(info),
                           *bits / 8, info.bytes()));
  return info;
}

/// The tensors must tile the data buffer: no hole, no overlap, nothing behind the last.
void check_tiling(const std::vector<TensorInfo>& sorted, uint64_t buffer_size, const std::string& where) {
  uint64_t position = 0;
  for (const TensorInfo& info : sorted) {
    if (info.begin != position)
      throw CorruptFile(
          where, fmt::format("the data of tensor {} must begin at byte {} of the buffer, where the one "
                             "before ends; it begins at {} ({})",
                             quote_name(info.name), position, info.begin,
                             info.begin > position ? "a hole" : "an overlap"));
    position = info.end;
  }
  if (position > buffer_size)
    throw CorruptFile(
        where, fmt::format("the file must hold {} bytes of tensor data; it has {}: it is truncated", position,
                           buffer_size));
  if (position < buffer_size)
    throw CorruptFile(where,
                      fmt::format("the file must end with its last tensor, after {} bytes of data; it has {}",
                                  position, buffer_size));
}

}  // namespace

uint64_t safetensors_header_length(std::string_view start, uint64_t file_size, const std::string& where) {
  if (file_size < 8)
    throw CorruptFile(
        where,
        fmt::format("the file must begin with the 8 bytes of the header's length; it has {}", file_size));
  uint64_t length = 0;
  for (size_t i = 8; i-- > 0;) length = length << 8 | static_cast<unsigned char>(start[i]);
  if (length > kMaxHeaderBytes)
    throw CorruptFile(where, fmt::format("the header must have at most {} bytes; the file says {} (is it a "
                                         "safetensors file?)",
                                         kMaxHeaderBytes, length));
  if (length > file_size - 8)
    throw CorruptFile(
        where, fmt::format("the header of {} bytes must end within the file; the file has {} bytes", length,
                           file_size));
  return length;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t file_size,
                                           const std::string& where) {
  if (text.empty() || text.front() != '{')
    throw CorruptFile(where, text.empty()
                                 ? std::string("the header must begin with '{'; it is empty")
                                 : fmt::format("the header must begin with '{{'; its first byte is 0x{:02x}",
                                               static_cast<unsigned char>(text.front())));
  // Deepest: the object, a tensor's entry, its shape.
  const Json json = parse_json(text, where + ": header", {.max_depth = 3});
  const JsonView root(json, where);
  SafetensorsHeader header;
  header.data_begin = 8 + text.size();
  for (const auto& [name, entry] : root.members()) {
    if (name == kMetadataKey) {
      header.has_metadata = true;
      for (const auto& [key, value] : entry.members()) header.metadata[key] = value.text();
    } else {
      header.tensors.push_back(parse_tensor(name, entry));
    }
  }
  // Empty tensors share their begin with the tensor behind them.
  std::sort(header.tensors.begin(), header.tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  check_tiling(header.tensors, file_size - header.data_begin, where);
  return header;
}

}  // namespace lcomp::io
