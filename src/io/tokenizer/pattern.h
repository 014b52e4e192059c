#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>

#include "io/json_util.h"
#include "io/tokenizer/regex.h"

namespace lcomp::io::tok {

/// A stretch of a text that a pattern matched, or a gap between matches. Spans cover the text from left to
/// right; there is none in an empty text.
struct Span {
  Range range;
  bool match = false;
};
using SpanSink = std::function<void(Span)>;

/// What to look for in a text.
class Pattern {
 public:
  /// `{"Regex": expression}` or `{"String": literal}`.
  static Pattern from_json(const JsonView& json);
  static Pattern literal(std::string text);
  static Pattern regex(std::string_view expression, const std::string& where);

  void for_each_span(std::string_view text, const SpanSink& sink) const;
  /// `text` with `content` in place of every match.
  std::string replaced(const std::string& text, const std::string& content) const;

 private:
  explicit Pattern(std::variant<std::string, Regex> what) : what_(std::move(what)) {}

  std::variant<std::string, Regex> what_;
};

/// The spans of single code points that satisfy `matches`, and of the gaps between them.
void for_each_code_point_span(std::string_view text, bool (*matches)(char32_t), const SpanSink& sink);

/// What becomes of matches when a text is split. "The-final--countdown" split at "-":
enum class SplitBehavior {
  kRemoved,             ///< The, final, countdown
  kIsolated,            ///< The, -, final, -, -, countdown
  kMergedWithPrevious,  ///< The-, final-, -, countdown
  kMergedWithNext,      ///< The, -final, -, -countdown
  kContiguous,          ///< The, -, final, --, countdown
};

/// The behavior named by `json`. Throws `CorruptFile` listing the names.
SplitBehavior split_behavior(const JsonView& json);

/// Joins or drops spans as `behavior` says and hands on what is left, in order and without empty ranges.
class Splitter {
 public:
  Splitter(SplitBehavior behavior, std::function<void(Range)> sink)
      : behavior_(behavior), sink_(std::move(sink)) {}

  void add(Span span);
  /// To be called after the last span.
  void finish() { flush(); }

 private:
  bool joins_pending(bool match) const;
  void flush();

  SplitBehavior behavior_;
  std::function<void(Range)> sink_;
  Range pending_;
  bool pending_match_ = false;
};

}  // namespace lcomp::io::tok
