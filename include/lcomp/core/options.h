#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace lcomp {

/// Closed interval that a number must lie in.
struct Range {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
};

/// Specialised per enum: `static constexpr std::array names = {...}`, in the order of the enumerators from 0.
template <class Enum>
struct EnumNames;

template <class Enum>
std::string_view name_of(Enum value) {
  return EnumNames<Enum>::names[static_cast<size_t>(value)];
}

/// Sees every field of an options struct once: `void visit(FieldVisitor& v)` names each field, its range and
/// its help in one line. Reading JSON, writing JSON, the JSON Schema, `--help` and the tables of the docs are
/// all visitors.
class FieldVisitor {
 public:
  virtual ~FieldVisitor() = default;

  virtual void field(std::string_view name, bool& value, std::string_view help) = 0;
  virtual void field(std::string_view name, int64_t& value, Range range, std::string_view help) = 0;
  virtual void field(std::string_view name, double& value, Range range, std::string_view help) = 0;
  virtual void field(std::string_view name, std::string& value, std::string_view help) = 0;
  virtual void field(std::string_view name, std::vector<std::string>& value, std::string_view help) = 0;
  /// A size in bytes, for which job files may say "4GB" or "512MiB" (core/bytes.h).
  virtual void bytes(std::string_view name, int64_t& value, std::string_view help) {
    field(name, value, Range{0}, help);
  }
  /// A value out of a closed list of names; `value` is the position in it.
  virtual void choice(std::string_view name, size_t& value, const std::vector<std::string_view>& names,
                      std::string_view help) = 0;
  /// A nested object; `visit` is called with a visitor of its fields.
  virtual void object(std::string_view name, std::string_view help,
                      const std::function<void(FieldVisitor&)>& visit) = 0;

  template <class Enum>
  requires std::is_enum_v<Enum>
  void field(std::string_view name, Enum& value, std::string_view help) {
    const auto& all = EnumNames<Enum>::names;
    size_t index = static_cast<size_t>(value);
    choice(name, index, std::vector<std::string_view>(all.begin(), all.end()), help);
    value = static_cast<Enum>(index);
  }
};

/// A setting without effect as the others stand, and what it needs: "with allocation budget".
struct IdleSetting {
  std::string_view name;
  std::string_view needs;
};

}  // namespace lcomp
