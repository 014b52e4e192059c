#include "lcomp/io/safetensors_writer.h"

#include <unordered_map>
#include <unordered_set>

#include "io/json_util.h"
#include "io/safetensors_header.h"
#include "lcomp/core/checked.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

void check_names(const std::vector<TensorInfo>& tensors, const std::string& where) {
  std::unordered_set<std::string> seen;
  for (const TensorInfo& info : tensors) {
    if (find_invalid_utf8(info.name))
      throw InvalidArgument(where, "names must be valid UTF-8; one is " + quote_name(info.name));
    if (info.name == kMetadataKey)
      throw InvalidArgument(where,
                            fmt::format("no tensor may be called {}; one is", quote_name(kMetadataKey)));
    if (!seen.insert(info.name).second)
      throw InvalidArgument(where,
                            fmt::format("names must be unique; {} comes twice", quote_name(info.name)));
  }
}

/// In the order of the file, with their places in the data buffer.
std::vector<TensorInfo> laid_out(std::vector<TensorInfo> tensors, const std::string& where) {
  check_names(tensors, where);
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  uint64_t position = 0;
  for (TensorInfo& info : tensors) {
    const auto bytes = stored_bytes(info.dtype, info.shape);
    const auto end = bytes ? checked_add(position, *bytes) : std::nullopt;
    if (!end)
      throw InvalidArgument(where,
                            fmt::format("the size of {} must be a number of bytes below 2^64; it is {}",
                                        quote_name(info.name), describe(info)));
    info.begin = position;
    info.end = *end;
    position = *end;
  }
  return tensors;
}

/// The length field and the padded header.
std::string header_of(const std::vector<TensorInfo>& tensors, Metadata metadata, const std::string& where) {
  metadata.emplace("format", "pt");
  OrderedJson json = OrderedJson::object();
  json[kMetadataKey] = metadata;
  // Names are unique, so that the linear search of ordered_json's operator[] is not needed.
  auto& members = json.get_ref<OrderedJson::object_t&>();
  for (const TensorInfo& info : tensors) {
    OrderedJson entry = OrderedJson::object();
    entry["dtype"] = name_of(info.dtype);
    entry["shape"] = info.shape;
    entry["data_offsets"] = {info.begin, info.end};
    members.push_back({info.name, std::move(entry)});
  }
  std::string text;
  try {
    text = json.dump();
  } catch (const OrderedJson::type_error&) {  // names are checked, so it is the metadata
    throw InvalidArgument(where, "metadata must be valid UTF-8; it is not");
  }
  text.append((8 - text.size() % 8) % 8, ' ');
  if (text.size() > kMaxHeaderBytes)
    throw InvalidArgument(where, fmt::format("the header must have at most {} bytes; it would have {}",
                                             kMaxHeaderBytes, text.size()));
  std::string out;
  for (int shift = 0; shift < 64; shift += 8) out += static_cast<char>(uint64_t{text.size()} >> shift & 0xFF);
  return out + text;
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorInfo> tensors,
                                     Metadata metadata)
    : tensors_(laid_out(std::move(tensors), path.string())), file_(path), where_(path.string()) {
  file_.write(header_of(tensors_, std::move(metadata), where_));
  skip_finished();
}

void SafetensorsWriter::skip_finished() {
  while (current_ < tensors_.size() && appended_ == tensors_[current_].bytes()) {
    ++current_;
    appended_ = 0;
  }
}

void SafetensorsWriter::append(const std::string& name, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (current_ == tensors_.size() || tensors_[current_].name != name)
    throw InvalidArgument(where_,
                          fmt::format("the next bytes must be those of {}; {} came",
                                      current_ == tensors_.size() ? "no tensor, all are written"
                                                                  : quote_name(tensors_[current_].name),
                                      quote_name(name)));
  if (bytes.size() > tensors_[current_].bytes() - appended_)
    throw InvalidArgument(where_, fmt::format("the tensor {} must have {} bytes; {} came", quote_name(name),
                                              tensors_[current_].bytes(), appended_ + bytes.size()));
  file_.write(bytes);
  appended_ += bytes.size();
  skip_finished();
}

void SafetensorsWriter::append(const std::string& name, const at::Tensor& tensor) {
  if (tensor.numel() == 0) return;  // no bytes; see skip_finished
  const TensorInfo given = info_of(name, tensor);
  if (appended_ == 0 && current_ < tensors_.size() && tensors_[current_].name == name &&
      describe(tensors_[current_]) != describe(given))
    throw InvalidArgument(where_,
                          fmt::format("the tensor {} must be as announced, {}; it is {}", quote_name(name),
                                      describe(tensors_[current_]), describe(given)));
  append(name, bytes_of(tensor.detach().cpu().contiguous()));
}

FileRecord SafetensorsWriter::finish() {
  if (current_ < tensors_.size())
    throw InvalidArgument(
        where_, fmt::format("all tensors must be written before the end; {} has {} of its {} bytes",
                            quote_name(tensors_[current_].name), appended_, tensors_[current_].bytes()));
  return file_.commit();
}

FileRecord write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                             Metadata metadata) {
  std::vector<TensorInfo> infos;
  std::unordered_map<std::string, at::Tensor> by_name;
  for (const auto& [name, tensor] : tensors) {
    if (!tensor.defined())
      throw InvalidArgument(path.string(),
                            fmt::format("the tensor {} must be defined; it is not", quote_name(name)));
    infos.push_back(info_of(name, tensor));
    by_name.emplace(name, tensor);
  }
  SafetensorsWriter writer(path, std::move(infos), std::move(metadata));
  for (const TensorInfo& info : writer.tensors()) writer.append(info.name, by_name.at(info.name));
  return writer.finish();
}

}  // namespace lcomp::io
