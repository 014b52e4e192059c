#include "lcomp/pipeline/inspect.h"

#include <fmt/format.h>

#include <map>

#include "lcomp/core/error.h"
#include "lcomp/io/tokenizer.h"
#include "lcomp/model/model.h"
#include "model/weight_formats.h"

namespace lcomp::pipeline {
namespace {

namespace fs = std::filesystem;

void stop_if_cancelled(Observer& observer) {
  if (observer.cancelled()) throw Interrupted("inspect", "the inspection was stopped");
}

std::vector<DtypeShare> shares_of(const io::Checkpoint& checkpoint) {
  std::map<std::string, DtypeShare> by_dtype;
  for (const std::string& name : checkpoint.names()) {
    const io::TensorInfo& info = checkpoint.info(name);
    DtypeShare& share = by_dtype[std::string(name_of(info.dtype))];
    share.tensors += 1;
    share.bytes += static_cast<int64_t>(info.bytes());
  }
  std::vector<DtypeShare> shares;
  for (auto& [dtype, share] : by_dtype) {
    share.dtype = dtype;
    shares.push_back(share);
  }
  std::stable_sort(shares.begin(), shares.end(),
                   [](const DtypeShare& a, const DtypeShare& b) { return a.bytes > b.bytes; });
  return shares;
}

bool is_float(io::StoredDtype dtype) {
  switch (dtype) {
    case io::StoredDtype::kF8E5M2:
    case io::StoredDtype::kF8E4M3:
    case io::StoredDtype::kF8E8M0:
    case io::StoredDtype::kF8E4M3Fnuz:
    case io::StoredDtype::kF8E5M2Fnuz:
    case io::StoredDtype::kF16:
    case io::StoredDtype::kBF16:
    case io::StoredDtype::kF32:
    case io::StoredDtype::kF64:
      return true;
    default:
      return false;  // integers; and types of 4 and 6 bits, which have neither NaN nor infinity
  }
}

/// Reads a tensor of floating-point numbers in pieces and refuses a NaN or an infinity.
void require_finite(const io::Checkpoint& checkpoint, const std::string& name) {
  constexpr int64_t kPiece = 1 << 20;
  const io::TensorInfo& info = checkpoint.info(name);
  const uint64_t element_bytes = static_cast<uint64_t>(io::bits_of(info.dtype)) / 8;
  for (int64_t begin = 0; begin < info.elements(); begin += kPiece) {
    io::TensorInfo piece = info;
    piece.shape = {std::min(kPiece, info.elements() - begin)};
    piece.begin = 0;
    piece.end = static_cast<uint64_t>(piece.shape[0]) * element_bytes;
    const auto source = [&](std::span<std::byte> out) {
      checkpoint.read_bytes(name, static_cast<uint64_t>(begin) * element_bytes, out);
    };
    const at::Tensor values = io::decode_as_float(piece, source, checkpoint.file_of(name));
    const float* data = values.data_ptr<float>();
    const float* bad =
        std::find_if(data, data + values.numel(), [](float value) { return !std::isfinite(value); });
    if (bad == data + values.numel()) continue;
    throw CorruptFile(
        checkpoint.file_of(name),
        fmt::format("the tensor '{}' must hold finite values; number {} of its {} values is NaN or "
                    "infinite",
                    name, begin + (bad - data) + 1, info.elements()));
  }
}

/// Reads every value of every tensor. Returns their number.
int64_t read_values(const io::Checkpoint& checkpoint, Observer& observer) {
  const auto& names = checkpoint.names();
  int64_t values = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    stop_if_cancelled(observer);
    observer.progress({"read", static_cast<int64_t>(i), static_cast<int64_t>(names.size()), names[i]});
    const io::TensorInfo& info = checkpoint.info(names[i]);
    if (is_float(info.dtype)) require_finite(checkpoint, names[i]);
    values += info.elements();
  }
  observer.progress({"read", static_cast<int64_t>(names.size()), static_cast<int64_t>(names.size()), ""});
  return values;
}

/// Loads every block as a run does, which decodes its packed weights.
void load_blocks(const model::Model& model, Observer& observer) {
  for (int64_t i = 0; i < model.size(); ++i) {
    stop_if_cancelled(observer);
    observer.progress({"blocks", i, model.size(), ""});
    model.load_block(i);
  }
  observer.progress({"blocks", model.size(), model.size(), ""});
}

/// "lcomp-csr", "pack-quantized, int4 symmetric, groups of 64", "lcomp-sum of (lcomp-2-of-4) + (lcomp-csr)".
std::string described(const model::StorageGroup& group) {
  std::string text = group.format;
  const model::WeightFormat* format = model::find_weight_format(group.format);
  if (format != nullptr && format->has_grid()) {
    text += ", " + group.scheme.describe();
  } else if (format != nullptr && format->number_format) {
    text += fmt::format(", {} bits", group.scheme.bits);
  }
  if (group.block_rows > 0) text += fmt::format(", shared by {} rows", group.block_rows);
  if (group.input_activations) text += ", " + group.input_activations->describe();
  std::vector<std::string> parts;
  for (const model::StorageGroup& part : group.parts) parts.push_back(fmt::format("({})", described(part)));
  return parts.empty() ? text : fmt::format("{} of {}", text, fmt::join(parts, " + "));
}

/// How many operators are stored in which way.
std::vector<StoredKind> storage_of(const model::Model& model) {
  std::vector<StoredKind> kinds;
  for (int64_t block = 0; block < model.size(); ++block) {
    for (const model::OperatorInfo& op : model.architecture().operators(block)) {
      const model::StorageGroup* group = model.group_of(op);
      StoredKind kind{"dense", "dense", 1};
      if (group != nullptr) kind = {group->format, described(*group), 1};
      const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const StoredKind& known) {
        return known.description == kind.description;
      });
      if (same == kinds.end()) {
        kinds.push_back(std::move(kind));
      } else {
        ++same->operators;
      }
    }
  }
  return kinds;
}

InspectedModel describe(const model::Model& model, const fs::path& directory,
                        std::vector<std::string>& warnings) {
  const model::Architecture& architecture = model.architecture();
  InspectedModel found;
  found.family = architecture.family;
  found.blocks = model.size();
  found.hidden_size = architecture.hidden_size;
  found.vocab_size = architecture.vocab_size;
  found.max_positions = architecture.max_positions;
  found.parameters = model.parameters();
  for (int64_t i = 0; i < model.size(); ++i) {
    found.operators += static_cast<int64_t>(architecture.operators(i).size());
  }
  found.storage = storage_of(model);
  if (const WeightPtr& table = model.compressed_embedding()) {
    const model::StorageGroup* group = model.group_of(model.embedding());
    found.embedding =
        fmt::format("{} ({})", table->describe(), group == nullptr ? "dense" : described(*group));
  }
  found.widths = architecture.widths;
  if (fs::exists(directory / "tokenizer.json")) {
    found.tokenizer_hash = io::Tokenizer::from_file(directory / "tokenizer.json").hash();
  } else {
    warnings.push_back(directory.string() +
                       ": there is no tokenizer.json; calibration and evaluation need one");
  }
  return found;
}

void fill(Inspection& result, const io::Checkpoint& checkpoint, bool deep, Observer& observer) {
  result.tensors = static_cast<int64_t>(checkpoint.names().size());
  result.bytes = static_cast<int64_t>(checkpoint.total_bytes());
  result.dtypes = shares_of(checkpoint);
  if (deep) result.values_read = read_values(checkpoint, observer);
}

}  // namespace

Inspection inspect(const fs::path& path, bool deep, Observer& observer) {
  Inspection result;
  result.path = path.string();
  if (!fs::exists(path))
    throw CorruptFile(result.path, "there must be a model directory or a file; there is nothing");
  if (!fs::is_directory(path)) {
    const io::CheckpointPtr checkpoint = io::open_checkpoint(path);
    result.warnings = checkpoint->warnings();
    fill(result, *checkpoint, deep, observer);
    return result;
  }
  const model::Model model = model::Model::open(path);
  result.warnings = model.warnings();
  result.model = describe(model, path, result.warnings);
  if (deep) load_blocks(model, observer);
  fill(result, model.checkpoint(), deep, observer);
  return result;
}

}  // namespace lcomp::pipeline
