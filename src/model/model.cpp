#include "lcomp/model/model.h"

#include <cstring>
#include <map>
#include <set>

#include "io/json_util.h"
#include "lcomp/core/dtype.h"
#include "lcomp/core/error.h"
#include "lcomp/io/files.h"
#include "model/kernels.h"
#include "model/weight_formats.h"

namespace lcomp::model {
namespace {

/// Buffers that old files carry along and no model reads.
bool is_stray_buffer(const std::string& name) {
  for (const char* suffix : {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias",
                             ".attention.masked_bias", "position_ids"}) {
    if (name.ends_with(suffix)) return true;
  }
  return false;
}

/// The tensors of a model that belong to no block and are read, but for embedding and head, with their
/// shapes.
std::map<std::string, std::vector<int64_t>> outer_parts(const Architecture& a) {
  std::map<std::string, std::vector<int64_t>> parts;
  for (const std::string& norm : {a.names.embedding_norm, a.names.final_norm}) {
    if (norm.empty()) continue;
    for (const std::string& name : a.norm_tensors(a.names.prefix + norm)) parts[name] = {a.hidden_size};
  }
  if (!a.names.positions.empty())
    parts[a.names.prefix + a.names.positions + ".weight"] = {a.max_positions, a.hidden_size};
  if (!a.names.token_types.empty())
    parts[a.names.prefix + a.names.token_types + ".weight"] = {a.token_types, a.hidden_size};
  return parts;
}

/// Takes the names that the checkpoint has where a family is stored under several.
void settle_names(const io::Checkpoint& checkpoint, Architecture& a) {
  if (a.names.prefix_optional && !checkpoint.contains(a.embedding_name()) &&
      checkpoint.contains(a.names.embedding + ".weight"))
    a.names.prefix = "";
  if (a.norm == NormKind::kLayer &&
      checkpoint.contains(a.block_prefix(0) + a.names.attention_norm + ".gamma")) {
    a.names.norm_weight = ".gamma";
    a.names.norm_bias = ".beta";
  }
}

std::string shape_text(const std::vector<int64_t>& shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

/// Throws CorruptFile with the position when a value of the tensor is NaN or infinite. `first_row`: that of
/// `values` in the tensor.
void require_finite(const at::Tensor& values, const std::string& name, const std::string& file,
                    int64_t first_row = 0) {
  if (!values.is_floating_point()) return;
  constexpr int64_t kPiece = 1 << 18;  // what is made of a piece on the way takes a few times its memory
  const at::Tensor flat = values.reshape({-1});
  for (int64_t begin = 0; begin < flat.numel(); begin += kPiece) {
    const at::Tensor bad = at::isfinite(flat.slice(0, begin, begin + kPiece)).logical_not_();
    if (!bad.any().item<bool>()) continue;
    int64_t number = begin + at::nonzero(bad)[0].item<int64_t>();
    std::vector<int64_t> index(static_cast<size_t>(values.dim()));
    for (size_t d = index.size(); d-- > 0;) {
      index[d] = number % values.sizes()[d];
      number /= values.sizes()[d];
    }
    if (!index.empty()) index[0] += first_row;
    throw CorruptFile(
        file, fmt::format("the tensor '{}' must hold finite values; the one at {} is NaN or infinite", name,
                          shape_text(index)));
  }
}

}  // namespace

Model Model::open(const std::filesystem::path& directory) {
  const auto config = directory / "config.json";
  if (!std::filesystem::is_directory(directory)) {
    throw CorruptFile(
        directory.string(),
        "the model must be a directory with config.json and safetensors files; it is no directory");
  }
  if (!std::filesystem::exists(config))
    throw CorruptFile(directory.string(), "the model directory must hold config.json; there is none");
  Model model(io::read_file(config), io::open_checkpoint(directory), directory.string());
  if (!model.architecture_.is_language_model()) model.pooling_ = read_pooling(directory);
  return model;
}

Model::Model(std::string config_json, io::CheckpointPtr checkpoint, std::string where)
    : config_json_(std::move(config_json)), checkpoint_(std::move(checkpoint)), where_(std::move(where)) {
  const std::string config_name = where_ + "/config.json";
  try {
    architecture_ = read_architecture(config_json_, config_name);
  } catch (const ConfigError& error) {  // of the model's file, not of the job
    throw CorruptFile(error);
  }
  settle_names(*checkpoint_, architecture_);
  quantization_ = QuantizationConfig::read(config_json_, config_name);
  warnings_ = checkpoint_->warnings();
  check_all();
}

void Model::check_tensor(const std::string& name, const std::vector<int64_t>& shape) const {
  if (!checkpoint_->contains(name)) {
    throw CorruptFile(where_, fmt::format("the model must have the tensor '{}' {}; it is missing", name,
                                          shape_text(shape)));
  }
  const auto& info = checkpoint_->info(name);
  if (info.shape != shape) {
    throw CorruptFile(checkpoint_->file_of(name), fmt::format("the tensor '{}' must be {}; it is {}", name,
                                                              shape_text(shape), shape_text(info.shape)));
  }
}

const QuantizationConfig::Group* Model::group_of(const OperatorInfo& op) const {
  if (!quantization_) return nullptr;
  const auto* group = quantization_->group_for(op.name);
  if (group == nullptr) return nullptr;
  return find_weight_format(group->format)->is_stored(*checkpoint_, op.name) ? group : nullptr;
}

void Model::check_operator(const OperatorInfo& op) const {
  if (op.has_bias) check_tensor(op.name + ".bias", {op.out_features});
  const auto* group = group_of(op);
  if (group == nullptr) {
    for (const WeightFormat& format : weight_formats()) {
      if (!format.is_stored(*checkpoint_, op.name)) continue;
      throw CorruptFile(where_,
                        fmt::format("'{}{}' must belong to a group of quantization_config with the format "
                                    "{}; none matches it",
                                    op.name, format.marker, format.name));
    }
    return check_tensor(op.name + ".weight", {op.out_features, op.in_features});
  }
  const std::string_view marker = find_weight_format(group->format)->marker;
  if (!marker.starts_with(".weight.") && marker != ".weight" && checkpoint_->contains(op.name + ".weight")) {
    throw CorruptFile(where_, fmt::format("the operator '{}' must be dense or {}; it has both .weight and {}",
                                          op.name, group->format, marker));
  }
}

OperatorInfo Model::embedding() const {
  const TensorNames& names = architecture_.names;
  OperatorInfo info;
  info.name = names.prefix + names.embedding;
  info.kind = names.embedding;
  info.out_features = architecture_.vocab_size;
  info.in_features = architecture_.hidden_size;
  return info;
}

/// An embedding that is stored compressed is small, and is read whole.
void Model::load_embedding() {
  const OperatorInfo info = embedding();
  if (group_of(info) == nullptr) return;
  compressed_embedding_ = load_weight(info);
  if (compressed_embedding_->quantizes_input())
    throw CorruptFile(where_, fmt::format("'{}' must not round its input; it does", info.name));
}

void Model::check_all() {
  for (const auto& [name, shape] : outer_parts(architecture_)) check_tensor(name, shape);
  load_embedding();
  embedding_name_ = architecture_.embedding_name();
  if (architecture_.is_language_model()) head_name_ = architecture_.head_name();
  const bool has_embedding = checkpoint_->contains(embedding_name_);
  const bool has_head = checkpoint_->contains(head_name_);
  // One matrix for both, whichever name it is stored under; two stored matrices are two, whatever the flag
  // says.
  if (architecture_.tied_embeddings && has_embedding != has_head && !compressed_embedding_)
    embedding_name_ = head_name_ = has_embedding ? embedding_name_ : head_name_;
  const std::vector<int64_t> shape = {architecture_.vocab_size, architecture_.hidden_size};
  const bool head_is_embedding = architecture_.tied_embeddings && !has_head && compressed_embedding_;
  if (!compressed_embedding_) check_tensor(embedding_name_, shape);
  if (architecture_.is_language_model() && !head_is_embedding) check_tensor(head_name_, shape);
  if (head_is_embedding) head_name_.clear();
  if (architecture_.tied_embeddings && has_embedding && has_head &&
      checkpoint_->hash_of_tensor(embedding_name_) != checkpoint_->hash_of_tensor(head_name_)) {
    warnings_.push_back(
        fmt::format("{}: tie_word_embeddings is true, but embedding and head differ; both are kept", where_));
  }
  for (int64_t i = 0; i < size(); ++i) {
    for (const OperatorInfo& op : architecture_.operators(i)) check_operator(op);
    for (const auto& [name, length] : architecture_.block_norms(i)) check_tensor(name, {length});
  }
  warn_of_unused();
}

/// Tensors that no part of the model reads. They are copied; but a bias that config.json does not announce is
/// as likely a mistake as a leftover.
void Model::warn_of_unused() {
  std::set<std::string> used = {architecture_.embedding_name(), architecture_.head_name()};
  for (const auto& [name, shape] : outer_parts(architecture_)) used.insert(name);
  std::map<std::string, bool> biased;  // by operator
  for (int64_t i = 0; i < size(); ++i) {
    for (const auto& [name, length] : architecture_.block_norms(i)) used.insert(name);
    for (const OperatorInfo& op : architecture_.operators(i)) biased[op.name] = op.has_bias;
  }
  const std::string of_embedding = compressed_embedding_ ? embedding().name + "." : std::string();
  const auto is_used = [&](const std::string& name) {
    if (compressed_embedding_ && name.starts_with(of_embedding)) return true;
    if (used.contains(name) || is_stray_buffer(name)) return true;
    for (const std::string& task : architecture_.names.task_heads) {
      if (name.starts_with(task) || name.starts_with(architecture_.names.prefix + task)) return true;
    }
    // "operator.weight", "operator.weight_packed", "operator.input_scale", "operator.weight.absmax".
    for (size_t dot = name.find('.'); dot != std::string::npos; dot = name.find('.', dot + 1)) {
      const auto op = biased.find(name.substr(0, dot));
      if (op != biased.end()) return op->second || name.substr(dot) != ".bias";
    }
    return false;
  };
  std::vector<std::string> unused;
  for (const std::string& name : checkpoint_->names()) {
    if (!is_used(name)) unused.push_back(name);
  }
  if (unused.empty()) return;
  constexpr size_t kShown = 5;
  const size_t shown = std::min(kShown, unused.size());
  const std::string rest = unused.size() > shown ? fmt::format(" and {} more", unused.size() - shown) : "";
  warnings_.push_back(
      fmt::format("{}: tensors that no part of the model reads are only copied: {}{}", where_,
                  fmt::join(unused.begin(), unused.begin() + static_cast<int64_t>(shown), ", "), rest));
}

at::Tensor Model::read_finite(const std::string& name) const {
  at::Tensor tensor = checkpoint_->read(name);
  require_finite(tensor, name, checkpoint_->file_of(name));
  return tensor;
}

WeightPtr Model::load_weight(const OperatorInfo& op) const {
  const auto* group = group_of(op);
  if (group == nullptr) return load_matrix({*this, op});
  const WeightFormat& format = *find_weight_format(group->format);
  WeightPtr weight = format.load(StoredOperator(*this, op), *group);
  if (weight->out_features() != op.out_features || weight->in_features() != op.in_features) {
    throw CorruptFile(
        checkpoint_->file_of(op.name + std::string(format.marker)),
        fmt::format("the {} weight of '{}' must be [{}, {}]; it is [{}, {}]", group->format, op.name,
                    op.out_features, op.in_features, weight->out_features(), weight->in_features()));
  }
  return weight;
}

Block Model::load_block(int64_t i) const {
  std::map<std::string, at::ScalarType> stored_types;
  const auto read_vector = [&](const std::string& name) {
    const at::Tensor stored = read_finite(name);
    stored_types[name] = stored.scalar_type();
    return stored.to(at::kFloat).contiguous();
  };
  std::vector<LinearOp> ops;
  for (const OperatorInfo& info : architecture_.operators(i)) {
    LinearOp op{info, load_weight(info), {}};
    if (info.has_bias) op.bias = read_vector(info.name + ".bias");
    ops.push_back(std::move(op));
  }
  std::map<std::string, at::Tensor> norms;
  for (const auto& [name, length] : architecture_.block_norms(i)) norms.emplace(name, read_vector(name));
  return {architecture_, i, std::move(ops), std::move(norms), std::move(stored_types)};
}

std::vector<std::string> Model::block_tensors(int64_t i) const {
  const std::string prefix = architecture_.block_prefix(i);
  std::vector<std::string> out;
  for (const std::string& name : checkpoint_->names()) {
    if (name.starts_with(prefix) && !is_stray_buffer(name)) out.push_back(name);
  }
  return out;
}

std::vector<std::string> Model::outer_tensors() const {
  std::vector<std::string> out;
  for (const std::string& name : checkpoint_->names()) {
    bool in_block = false;
    for (int64_t i = 0; i < size() && !in_block; ++i)
      in_block = name.starts_with(architecture_.block_prefix(i));
    if (!in_block && !is_stray_buffer(name)) out.push_back(name);
  }
  return out;
}

at::Tensor Model::read_rows(const std::string& name, int64_t begin, int64_t count) const {
  const io::TensorInfo& info = checkpoint_->info(name);
  const int64_t width = info.shape.at(1);
  const uint64_t row_bytes = info.bytes() / static_cast<uint64_t>(info.shape.at(0));
  io::TensorInfo part = info;
  part.shape = {count, width};
  part.begin = 0;
  part.end = row_bytes * static_cast<uint64_t>(count);
  const auto source = [&](std::span<std::byte> out) {
    checkpoint_->read_bytes(name, static_cast<uint64_t>(begin) * row_bytes, out);
  };
  at::Tensor rows = io::decode_as_float(part, source, checkpoint_->file_of(name));
  require_finite(rows, name, checkpoint_->file_of(name), begin);
  return rows;
}

at::Tensor Model::embed(std::span<const int64_t> ids, std::span<const int64_t> type_ids,
                        const Weight* table) const {
  const auto count = static_cast<int64_t>(ids.size());
  for (const int64_t id : ids) {
    if (id >= 0 && id < architecture_.vocab_size) continue;
    throw InvalidArgument("Model::embed", fmt::format("token ids must lie in [0, {}); received {}",
                                                      architecture_.vocab_size, id));
  }
  if (table == nullptr) table = compressed_embedding_.get();
  at::Tensor out;
  if (table != nullptr) {
    out = table->rows(at::tensor(c10::ArrayRef<int64_t>(ids.data(), ids.size()), at::kLong)).contiguous();
  } else {
    out = at::empty({count, architecture_.hidden_size}, at::kFloat);
    for (int64_t t = 0; t < count; ++t)
      out[t].copy_(read_rows(embedding_name_, ids[static_cast<size_t>(t)], 1)[0]);
  }
  add_positions_and_types(type_ids, out);
  if (!architecture_.names.embedding_norm.empty()) normalize(architecture_.names.embedding_norm, out);
  return out;
}

void Model::add_positions_and_types(std::span<const int64_t> type_ids, at::Tensor& embedded) const {
  const TensorNames& names = architecture_.names;
  const int64_t count = embedded.size(0);
  if (!names.positions.empty()) {
    require_positions(architecture_, count, "Model::embed");
    embedded += read_rows(names.prefix + names.positions + ".weight", 0, count);
  }
  if (names.token_types.empty()) return;
  const at::Tensor types =
      read_rows(names.prefix + names.token_types + ".weight", 0, architecture_.token_types);
  for (int64_t t = 0; t < count; ++t) {
    const int64_t type = type_ids.empty() ? 0 : type_ids[static_cast<size_t>(t)];
    if (type < 0 || type >= architecture_.token_types) {
      throw InvalidArgument("Model::embed", fmt::format("segment ids must lie in [0, {}); received {}",
                                                        architecture_.token_types, type));
    }
    embedded[t] += types[type];
  }
}

void Model::normalize(const std::string& norm, at::Tensor& hidden) const {
  std::vector<at::Tensor> values;
  for (const std::string& name : architecture_.norm_tensors(architecture_.names.prefix + norm))
    values.push_back(read_finite(name).to(at::kFloat).contiguous());
  float* x = hidden.data_ptr<float>();
  const float* weight = values[0].data_ptr<float>();
  const double eps = architecture_.norm_eps;
  if (architecture_.norm == NormKind::kRms) {
    kernels::rms_norm(x, weight, eps, hidden.size(0), hidden.size(1), x);
  } else {
    kernels::layer_norm(x, weight, values[1].data_ptr<float>(), eps, hidden.size(0), hidden.size(1), x);
  }
}

void Model::final_norm(at::Tensor& hidden) const {
  if (!architecture_.names.final_norm.empty()) normalize(architecture_.names.final_norm, hidden);
}

at::Tensor Model::head_rows(int64_t begin, int64_t count) const {
  if (!architecture_.is_language_model()) {
    throw Unsupported(where_, fmt::format("the model must have a language-model head for this; the family {} "
                                          "has none",
                                          architecture_.family));
  }
  if (head_name_.empty()) return compressed_embedding_->rows(at::arange(begin, begin + count, at::kLong));
  return read_rows(head_name_, begin, count);
}

int64_t Model::parameters() const {
  int64_t sum = 0;
  std::set<std::string> operators;
  if (compressed_embedding_) {
    operators.insert(embedding().name);
    sum += architecture_.vocab_size * architecture_.hidden_size;
  }
  for (int64_t i = 0; i < size(); ++i) {
    for (const OperatorInfo& op : architecture_.operators(i)) {
      operators.insert(op.name);
      sum += op.out_features * op.in_features;
    }
  }
  for (const std::string& name : checkpoint_->names()) {
    // Whatever a matrix is stored as, it counts as the matrix.
    const bool of_matrix = operators.contains(name.substr(0, name.find(".weight"))) ||
                           operators.contains(name.substr(0, name.find(".input_")));
    if (!of_matrix && !is_stray_buffer(name)) sum += checkpoint_->info(name).elements();
  }
  return sum;
}

at::ScalarType Model::dtype() const {
  // Of a compressed embedding nothing can be told; norms are stored in the type of the model.
  const std::string name =
      compressed_embedding_ ? architecture_.block_norms(0).begin()->first : embedding_name_;
  return io::scalar_type_of(checkpoint_->info(name).dtype).value_or(at::kFloat);
}

}  // namespace lcomp::model
