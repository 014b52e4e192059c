#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "io/json_util.h"

namespace lcomp::model {

/// config.json field by field: what the getters of a JSON view are for one value, these are for a field that
/// may be absent. `null` counts as absent, as it does for transformers. A field of the wrong type or out of
/// range is a ConfigError with its JSON pointer.
class ConfigView {
 public:
  explicit ConfigView(io::OrderedJsonView object) : object_(std::move(object)) {}

  bool has(const std::string& field) const { return object_.find(field).has_value(); }
  /// Present, be it as null.
  bool mentions(const std::string& field) const { return object_.value().contains(field); }
  /// Some writers store integers as 500000.0, which counts as one.
  std::optional<int64_t> integer(const std::string& field) const;
  std::optional<double> number(const std::string& field) const;
  std::optional<bool> boolean(const std::string& field) const;
  std::optional<std::string> string(const std::string& field) const;
  std::optional<std::vector<std::string>> strings(const std::string& field) const;
  std::optional<std::vector<double>> numbers(const std::string& field) const;
  std::optional<ConfigView> object(const std::string& field) const;
  bool equals(const ConfigView& other) const { return object_.value() == other.object_.value(); }

  /// A required integer of at least 1.
  int64_t positive(const std::string& field) const;
  /// The same with a default.
  int64_t positive_or(const std::string& field, int64_t fallback) const;

  /// Throws the ConfigError "[file: /field] `must`; `came`".
  [[noreturn]] void reject(const std::string& field, const std::string& must) const;

  /// "file: /field", as in the errors.
  std::string place(const std::string& field) const;

 private:
  io::OrderedJsonView object_;
};

}  // namespace lcomp::model
