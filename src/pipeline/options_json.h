#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/options.h"
#include "lcomp/pipeline/method.h"
#include "pipeline/json_document.h"

namespace lcomp::pipeline {

/// Fills an options struct from a JSON object. Keys that are absent leave their fields alone, so the struct's
/// defaults hold. Nothing throws: everything wrong is added to `problems`, each with its pointer.
///
///     JsonReader reader(object, "/calibration", problems);
///     options.visit(reader);
///     reader.finish();
class JsonReader final : public FieldVisitor {
 public:
  /// `object` must be a JSON object and outlive the reader.
  JsonReader(const Json& object, std::string pointer, Problems& problems);

  using FieldVisitor::field;
  void field(std::string_view name, bool& value, std::string_view help) override;
  void field(std::string_view name, int64_t& value, Range range, std::string_view help) override;
  void field(std::string_view name, double& value, Range range, std::string_view help) override;
  void field(std::string_view name, std::string& value, std::string_view help) override;
  void field(std::string_view name, std::vector<std::string>& value, std::string_view help) override;
  void bytes(std::string_view name, int64_t& value, std::string_view help) override;
  void choice(std::string_view name, size_t& value, const std::vector<std::string_view>& names,
              std::string_view help) override;
  void object(std::string_view name, std::string_view help,
              const std::function<void(FieldVisitor&)>& visit) override;

  /// Declares a key that the caller reads itself.
  void also_known(std::string_view name);
  /// Reports the keys that no field claimed.
  void finish();

 private:
  /// The member of that name, or null; remembers the name as a known one.
  const Json* find(std::string_view name);
  void fail(std::string_view name, const std::string& message);

  const Json& object_;
  const std::string pointer_;
  Problems& problems_;
  std::vector<std::string> known_;
};

/// What there is to know of a field for a visitor that changes nothing.
struct FieldFacts {
  enum class Type { kBoolean, kInteger, kNumber, kText, kTexts, kBytes, kChoice };

  std::string_view name;
  Type type = Type::kBoolean;
  Json value;  ///< as a job writes it
  std::string_view help;
  Range range;                            ///< of an integer or a number
  std::vector<std::string_view> choices;  ///< of a choice
};

/// A visitor that looks at the fields and changes none: `add` sees them all.
class FieldLister : public FieldVisitor {
 public:
  using FieldVisitor::field;
  void field(std::string_view name, bool& value, std::string_view help) final;
  void field(std::string_view name, int64_t& value, Range range, std::string_view help) final;
  void field(std::string_view name, double& value, Range range, std::string_view help) final;
  void field(std::string_view name, std::string& value, std::string_view help) final;
  void field(std::string_view name, std::vector<std::string>& value, std::string_view help) final;
  void bytes(std::string_view name, int64_t& value, std::string_view help) final;
  void choice(std::string_view name, size_t& value, const std::vector<std::string_view>& names,
              std::string_view help) final;

 private:
  virtual void add(const FieldFacts& field) = 0;
};

/// Writes every field into a JSON object, the defaults included.
class JsonWriter final : public FieldLister {
 public:
  explicit JsonWriter(Json& object) : object_(object) {}

  void object(std::string_view name, std::string_view help,
              const std::function<void(FieldVisitor&)>& visit) override;

 private:
  void add(const FieldFacts& field) override;

  Json& object_;
};

/// Writes the `properties` of a JSON Schema (draft 7): type, range, choices, description, and the current
/// value of the field as its default.
class SchemaWriter final : public FieldLister {
 public:
  explicit SchemaWriter(Json& properties) : properties_(properties) {}

  void object(std::string_view name, std::string_view help,
              const std::function<void(FieldVisitor&)>& visit) override;

 private:
  void add(const FieldFacts& field) override;

  Json& properties_;
};

/// Every field of a method's settings, the defaults included.
Json settings_to_json(const PassOptions& settings);

/// Schema of a list of strings, for which one string may stand.
Json string_list_schema();

/// `{"type": "object", "properties": properties, "additionalProperties": false}`.
Json object_schema(Json properties);

/// Collects one row per field for the tables of `--help` and the docs; fields of nested objects are named
/// "object.field".
class TableWriter final : public FieldLister {
 public:
  void object(std::string_view name, std::string_view help,
              const std::function<void(FieldVisitor&)>& visit) override;

  /// A Markdown table: key, values, default, meaning.
  std::string markdown() const;

 private:
  struct Row {
    std::string key, values, preset, help;
  };
  void add(const FieldFacts& field) override;

  std::string prefix_;
  std::vector<Row> rows_;
};

}  // namespace lcomp::pipeline
