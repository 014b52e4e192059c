#include "model/config_view.h"

#include "lcomp/core/error.h"

namespace lcomp::model {

const nlohmann::ordered_json* ConfigView::find(const std::string& field) const {
  const auto found = object_->find(field);
  return found == object_->end() || found->is_null() ? nullptr : &*found;
}

void ConfigView::reject(const std::string& field, const std::string& must) const {
  const auto* value = find(field);
  const std::string came =
      value == nullptr ? "it is absent" : fmt::format("it is {}", value->dump().substr(0, 80));
  throw ConfigError(where_ + ", " + field, must + "; " + came);
}

bool ConfigView::has(const std::string& field) const {
  return find(field) != nullptr;
}

std::optional<int64_t> ConfigView::integer(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_integer()) return value->get<int64_t>();
  // Some writers store integers as 500000.0.
  if (value->is_number_float() && std::abs(value->get<double>()) < 9e15 &&
      std::floor(value->get<double>()) == value->get<double>()) {
    return static_cast<int64_t>(value->get<double>());
  }
  reject(field, "the field must be an integer");
}

std::optional<double> ConfigView::number(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) reject(field, "the field must be a number");
  return value->get<double>();
}

std::optional<bool> ConfigView::boolean(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) reject(field, "the field must be true or false");
  return value->get<bool>();
}

std::optional<std::string> ConfigView::string(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) reject(field, "the field must be a string");
  return value->get<std::string>();
}

std::optional<std::vector<std::string>> ConfigView::strings(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) reject(field, "the field must be a list of strings");
  std::vector<std::string> out;
  for (const auto& item : *value) {
    if (!item.is_string()) reject(field, "the field must be a list of strings");
    out.push_back(item.get<std::string>());
  }
  return out;
}

std::optional<std::vector<double>> ConfigView::numbers(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_array()) reject(field, "the field must be a list of numbers");
  std::vector<double> out;
  for (const auto& item : *value) {
    if (!item.is_number()) reject(field, "the field must be a list of numbers");
    out.push_back(item.get<double>());
  }
  return out;
}

std::optional<ConfigView> ConfigView::object(const std::string& field) const {
  const auto* value = find(field);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) reject(field, "the field must be an object");
  return ConfigView(*value, where_ + ", " + field);
}

int64_t ConfigView::positive(const std::string& field) const {
  const auto value = integer(field);
  // Far above any real model, far below what could overflow a product of two sizes.
  constexpr int64_t kLargest = int64_t{1} << 31;
  if (!value || *value < 1 || *value > kLargest) reject(field, "the field must be an integer from 1 to 2^31");
  return *value;
}

int64_t ConfigView::positive_or(const std::string& field, int64_t fallback) const {
  return has(field) ? positive(field) : fallback;
}

}  // namespace lcomp::model
