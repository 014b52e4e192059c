#include "lcomp/model/quantization_config.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "io/json_util.h"
#include "io/name_pattern.h"
#include "lcomp/core/error.h"
#include "model/weight_formats.h"

namespace lcomp::model {
namespace {

using io::OrderedJsonView;
using quant::Granularity;
using quant::NumberFormat;
using quant::QuantScheme;

constexpr const char* kCompressedTensors = "compressed-tensors";
constexpr const char* kBitsAndBytes = "bitsandbytes";
constexpr const char* kOwnMethod = "lcomp";

enum class Match { kNone, kClass, kRegex, kExact };

Match match(const std::string& target, const std::string& name) {
  if (target == name) return Match::kExact;
  if (target == "Linear") return Match::kClass;
  if (target.starts_with("re:") && io::NamePattern(target.substr(3)).matches_start_of(name)) {
    return Match::kRegex;
  }
  return Match::kNone;
}

Match best_match(const std::vector<std::string>& targets, const std::string& name) {
  Match best = Match::kNone;
  for (const std::string& target : targets) best = std::max(best, match(target, name));
  return best;
}

/// Reads a scale's strategy into the scheme, and into `block_rows` when a scale serves a block of the matrix.
void read_strategy(const OrderedJsonView& weights, QuantScheme& scheme, int64_t& block_rows) {
  const int64_t group_size = weights.integer_or("group_size", 0);
  const char* by_size = group_size > 0 ? "group" : group_size == -1 ? "channel" : "tensor";
  const std::string strategy = weights.text_or("strategy", by_size);
  if (strategy == "group" && group_size < 1)
    weights.fail(fmt::format("group_size must be positive for the strategy group; it is {}", group_size));
  if (strategy == "group") {
    scheme.granularity = Granularity::kGroup;
    scheme.group_size = group_size;
  } else if (strategy == "channel") {
    scheme.granularity = Granularity::kChannel;
  } else if (strategy == "tensor") {
    scheme.granularity = Granularity::kTensor;
  } else if (strategy == "block") {
    const std::vector<int64_t> block = weights.at("block_structure").integers(1, int64_t{1} << 31);
    if (block.size() != 2)
      weights.fail(
          fmt::format("block_structure must hold rows and columns; it has {} numbers", block.size()));
    scheme.granularity = Granularity::kGroup;
    block_rows = block[0];
    scheme.group_size = block[1];
  } else {
    throw Unsupported(
        "config.json: " + weights.pointer(),
        fmt::format("strategy must be one of group, channel, tensor, block; it is '{}'", strategy));
  }
}

/// How `weights.type` names a number format.
std::string_view type_name(NumberFormat format) {
  switch (format) {
    case NumberFormat::kNf4:
      return "nf4";
    case NumberFormat::kFp8E4m3:
      return "float";
    case NumberFormat::kInt:
      break;
  }
  return "int";
}

QuantScheme read_scheme(const OrderedJsonView& weights, const WeightFormat& format, int64_t& block_rows) {
  QuantScheme scheme;
  scheme.format = *format.number_format;
  const std::string type = weights.text_or("type", "int");
  if (type != type_name(scheme.format)) {
    throw Unsupported("config.json: " + weights.pointer(),
                      fmt::format("the type of {} weights must be {}; it is '{}'", format.name,
                                  type_name(scheme.format), type));
  }
  const int64_t bits = weights.integer_or("num_bits", 8);
  if (scheme.format == NumberFormat::kInt) {
    if (bits < 2 || bits > 8) weights.fail(fmt::format("num_bits must lie in 2..8; it is {}", bits));
    scheme.bits = bits;
  } else if (bits != scheme.code_bits()) {
    throw Unsupported(
        "config.json: " + weights.pointer(),
        fmt::format("num_bits of the type {} must be {}; it is {}", type, scheme.code_bits(), bits));
  }
  scheme.symmetric = weights.boolean_or("symmetric", true);
  scheme.double_quant = weights.boolean_or("double_quant", false);
  if (!scheme.symmetric && scheme.format != NumberFormat::kInt)
    weights.fail(fmt::format("symmetric must be true for the type {}; it is false", type));
  read_strategy(weights, scheme, block_rows);
  return scheme;
}

/// Targets or names to ignore; a regular expression among them must be one.
std::vector<std::string> read_patterns(const OrderedJsonView& list) {
  std::vector<std::string> patterns = list.texts();
  for (const std::string& pattern : patterns) {
    if (!pattern.starts_with("re:")) continue;
    try {
      const io::NamePattern compiled(pattern.substr(3));
    } catch (const InvalidArgument& error) {
      list.fail(fmt::format("must hold valid regular expressions; '{}': {}", pattern, error.what()));
    }
  }
  return patterns;
}

std::string known_formats() {
  std::vector<std::string_view> names;
  for (const WeightFormat& format : weight_formats()) names.push_back(format.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

/// The format of a group: its own, or that of the whole config.
const WeightFormat& read_format(const OrderedJsonView& group, const std::string& common) {
  std::string name = group.text_or("format", common);
  if (name == "mixed-precision")
    group.fail("format must be given in every group where the whole is mixed-precision; it is missing");
  if (name == "dense") name = "pack-quantized";  // which operators are stored so, their tensors tell
  if (name == "naive-quantized") {
    const auto weights = group.find("weights");
    name = weights && weights->text_or("type", "int") == "float" ? "float-quantized" : "int-quantized";
  }
  const WeightFormat* format = find_weight_format(name);
  if (format == nullptr) {
    throw Unsupported("config.json: " + group.pointer(),
                      fmt::format("the format must be one of {}; it is '{}'", known_formats(), name));
  }
  return *format;
}

/// How inputs are rounded: integers or E4M3 numbers, per token or per tensor.
quant::ActivationScheme read_activations(const OrderedJsonView& json) {
  const std::string where = "config.json: " + json.pointer();
  quant::ActivationScheme scheme;
  const std::string type = json.text_or("type", "int");
  if (type != "int" && type != "float")
    throw Unsupported(where, fmt::format("the type of activations must be int or float; it is '{}'", type));
  if (type == "float") scheme.format = NumberFormat::kFp8E4m3;
  scheme.bits = json.integer_or("num_bits", 8);
  scheme.symmetric = json.boolean_or("symmetric", true);
  const std::string strategy = json.text_or("strategy", "tensor");
  if (strategy != "tensor" && strategy != "token") {
    throw Unsupported(
        where, fmt::format("the strategy of activations must be tensor or token; it is '{}'", strategy));
  }
  scheme.granularity =
      strategy == "token" ? quant::ActivationGranularity::kToken : quant::ActivationGranularity::kTensor;
  const auto dynamic = json.find("dynamic");
  if (dynamic && !dynamic->value().is_boolean())
    throw Unsupported(where, "dynamic must be true or false; it is 'local'");
  scheme.dynamic = json.boolean_or("dynamic", false);
  try {
    scheme.validate(where);
  } catch (const InvalidArgument& error) {
    json.fail(std::string(error.what()).substr(where.size() + 3));
  }
  return scheme;
}

/// How deep weights may be made of weights: a sum of products of pivoted factors of codes.
constexpr int kMostDepth = 4;

QuantizationConfig::Group read_group(const OrderedJsonView& json, const std::string& common_format,
                                     int depth = 0);

/// The groups of the weights that one is made of.
std::vector<QuantizationConfig::Group> read_parts(const OrderedJsonView& json, const WeightFormat& whole,
                                                  int depth) {
  if (depth > kMostDepth)
    json.fail(fmt::format("weights must be made of weights at most {} deep; these are deeper", kMostDepth));
  std::vector<QuantizationConfig::Group> parts;
  for (const OrderedJsonView& part : json.elements()) {
    if (parts.size() == whole.most_parts) break;
    if (part.text_or("format", "") == "dense") {
      parts.push_back({.targets = {}, .scheme = {}, .format = "dense"});
    } else {
      parts.push_back(read_group(part, "pack-quantized", depth));
    }
  }
  if (parts.size() < whole.least_parts || json.elements().size() > whole.most_parts) {
    json.fail(fmt::format("{} must have {} to {} parts; there are {}", whole.name, whole.least_parts,
                          whole.most_parts, json.elements().size()));
  }
  return parts;
}

QuantizationConfig::Group read_group(const OrderedJsonView& json, const std::string& common_format,
                                     int depth) {
  if (json.find("output_activations")) {
    throw Unsupported("config.json: " + json.pointer(),
                      "only weights and inputs may be quantized; this group quantizes output_activations");
  }
  const WeightFormat& format = read_format(json, common_format);
  QuantizationConfig::Group group;
  group.format = format.name;
  group.targets = read_patterns(json.at("targets"));
  if (format.number_format) group.scheme = read_scheme(json.at("weights"), format, group.block_rows);
  if (const auto inputs = json.find("input_activations")) group.input_activations = read_activations(*inputs);
  if (const auto numbers = json.find("lcomp")) {
    for (const auto& [name, value] : numbers->members()) group.numbers[name] = value.number();
  }
  if (format.most_parts > 0) {
    group.parts = read_parts(json.at("lcomp_parts"), format, depth + 1);
  } else if (const auto parts = json.find("lcomp_parts")) {
    parts->fail(fmt::format("the format {} has no parts", format.name));
  }
  return group;
}

nlohmann::ordered_json scheme_to_json(const QuantScheme& scheme, int64_t block_rows) {
  const bool grouped = scheme.granularity == Granularity::kGroup;
  nlohmann::ordered_json json;
  json["num_bits"] = scheme.code_bits();
  json["type"] = type_name(scheme.format);
  json["symmetric"] = scheme.symmetric;
  if (scheme.double_quant) json["double_quant"] = true;
  json["strategy"] = block_rows > 0 ? "block" : std::string(name_of(scheme.granularity));
  json["group_size"] = nullptr;
  if (grouped && block_rows == 0) json["group_size"] = scheme.group_size;
  json["dynamic"] = false;
  json["actorder"] = nullptr;
  json["block_structure"] = nullptr;
  if (block_rows > 0) json["block_structure"] = {block_rows, scheme.group_size};
  json["observer"] = "minmax";
  json["observer_kwargs"] = nlohmann::ordered_json::object();
  return json;
}

nlohmann::ordered_json activations_to_json(const quant::ActivationScheme& scheme) {
  nlohmann::ordered_json json;
  json["num_bits"] = scheme.bits;
  json["type"] = type_name(scheme.format);
  json["symmetric"] = scheme.symmetric;
  json["strategy"] = std::string(name_of(scheme.granularity));
  json["group_size"] = nullptr;
  json["dynamic"] = scheme.dynamic;
  json["actorder"] = nullptr;
  json["block_structure"] = nullptr;
  // What is dynamic is not observed beforehand.
  json["observer"] = scheme.dynamic ? nlohmann::ordered_json() : nlohmann::ordered_json("minmax");
  json["observer_kwargs"] = nlohmann::ordered_json::object();
  return json;
}

nlohmann::ordered_json group_to_json(const QuantizationConfig::Group& group, bool with_format) {
  nlohmann::ordered_json json;
  json["targets"] = group.targets;
  if (with_format) json["format"] = group.format;
  json["input_activations"] = nullptr;
  if (group.input_activations) json["input_activations"] = activations_to_json(*group.input_activations);
  json["output_activations"] = nullptr;
  json["weights"] = nullptr;
  const WeightFormat* format = find_weight_format(group.format);
  if (format != nullptr && format->number_format)
    json["weights"] = scheme_to_json(group.scheme, group.block_rows);
  if (!group.numbers.empty()) json["lcomp"] = group.numbers;
  for (const QuantizationConfig::Group& part : group.parts)
    json["lcomp_parts"].push_back(group_to_json(part, true));
  return json;
}

/// Whether bitsandbytes can read all of it: only NF4, in blocks of a size that it knows.
bool is_bitsandbytes(const std::vector<QuantizationConfig::Group>& groups) {
  using Group = QuantizationConfig::Group;
  return !groups.empty() && std::all_of(groups.begin(), groups.end(), [](const Group& group) {
    const QuantScheme& scheme = group.scheme;
    const bool known_size = scheme.group_size >= 64 && scheme.group_size <= 4096 &&
                            (scheme.group_size & (scheme.group_size - 1)) == 0;
    return group.format == "lcomp-nf4" && scheme.granularity == Granularity::kGroup && known_size;
  });
}

/// What transformers and bitsandbytes read; block sizes and double quantization stand with each weight.
std::string bitsandbytes_json(const QuantizationConfig& config) {
  nlohmann::ordered_json json;
  json["quant_method"] = kBitsAndBytes;
  json["load_in_4bit"] = true;
  json["load_in_8bit"] = false;
  json["bnb_4bit_quant_type"] = "nf4";
  json["bnb_4bit_use_double_quant"] = config.groups[0].scheme.double_quant;
  json["bnb_4bit_compute_dtype"] = "float32";
  json["bnb_4bit_quant_storage"] = "uint8";
  json["llm_int8_skip_modules"] = config.ignore;
  return json.dump();
}

/// The operators that it stores in 4 bits are found by their tensors, so one group for all says enough.
QuantizationConfig read_bitsandbytes(const OrderedJsonView& json) {
  const std::string type = json.text_or("bnb_4bit_quant_type", "fp4");
  if (!json.boolean_or("load_in_4bit", false) || type != "nf4") {
    throw Unsupported(
        "config.json: " + json.pointer(),
        fmt::format("a bitsandbytes model must have load_in_4bit and the type nf4; {} and {} came",
                    json.boolean_or("load_in_4bit", false) ? "load_in_4bit" : "no load_in_4bit", type));
  }
  QuantizationConfig config;
  config.groups.emplace_back();
  config.groups[0].targets = {"Linear"};
  config.groups[0].format = "lcomp-nf4";
  QuantScheme& scheme = config.groups[0].scheme;
  scheme.format = NumberFormat::kNf4;
  scheme.group_size = 64;
  scheme.double_quant = json.boolean_or("bnb_4bit_use_double_quant", false);
  return config;
}

}  // namespace

const QuantizationConfig::Group* QuantizationConfig::group_for(const std::string& name) const {
  if (best_match(ignore, name) != Match::kNone) return nullptr;
  const Group* chosen = nullptr;
  Match best = Match::kNone;
  for (const Group& group : groups) {
    const Match m = best_match(group.targets, name);
    if (m > best) {
      best = m;
      chosen = &group;
    }
  }
  return chosen;
}

std::optional<QuantScheme> QuantizationConfig::scheme_for(const std::string& name) const {
  const Group* group = group_for(name);
  return group == nullptr ? std::nullopt : std::optional(group->scheme);
}

std::string QuantizationConfig::Group::to_json() const {
  return group_to_json(*this, true).dump();
}

QuantizationConfig::Group QuantizationConfig::Group::from_json(std::string_view text,
                                                               const std::string& where) {
  const io::OrderedJson json = io::parse_ordered_json(text, where, {.error = ErrorKind::kConfig});
  return read_group(OrderedJsonView(json, where, ErrorKind::kConfig), "pack-quantized");
}

std::string QuantizationConfig::to_json() const {
  if (is_bitsandbytes(groups)) return bitsandbytes_json(*this);
  const bool mixed = std::any_of(groups.begin(), groups.end(),
                                 [&](const Group& group) { return group.format != groups[0].format; });
  const bool own = std::any_of(groups.begin(), groups.end(),
                               [](const Group& group) { return group.format.starts_with("lcomp-"); });
  nlohmann::ordered_json json;
  json["quant_method"] = own ? kOwnMethod : kCompressedTensors;
  json["format"] = mixed ? "mixed-precision" : groups.empty() ? "dense" : groups[0].format;
  json["quantization_status"] = "compressed";
  json["global_compression_ratio"] = nullptr;
  json["kv_cache_scheme"] = nullptr;
  json["ignore"] = ignore;
  auto& all = json["config_groups"] = nlohmann::ordered_json::object();
  // Older readers know no format of a group, so it is there only where it says something.
  for (size_t i = 0; i < groups.size(); ++i)
    all[fmt::format("group_{}", i)] = group_to_json(groups[i], mixed);
  return json.dump();
}

std::optional<QuantizationConfig> QuantizationConfig::read(std::string_view config_json,
                                                           const std::string& where) {
  const io::OrderedJson json = io::parse_ordered_json(config_json, where, {.error = ErrorKind::kConfig});
  const OrderedJsonView root(json, where, ErrorKind::kConfig);
  auto config = root.find("quantization_config");
  if (!config) config = root.find("compression_config");
  if (!config) return std::nullopt;
  const std::string method = config->text_or("quant_method", "");
  if (method == kBitsAndBytes) return read_bitsandbytes(*config);
  if (method != kCompressedTensors && method != kOwnMethod) {
    throw Unsupported(where + ", quantization_config",
                      fmt::format("quant_method must be {}, {} or {}; it is '{}'", kCompressedTensors,
                                  kBitsAndBytes, kOwnMethod, method));
  }
  const std::string format = config->text_or("format", "dense");
  const bool is_common = format == "dense" || format == "mixed-precision" || format == "naive-quantized";
  if (!is_common && find_weight_format(format) == nullptr) {
    throw Unsupported(where + ", quantization_config",
                      fmt::format("the format must be one of {}, naive-quantized, mixed-precision, dense; it "
                                  "is '{}'",
                                  known_formats(), format));
  }
  if (const auto rotations = config->find("transform_config"); rotations && !rotations->value().empty()) {
    throw Unsupported(where + ", quantization_config",
                      "transform_config must be empty; rotations are not applied when reading");
  }
  QuantizationConfig out;
  if (const auto ignore = config->find("ignore")) out.ignore = read_patterns(*ignore);
  if (const auto groups = config->find("config_groups")) {
    for (const auto& [name, group] : groups->members()) out.groups.push_back(read_group(group, format));
  }
  return out;
}

}  // namespace lcomp::model
