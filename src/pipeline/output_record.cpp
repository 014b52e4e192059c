#include "pipeline/output_record.h"

#include <ATen/ATen.h>

#include <set>

#include "io/checkpoint_index.h"
#include "io/json_util.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/io/hash.h"
#include "lcomp/io/hf_dir.h"

namespace lcomp::pipeline {
namespace {

using io::OrderedJson;

std::map<std::string, std::string> read_map(const io::OrderedJsonView& json) {
  std::map<std::string, std::string> out;
  for (const auto& [name, value] : json.members()) out[name] = value.text();
  return out;
}

/// The name of a file below the output, with the folders in front of it.
std::string read_file_name(const io::OrderedJsonView& json) {
  const std::filesystem::path path(json.text());
  if (path.empty() || !std::all_of(path.begin(), path.end(),
                                   [](const auto& part) { return io::is_plain_name(part.string()); }))
    json.fail(fmt::format("must be the name of a file in the output; it is {}", io::quote_name(json.text())));
  return path.string();
}

/// The first file or folder below `directory` that is not `known`; names are relative to the output.
std::string unknown_file(const std::filesystem::path& directory, const std::string& prefix,
                         const std::set<std::string>& known) {
  for (const std::filesystem::path& path : io::list_directory(directory)) {
    std::string name = prefix + path.filename().string();
    if (!known.contains(name)) return name;
    if (!std::filesystem::is_directory(path)) continue;
    std::string inner = unknown_file(path, name + "/", known);
    if (!inner.empty()) return inner;
  }
  return "";
}

using model::QuantizationConfig;

QuantizationConfig quantization_config(const model::Architecture& architecture,
                                       const std::map<std::string, QuantizationConfig::Group>& stored) {
  QuantizationConfig config;
  if (architecture.is_language_model()) config.ignore.push_back(architecture.names.head);
  // What stands on top of an encoder, under whatever prefix a loader gives it, checkpoint or not.
  for (const std::string& task : architecture.names.task_heads)
    config.ignore.push_back("re:(.*[.])?" + task.substr(0, task.size() - 1) + "([.].*)?$");
  std::map<std::string, size_t> known;  // operators share a group when a reader is told the same of them
  for (int64_t block = 0; block < architecture.layers; ++block) {
    for (const model::OperatorInfo& op : architecture.operators(block)) {
      const auto group = stored.find(op.name);
      if (group == stored.end()) {
        config.ignore.push_back(op.name);
        continue;
      }
      const auto [entry, is_new] = known.emplace(group->second.to_json(), config.groups.size());
      if (is_new) config.groups.push_back(group->second);
      config.groups[entry->second].targets.push_back(op.name);
    }
  }
  // The largest group is named by class, the others by operator: exact names win over the class.
  const auto largest =
      std::max_element(config.groups.begin(), config.groups.end(),
                       [](const auto& a, const auto& b) { return a.targets.size() < b.targets.size(); });
  if (largest != config.groups.end()) largest->targets = {"Linear"};
  const std::string embedding = architecture.names.prefix + architecture.names.embedding;
  if (const auto table = stored.find(embedding); table != stored.end()) {
    config.groups.push_back(table->second);
    config.groups.back().targets = {embedding};
  }
  return config;
}

}  // namespace

std::string decoded_hash(const at::Tensor& matrix) {
  const at::Tensor values = matrix.to(at::kFloat).contiguous();
  io::Hasher hasher;
  hasher.add(values.data_ptr(), static_cast<size_t>(values.numel()) * sizeof(float));
  return hasher.hex();
}

namespace {

/// Names within the operator, types and bytes of what a weight stores.
class HashingSink final : public TensorSink {
 public:
  void add(const std::string& name, const at::Tensor& tensor) override {
    const at::Tensor plain = tensor.contiguous();
    hasher.add(name + dtype_name(plain.scalar_type()));
    hasher.add(plain.data_ptr(), plain.nbytes());
  }
  void add_float8_e4m3(const std::string& name, const at::Tensor& codes) override { add(name, codes); }

  io::Hasher hasher;
};

}  // namespace

std::string decoded_hash(const Weight& weight) {
  if (!weight.quantizes_input()) return decoded_hash(weight.dense());
  HashingSink sink;
  sink.hasher.add(decoded_hash(weight.dense()));
  weight.save(sink, "");
  return sink.hasher.hex();
}

std::string decoded_hash_of_rows(const Weight& weight) {
  constexpr int64_t kTile = 1024;
  io::Hasher hasher;
  for (int64_t first = 0; first < weight.out_features(); first += kTile) {
    const int64_t end = std::min(first + kTile, weight.out_features());
    const at::Tensor rows = weight.rows(at::arange(first, end, at::kLong)).contiguous();
    hasher.add(rows.data_ptr(), rows.nbytes());
  }
  return hasher.hex();
}

std::string OutputRecord::to_json() const {
  OrderedJson json;
  json["version"] = version;
  json["source"] = source;
  json["job"] = io::parse_ordered_json(job_json, "job");
  auto& list = json["files"] = OrderedJson::array();
  for (const io::FileRecord& file : files)
    list.push_back({{"name", file.name}, {"bytes", file.bytes}, {"hash", file.hash}});
  json["operators"] = described;
  json["decoded"] = decoded;
  json["changed"] = changed;
  json["copied"] = copied;
  json["checksum"] = io::hash_of(json.dump());
  return json.dump(1) + "\n";
}

OutputRecord OutputRecord::from_json(const std::string& text, const std::string& where) {
  OrderedJson json = io::parse_ordered_json(text, where);
  const io::OrderedJsonView root(json, where);
  const std::string checksum = root.at("checksum").text();
  OutputRecord out;
  out.version = root.at("version").text();
  out.source = root.at("source").text();
  out.job_json = root.at("job").value().dump();
  for (const io::OrderedJsonView& file : root.at("files").elements()) {
    out.files.push_back({read_file_name(file.at("name")), static_cast<uint64_t>(file.at("bytes").integer(0)),
                         file.at("hash").text()});
  }
  out.described = read_map(root.at("operators"));
  out.decoded = read_map(root.at("decoded"));
  if (json.contains("changed")) out.changed = read_map(root.at("changed"));  // not in records before 0.2
  out.copied = read_map(root.at("copied"));
  OrderedJson signed_part = json;
  signed_part.erase("checksum");
  // White space is part of the file too: writing the record again must give the same text.
  if (io::hash_of(signed_part.dump()) != checksum || json.dump(1) + "\n" != text) {
    throw CorruptFile(where, "the record must have its own checksum; it was changed");
  }
  return out;
}

std::string compare_files(const std::filesystem::path& directory, const OutputRecord& record,
                          Observer& observer, Verification& result) {
  std::set<std::string> known{OutputRecord::kFileName};
  for (const io::FileRecord& file : record.files) {
    for (std::filesystem::path path = file.name; !path.empty(); path = path.parent_path())
      known.insert(path.string());  // the file, and the folders it is in
    if (!std::filesystem::exists(directory / file.name))
      return fmt::format("the file '{}' is missing", file.name);
    if (io::record_of(directory, file.name) != file)
      return fmt::format("the file '{}' differs from what was written", file.name);
    ++result.files_hashed;
    observer.progress(
        {"verify", result.files_hashed, static_cast<int64_t>(record.files.size()) + 1, file.name});
  }
  const std::string unknown = unknown_file(directory, "", known);
  return unknown.empty() ? "" : fmt::format("the file '{}' is not in the record", unknown);
}

namespace {

/// Throws CorruptFile when one of the values that the model reads beside its operators is not finite.
void require_finite_vectors(const model::Model& model, int64_t block) {
  for (const auto& [name, length] : model.architecture().block_norms(block)) model.read_finite(name);
  for (const model::OperatorInfo& op : model.architecture().operators(block)) {
    if (op.has_bias) model.read_finite(op.name + ".bias");
  }
}

/// A tensor that neither belongs to an operator of the record nor is one of its others; "" without any.
std::string unknown_tensor(const model::Model& model, const OutputRecord& record) {
  for (const std::string& name : model.checkpoint().names()) {
    const bool of_operator = record.decoded.contains(name.substr(0, name.find(".weight"))) ||
                             record.decoded.contains(name.substr(0, name.find(".input_")));
    if (!of_operator && !record.copied.contains(name) && !record.changed.contains(name)) return name;
  }
  return "";
}

}  // namespace

std::string compare_tensors(const model::Model& model, const OutputRecord& record, Verification& result) {
  if (const std::string name = unknown_tensor(model, record); !name.empty())
    return fmt::format("the tensor {} is not in the record", io::quote_name(name));
  size_t found = 0;
  for (int64_t block = 0; block < model.size(); ++block) {
    require_finite_vectors(model, block);
    for (const model::OperatorInfo& op : model.architecture().operators(block)) {
      const auto wanted = record.decoded.find(op.name);
      const WeightPtr weight = model.load_weight(op);
      const at::Tensor decoded = weight->dense();
      ++result.tensors_decoded;
      if (!at::isfinite(decoded).all().item<bool>())
        return fmt::format("'{}' decodes to values that are not finite", op.name);
      if (wanted == record.decoded.end()) continue;
      ++found;
      ++result.tensors_compared;
      const std::string hash = weight->quantizes_input() ? decoded_hash(*weight) : decoded_hash(decoded);
      if (hash != wanted->second)
        return fmt::format("'{}' decodes to other values than were computed", op.name);
    }
  }
  if (const auto wanted = record.decoded.find(model.embedding().name); wanted != record.decoded.end()) {
    ++found;
    ++result.tensors_decoded;
    ++result.tensors_compared;
    if (!model.compressed_embedding() ||
        decoded_hash_of_rows(*model.compressed_embedding()) != wanted->second)
      return fmt::format("'{}' decodes to other values than were computed", wanted->first);
  }
  if (found != record.decoded.size()) return "an operator of the record is not in the model";
  for (const auto& [hashes, difference] :
       {std::pair{&record.copied, "its source"}, std::pair{&record.changed, "what was computed"}}) {
    for (const auto& [name, hash] : *hashes) {
      if (!model.checkpoint().contains(name)) return fmt::format("the tensor '{}' is missing", name);
      ++result.tensors_compared;
      if (model.checkpoint().hash_of_tensor(name) != hash)
        return fmt::format("the tensor '{}' differs from {}", name, difference);
    }
  }
  for (const std::string& name : model.outer_tensors()) {
    if (io::scalar_type_of(model.checkpoint().info(name).dtype)) model.read_finite(name);
  }
  return "";
}

std::string output_config(const model::Model& source,
                          const std::map<std::string, QuantizationConfig::Group>& groups,
                          const std::vector<model::BlockWidths>& widths) {
  const std::string quantization =
      groups.empty() ? "" : quantization_config(source.architecture(), groups).to_json();
  io::JsonEntries entries = {{"quantization_config", quantization}, {"compression_config", ""}};
  const model::Architecture& a = source.architecture();
  const std::vector<model::BlockWidths> usual(widths.size(), {a.heads, a.kv_heads, a.intermediate_size});
  if (widths != usual || a.widths != usual) {
    const io::JsonEntries of_widths = model::width_entries(a, widths);
    entries.insert(entries.end(), of_widths.begin(), of_widths.end());
  }
  return io::config_with(source.config_json(), entries, source.where() + "/config.json");
}

}  // namespace lcomp::pipeline
