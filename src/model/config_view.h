#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace lcomp::model {

/// config.json with typed access; a field of the wrong type or out of range is a ConfigError naming file and
/// field. `null` counts as absent, as it does for transformers.
class ConfigView {
 public:
  ConfigView(const nlohmann::ordered_json& object, std::string where)
      : object_(&object), where_(std::move(where)) {}

  bool has(const std::string& field) const;
  /// Present, be it as null.
  bool mentions(const std::string& field) const { return object_->contains(field); }
  std::optional<int64_t> integer(const std::string& field) const;
  std::optional<double> number(const std::string& field) const;
  std::optional<bool> boolean(const std::string& field) const;
  std::optional<std::string> string(const std::string& field) const;
  std::optional<std::vector<std::string>> strings(const std::string& field) const;
  std::optional<std::vector<double>> numbers(const std::string& field) const;
  std::optional<ConfigView> object(const std::string& field) const;

  /// A required integer of at least 1.
  int64_t positive(const std::string& field) const;
  /// The same with a default.
  int64_t positive_or(const std::string& field, int64_t fallback) const;

  /// Throws the ConfigError "[file, field] `must`; `came`".
  [[noreturn]] void reject(const std::string& field, const std::string& must) const;

  const std::string& where() const { return where_; }

 private:
  const nlohmann::ordered_json* find(const std::string& field) const;

  const nlohmann::ordered_json* object_;
  std::string where_;
};

}  // namespace lcomp::model
