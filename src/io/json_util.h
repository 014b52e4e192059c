#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lcomp/core/error.h"

/// Strict JSON for every file that lcomp reads. nlohmann/json alone keeps one of two equal keys, takes a NUL
/// byte for the end of the text and recurses as deep as the file says; here all three are errors.
namespace lcomp::io {

using Json = nlohmann::json;
/// Keeps the order of keys: for files that are read, changed and written back.
using OrderedJson = nlohmann::ordered_json;

struct JsonRules {
  /// Kind of the errors: `kCorruptFile` for data files, `kConfig` for jobs and config.json.
  ErrorKind error = ErrorKind::kCorruptFile;
  /// Accept `// ...` and `/* ... */` wherever white space may stand.
  bool comments = false;
  /// Arrays and objects inside each other.
  int max_depth = 200;
};

/// The value of `text`, which must be one JSON document in valid UTF-8 without duplicate keys. `where` names
/// the source in errors; they carry the line and the column (in characters, both counted from 1).
Json parse_json(std::string_view text, const std::string& where, const JsonRules& rules = {});
OrderedJson parse_ordered_json(std::string_view text, const std::string& where, const JsonRules& rules = {});

/// `text` in double quotes with JSON escapes, always valid UTF-8: how names from files appear in messages.
std::string quote_name(std::string_view text);

/// Position of the first byte that does not belong to well-formed UTF-8 (Unicode 15, table 3-7), or nothing.
std::optional<size_t> find_invalid_utf8(std::string_view text);

/// Throws the exception of `kind` (`kCorruptFile` or `kConfig`).
[[noreturn]] void throw_json_error(ErrorKind kind, const std::string& where, const std::string& message);

/// A value inside a parsed document that knows where it stands, so that its getters throw errors such as
/// `[config.json: /rope_scaling/factor] must be a number; it is the string "8"`.
/// The document must outlive the view.
template <class J>
class BasicJsonView {
 public:
  BasicJsonView(const J& value, std::string where, ErrorKind error = ErrorKind::kCorruptFile,
                std::string pointer = "")
      : value_(&value), where_(std::move(where)), error_(error), pointer_(std::move(pointer)) {}

  const J& value() const { return *value_; }
  /// The JSON pointer of this value ("" is the whole document).
  const std::string& pointer() const { return pointer_; }
  /// `where: pointer`, as in the errors of the getters.
  std::string place() const { return pointer_.empty() ? where_ : where_ + ": " + pointer_; }

  /// The member `key` of this object, which must exist.
  BasicJsonView at(const std::string& key) const;
  /// The member `key` of this object; nothing when it is absent or null.
  std::optional<BasicJsonView> find(const std::string& key) const;
  /// The members of this object, in its order, with their keys.
  std::vector<std::pair<std::string, BasicJsonView>> members() const;
  /// The elements of this array.
  std::vector<BasicJsonView> elements() const;

  std::string text() const;
  bool boolean() const;
  double number() const;
  /// A whole number written without fraction or exponent, in [min, max].
  int64_t integer(int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
  std::vector<int64_t> integers(int64_t min = INT64_MIN, int64_t max = INT64_MAX) const;
  std::vector<double> numbers() const;
  std::vector<std::string> texts() const;

  /// `find(key)` and its getter, or `fallback` when the member is absent or null.
  std::string text_or(const std::string& key, std::string fallback) const;
  bool boolean_or(const std::string& key, bool fallback) const;
  int64_t integer_or(const std::string& key, int64_t fallback) const;

  /// Throws `[where: pointer] message`.
  [[noreturn]] void fail(const std::string& message) const;

 private:
  [[noreturn]] void expected(const std::string& what) const;
  BasicJsonView child(const J& value, const std::string& token) const;

  const J* value_;
  std::string where_;
  ErrorKind error_;
  std::string pointer_;
};

using JsonView = BasicJsonView<Json>;
using OrderedJsonView = BasicJsonView<OrderedJson>;

extern template class BasicJsonView<Json>;
extern template class BasicJsonView<OrderedJson>;

}  // namespace lcomp::io
