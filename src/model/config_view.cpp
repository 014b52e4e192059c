#include "model/config_view.h"

#include "lcomp/core/error.h"

namespace lcomp::model {
namespace {

using io::OrderedJsonView;

/// What `get` reads of the field, or nothing when it is absent.
template <class Value>
std::optional<Value> read_if(const OrderedJsonView& object, const std::string& field,
                             Value (OrderedJsonView::*get)() const) {
  const auto found = object.find(field);
  if (!found) return std::nullopt;
  return ((*found).*get)();
}

bool is_whole(const io::OrderedJson& value) {
  return value.is_number_float() && std::abs(value.get<double>()) < 9e15 &&
         std::floor(value.get<double>()) == value.get<double>();
}

}  // namespace

std::optional<int64_t> ConfigView::integer(const std::string& field) const {
  const auto found = object_.find(field);
  if (!found) return std::nullopt;
  if (is_whole(found->value())) return static_cast<int64_t>(found->value().get<double>());
  return found->integer();
}

std::optional<double> ConfigView::number(const std::string& field) const {
  return read_if(object_, field, &OrderedJsonView::number);
}

std::optional<bool> ConfigView::boolean(const std::string& field) const {
  return read_if(object_, field, &OrderedJsonView::boolean);
}

std::optional<std::string> ConfigView::string(const std::string& field) const {
  return read_if(object_, field, &OrderedJsonView::text);
}

std::optional<std::vector<std::string>> ConfigView::strings(const std::string& field) const {
  return read_if(object_, field, &OrderedJsonView::texts);
}

std::optional<std::vector<double>> ConfigView::numbers(const std::string& field) const {
  return read_if(object_, field, &OrderedJsonView::numbers);
}

std::optional<ConfigView> ConfigView::object(const std::string& field) const {
  const auto found = object_.find(field);
  if (!found) return std::nullopt;
  found->members();  // must be an object
  return ConfigView(*found);
}

int64_t ConfigView::positive(const std::string& field) const {
  const auto value = integer(field);
  // Far above any real model, far below what could overflow a product of two sizes.
  constexpr int64_t kLargest = int64_t{1} << 31;
  if (!value || *value < 1 || *value > kLargest) reject(field, "must be an integer from 1 to 2^31");
  return *value;
}

int64_t ConfigView::positive_or(const std::string& field, int64_t fallback) const {
  return has(field) ? positive(field) : fallback;
}

std::string ConfigView::place(const std::string& field) const {
  return object_.place() + (object_.pointer().empty() ? ": /" : "/") + field;
}

void ConfigView::reject(const std::string& field, const std::string& must) const {
  const auto found = object_.find(field);
  const std::string came =
      found ? fmt::format("it is {}", found->value().dump().substr(0, 80)) : "it is absent";
  throw ConfigError(place(field), must + "; " + came);
}

}  // namespace lcomp::model
