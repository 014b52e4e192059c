#include "lcomp/model/quantization_config.h"

#include <nlohmann/json.hpp>
#include <regex>

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::model {
namespace {

using io::OrderedJsonView;
using quant::Granularity;
using quant::QuantScheme;

enum class Match { kNone, kClass, kRegex, kExact };

Match match(const std::string& target, const std::string& name) {
  if (target == name) return Match::kExact;
  if (target == "Linear") return Match::kClass;
  if (target.starts_with("re:") &&
      std::regex_search(name, std::regex(target.substr(3)), std::regex_constants::match_continuous)) {
    return Match::kRegex;
  }
  return Match::kNone;
}

Match best_match(const std::vector<std::string>& targets, const std::string& name) {
  Match best = Match::kNone;
  for (const std::string& target : targets) best = std::max(best, match(target, name));
  return best;
}

Granularity read_granularity(const OrderedJsonView& weights, int64_t group_size) {
  const char* by_size = group_size > 0 ? "group" : group_size == -1 ? "channel" : "tensor";
  const std::string strategy = weights.text_or("strategy", by_size);
  if (strategy == "group") return Granularity::kGroup;
  if (strategy == "channel") return Granularity::kChannel;
  if (strategy == "tensor") return Granularity::kTensor;
  throw Unsupported("config.json: " + weights.pointer(),
                    fmt::format("strategy must be one of group, channel, tensor; it is '{}'", strategy));
}

QuantScheme read_scheme(const OrderedJsonView& weights) {
  QuantScheme scheme;
  const std::string type = weights.text_or("type", "int");
  if (type != "int") {
    throw Unsupported("config.json: " + weights.pointer(),
                      fmt::format("the type of packed weights must be int; it is '{}'", type));
  }
  scheme.bits = weights.integer_or("num_bits", 8);
  if (scheme.bits < 2 || scheme.bits > 8)
    weights.fail(fmt::format("num_bits must lie in 2..8; it is {}", scheme.bits));
  scheme.symmetric = weights.boolean_or("symmetric", true);
  const int64_t group_size = weights.integer_or("group_size", 0);
  scheme.granularity = read_granularity(weights, group_size);
  if (scheme.granularity == Granularity::kGroup) {
    if (group_size < 1)
      weights.fail(fmt::format("group_size must be positive for the strategy group; it is {}", group_size));
    scheme.group_size = group_size;
  }
  return scheme;
}

/// Targets or names to ignore; a regular expression among them must be one.
std::vector<std::string> read_patterns(const OrderedJsonView& list) {
  std::vector<std::string> patterns = list.texts();
  for (const std::string& pattern : patterns) {
    if (!pattern.starts_with("re:")) continue;
    try {
      const std::regex compiled(pattern.substr(3));
    } catch (const std::regex_error& error) {
      list.fail(fmt::format("must hold valid regular expressions; '{}': {}", pattern, error.what()));
    }
  }
  return patterns;
}

QuantizationConfig::Group read_group(const OrderedJsonView& group) {
  if (group.find("input_activations") || group.find("output_activations")) {
    throw Unsupported("config.json: " + group.pointer(),
                      "only weights may be quantized; this group quantizes activations");
  }
  const auto format = group.text_or("format", "pack-quantized");
  if (format != "pack-quantized") {
    throw Unsupported("config.json: " + group.pointer(),
                      fmt::format("the format must be pack-quantized; it is '{}'", format));
  }
  return {read_patterns(group.at("targets")), read_scheme(group.at("weights"))};
}

nlohmann::ordered_json scheme_to_json(const QuantScheme& scheme) {
  nlohmann::ordered_json json;
  json["num_bits"] = scheme.bits;
  json["type"] = "int";
  json["symmetric"] = scheme.symmetric;
  json["strategy"] = std::string(name_of(scheme.granularity));
  json["group_size"] = scheme.granularity == Granularity::kGroup ? nlohmann::ordered_json(scheme.group_size)
                                                                 : nlohmann::ordered_json();
  json["dynamic"] = false;
  json["actorder"] = nullptr;
  json["block_structure"] = nullptr;
  json["observer"] = "minmax";
  json["observer_kwargs"] = nlohmann::ordered_json::object();
  return json;
}

}  // namespace

std::optional<QuantScheme> QuantizationConfig::scheme_for(const std::string& name) const {
  if (best_match(ignore, name) != Match::kNone) return std::nullopt;
  const Group* chosen = nullptr;
  Match best = Match::kNone;
  for (const Group& group : groups) {
    const Match m = best_match(group.targets, name);
    if (m > best) {
      best = m;
      chosen = &group;
    }
  }
  return chosen == nullptr ? std::nullopt : std::optional(chosen->scheme);
}

std::string QuantizationConfig::to_json() const {
  nlohmann::ordered_json json;
  json["quant_method"] = "compressed-tensors";
  json["format"] = "pack-quantized";
  json["quantization_status"] = "compressed";
  json["global_compression_ratio"] = nullptr;
  json["kv_cache_scheme"] = nullptr;
  json["ignore"] = ignore;
  auto& all = json["config_groups"] = nlohmann::ordered_json::object();
  for (size_t i = 0; i < groups.size(); ++i) {
    nlohmann::ordered_json group;
    group["targets"] = groups[i].targets;
    group["input_activations"] = nullptr;
    group["output_activations"] = nullptr;
    group["weights"] = scheme_to_json(groups[i].scheme);
    all[fmt::format("group_{}", i)] = group;
  }
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
  if (method != "compressed-tensors") {
    throw Unsupported(where + ", quantization_config",
                      fmt::format("quant_method must be compressed-tensors; it is '{}'", method));
  }
  const std::string format = config->text_or("format", "dense");
  if (format != "pack-quantized" && format != "dense") {
    throw Unsupported(where + ", quantization_config",
                      fmt::format("the format must be pack-quantized or dense; it is '{}'", format));
  }
  if (const auto rotations = config->find("transform_config"); rotations && !rotations->value().empty()) {
    throw Unsupported(where + ", quantization_config",
                      "transform_config must be empty; rotations are not applied when reading");
  }
  QuantizationConfig out;
  if (const auto ignore = config->find("ignore")) out.ignore = read_patterns(*ignore);
  if (const auto groups = config->find("config_groups")) {
    for (const auto& [name, group] : groups->members()) out.groups.push_back(read_group(group));
  }
  return out;
}

}  // namespace lcomp::model
