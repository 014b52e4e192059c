#include "pipeline/options_json.h"

#include <fmt/format.h>

#include <cmath>

#include "lcomp/core/bytes.h"
#include "lcomp/core/nearest.h"

namespace lcomp::pipeline {
namespace {

/// " from 2 to 8", " of at least 1", " of at most 8" or "".
std::string range_text(Range range) {
  const bool low = std::isfinite(range.min);
  const bool high = std::isfinite(range.max);
  if (low && high) return fmt::format(" from {} to {}", range.min, range.max);
  if (low) return fmt::format(" of at least {}", range.min);
  if (high) return fmt::format(" of at most {}", range.max);
  return "";
}

bool contains(Range range, double value) {
  return value >= range.min && value <= range.max;
}

/// Whether the number is an integer of 64 bits with a sign.
bool is_int64(const Json& value) {
  if (!value.is_number_integer()) return false;
  return !value.is_number_unsigned() ||
         value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
}

bool is_string_list(const Json& value) {
  return value.is_array() &&
         std::all_of(value.begin(), value.end(), [](const Json& v) { return v.is_string(); });
}

std::vector<std::string> strings(const std::vector<std::string_view>& names) {
  return {names.begin(), names.end()};
}

Json number_schema(Range range, bool integer) {
  const auto bound = [integer](double value) {
    return integer ? Json(static_cast<int64_t>(value)) : Json(value);
  };
  Json schema = {{"type", integer ? "integer" : "number"}};
  if (std::isfinite(range.min)) schema["minimum"] = bound(range.min);
  if (std::isfinite(range.max)) schema["maximum"] = bound(range.max);
  return schema;
}

Json byte_size_schema() {
  const Json number = {{"type", "integer"}, {"minimum", 0}};
  const Json text = {{"type", "string"}, {"pattern", "^[0-9]+(\\.[0-9]+)? ?([KkMmGgTt][Ii]?)?[Bb]?$"}};
  return {{"anyOf", Json::array({number, text})}};
}

/// What a value of the field may be, as a JSON Schema.
Json schema_of(const FieldFacts& field) {
  using Type = FieldFacts::Type;
  switch (field.type) {
    case Type::kBoolean:
      return {{"type", "boolean"}};
    case Type::kInteger:
    case Type::kNumber:
      return number_schema(field.range, field.type == Type::kInteger);
    case Type::kText:
      return {{"type", "string"}};
    case Type::kTexts:
      return string_list_schema();
    case Type::kBytes:
      return byte_size_schema();
    case Type::kChoice:
      break;
  }
  return {{"enum", field.choices}};
}

/// The same in words.
std::string values_of(const FieldFacts& field) {
  using Type = FieldFacts::Type;
  switch (field.type) {
    case Type::kBoolean:
      return "true, false";
    case Type::kInteger:
      return "integer" + range_text(field.range);
    case Type::kNumber:
      return "number" + range_text(field.range);
    case Type::kText:
      return "string";
    case Type::kTexts:
      return "list of strings";
    case Type::kBytes:
      return "size";
    case Type::kChoice:
      break;
  }
  return fmt::format("{}", fmt::join(field.choices, ", "));
}

/// The field's value in words.
std::string preset_of(const FieldFacts& field) {
  using Type = FieldFacts::Type;
  if (field.type == Type::kBytes) return format_bytes(field.value.get<int64_t>());
  if (field.type == Type::kNumber) return fmt::format("{}", field.value.get<double>());
  if (field.type == Type::kTexts)
    return fmt::format("{}", fmt::join(field.value.get<std::vector<std::string>>(), ", "));
  return field.value.is_string() ? field.value.get<std::string>() : field.value.dump();
}

/// Inside a Markdown table a pipe would end the cell.
std::string cell(std::string text) {
  for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2))
    text.replace(at, 1, "\\|");
  return text;
}

}  // namespace

// ---- JsonReader

JsonReader::JsonReader(const Json& object, std::string pointer, Problems& problems)
    : object_(object), pointer_(std::move(pointer)), problems_(problems) {}

const Json* JsonReader::find(std::string_view name) {
  known_.emplace_back(name);
  const auto member = object_.find(known_.back());
  return member == object_.end() ? nullptr : &*member;
}

void JsonReader::fail(std::string_view name, const std::string& message) {
  problems_.push_back({child(pointer_, name), message + "; got " + shown(object_.at(std::string(name)))});
}

void JsonReader::field(std::string_view name, bool& value, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (!given->is_boolean()) return fail(name, "must be true or false");
  value = given->get<bool>();
}

void JsonReader::field(std::string_view name, int64_t& value, Range range, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (!is_int64(*given) || !contains(range, static_cast<double>(given->get<int64_t>()))) {
    return fail(name, "must be an integer" + range_text(range));
  }
  value = given->get<int64_t>();
}

void JsonReader::field(std::string_view name, double& value, Range range, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (!given->is_number() || !contains(range, given->get<double>())) {
    return fail(name, "must be a number" + range_text(range));
  }
  value = given->get<double>();
}

void JsonReader::field(std::string_view name, std::string& value, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (!given->is_string()) return fail(name, "must be a string");
  value = given->get<std::string>();
  if (value.find('\0') != std::string::npos) fail(name, "must not hold the character U+0000");
}

void JsonReader::field(std::string_view name, std::vector<std::string>& value, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (given->is_string()) {
    value = {given->get<std::string>()};
  } else if (is_string_list(*given)) {
    value = given->get<std::vector<std::string>>();
  } else {
    fail(name, "must be a list of strings");
  }
}

void JsonReader::bytes(std::string_view name, int64_t& value, std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  std::optional<int64_t> size;
  if (is_int64(*given) && given->get<int64_t>() >= 0) size = given->get<int64_t>();
  if (given->is_string()) size = parse_bytes(given->get<std::string>());
  if (!size) return fail(name, "must be a size such as 4000000000, \"4GB\" or \"512MiB\"");
  value = *size;
}

void JsonReader::choice(std::string_view name, size_t& value, const std::vector<std::string_view>& names,
                        std::string_view) {
  const Json* given = find(name);
  if (given == nullptr) return;
  const std::string text = given->is_string() ? given->get<std::string>() : "";
  const auto chosen = std::find(names.begin(), names.end(), text);
  if (given->is_string() && chosen != names.end()) {
    value = static_cast<size_t>(chosen - names.begin());
    return;
  }
  const std::string message = fmt::format("must be one of {}; got {}", fmt::join(names, ", "), shown(*given));
  problems_.push_back({child(pointer_, name), message + did_you_mean(text, strings(names))});
}

void JsonReader::object(std::string_view name, std::string_view,
                        const std::function<void(FieldVisitor&)>& visit) {
  const Json* given = find(name);
  if (given == nullptr) return;
  if (!given->is_object()) return fail(name, "must be an object");
  JsonReader reader(*given, child(pointer_, name), problems_);
  visit(reader);
  reader.finish();
}

void JsonReader::also_known(std::string_view name) {
  known_.emplace_back(name);
}

void JsonReader::finish() {
  for (const auto& [key, value] : object_.items()) {
    if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
    std::string hint = did_you_mean(key, known_);
    if (hint.empty()) hint = fmt::format("; the keys here are {}", fmt::join(known_, ", "));
    problems_.push_back(
        {child(pointer_, key), fmt::format("every key must be known; \"{}\" is not{}", key, hint)});
  }
}

// ---- FieldLister

void FieldLister::field(std::string_view name, bool& value, std::string_view help) {
  add({name, FieldFacts::Type::kBoolean, value, help, {}, {}});
}

void FieldLister::field(std::string_view name, int64_t& value, Range range, std::string_view help) {
  add({name, FieldFacts::Type::kInteger, value, help, range, {}});
}

void FieldLister::field(std::string_view name, double& value, Range range, std::string_view help) {
  add({name, FieldFacts::Type::kNumber, value, help, range, {}});
}

void FieldLister::field(std::string_view name, std::string& value, std::string_view help) {
  add({name, FieldFacts::Type::kText, value, help, {}, {}});
}

void FieldLister::field(std::string_view name, std::vector<std::string>& value, std::string_view help) {
  add({name, FieldFacts::Type::kTexts, value, help, {}, {}});
}

void FieldLister::bytes(std::string_view name, int64_t& value, std::string_view help) {
  add({name, FieldFacts::Type::kBytes, value, help, {}, {}});
}

void FieldLister::choice(std::string_view name, size_t& value, const std::vector<std::string_view>& names,
                         std::string_view help) {
  add({name, FieldFacts::Type::kChoice, names.at(value), help, {}, names});
}

// ---- JsonWriter

void JsonWriter::add(const FieldFacts& field) {
  object_[std::string(field.name)] = field.value;
}

void JsonWriter::object(std::string_view name, std::string_view,
                        const std::function<void(FieldVisitor&)>& visit) {
  Json nested = Json::object();
  JsonWriter writer(nested);
  visit(writer);
  object_[std::string(name)] = std::move(nested);
}

Json settings_to_json(const PassOptions& settings) {
  Json object = Json::object();
  JsonWriter writer(object);
  // Visitors may write; this one does not, but its type cannot say so.
  settings.clone()->visit(writer);
  return object;
}

// ---- SchemaWriter

void SchemaWriter::add(const FieldFacts& field) {
  Json& schema = properties_[std::string(field.name)] = schema_of(field);
  schema["description"] = field.help;
  schema["default"] = field.value;
}

void SchemaWriter::object(std::string_view name, std::string_view help,
                          const std::function<void(FieldVisitor&)>& visit) {
  Json properties = Json::object();
  SchemaWriter writer(properties);
  visit(writer);
  Json& schema = properties_[std::string(name)] = object_schema(std::move(properties));
  schema["description"] = help;
}

Json string_list_schema() {
  const Json text = {{"type", "string"}};
  const Json list = {{"type", "array"}, {"items", text}};
  return {{"anyOf", Json::array({list, text})}};
}

Json object_schema(Json properties) {
  return {{"type", "object"}, {"properties", std::move(properties)}, {"additionalProperties", false}};
}

// ---- TableWriter

void TableWriter::add(const FieldFacts& field) {
  rows_.push_back(
      {prefix_ + std::string(field.name), values_of(field), preset_of(field), std::string(field.help)});
}

void TableWriter::object(std::string_view name, std::string_view,
                         const std::function<void(FieldVisitor&)>& visit) {
  const std::string outer = prefix_;
  prefix_ += std::string(name) + ".";
  visit(*this);
  prefix_ = outer;
}

std::string TableWriter::markdown() const {
  std::string text = "| key | values | default | meaning |\n|---|---|---|---|\n";
  for (const Row& row : rows_) {
    const std::string preset = row.preset.empty() ? "" : "`" + row.preset + "`";
    text += fmt::format("| `{}` | {} | {} | {} |\n", row.key, cell(row.values), cell(preset), cell(row.help));
  }
  return text;
}

}  // namespace lcomp::pipeline
