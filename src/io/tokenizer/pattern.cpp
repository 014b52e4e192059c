#include "io/tokenizer/pattern.h"

#include <array>
#include <utility>

#include "io/tokenizer/unicode.h"

namespace lcomp::io::tok {
namespace {

constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kBehaviors = {{
    {"Removed", SplitBehavior::kRemoved},
    {"Isolated", SplitBehavior::kIsolated},
    {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
    {"MergedWithNext", SplitBehavior::kMergedWithNext},
    {"Contiguous", SplitBehavior::kContiguous},
}};

/// Finds the next match at or behind a position: `next` is called until it gives nothing.
template <class Next>
void cover_with_spans(std::string_view text, Next next, const SpanSink& sink) {
  if (text.empty()) return;
  size_t covered = 0;
  while (const std::optional<Range> match = next()) {
    if (covered < match->begin) sink({{covered, match->begin}, false});
    sink({*match, true});
    covered = match->end;
  }
  if (covered < text.size()) sink({{covered, text.size()}, false});
}

}  // namespace

Pattern Pattern::from_json(const JsonView& json) {
  if (const auto expression = json.find("Regex")) return regex(expression->text(), expression->place());
  if (const auto text = json.find("String")) return literal(text->text());
  json.fail(R"(must be {"Regex": ...} or {"String": ...}; it has neither key)");
}

Pattern Pattern::literal(std::string text) {
  // An empty literal matches between all code points, which only the expression engine can say.
  if (text.empty()) return regex("", "empty literal");
  return Pattern(std::move(text));
}

Pattern Pattern::regex(std::string_view expression, const std::string& where) {
  return Pattern(Regex(expression, where));
}

std::string Pattern::replaced(const std::string& text, const std::string& content) const {
  std::string out;
  for_each_span(text, [&](Span span) {
    out += span.match ? content : text.substr(span.range.begin, span.range.end - span.range.begin);
  });
  return out;
}

void Pattern::for_each_span(std::string_view text, const SpanSink& sink) const {
  if (const auto* regex = std::get_if<Regex>(&what_)) {
    Regex::Search search(*regex, text);
    return cover_with_spans(
        text, [&] { return search.next(); }, sink);
  }
  const std::string& needle = std::get<std::string>(what_);
  size_t from = 0;
  const auto next = [&]() -> std::optional<Range> {
    const size_t found = text.find(needle, from);
    if (found == std::string_view::npos) return std::nullopt;
    from = found + needle.size();
    return Range{found, from};
  };
  cover_with_spans(text, next, sink);
}

void for_each_code_point_span(std::string_view text, bool (*matches)(char32_t), const SpanSink& sink) {
  size_t position = 0;
  const auto next = [&]() -> std::optional<Range> {
    while (position < text.size()) {
      const size_t begin = position;
      if (matches(next_code_point(text, position))) return Range{begin, position};
    }
    return std::nullopt;
  };
  cover_with_spans(text, next, sink);
}

SplitBehavior split_behavior(const JsonView& json) {
  const std::string name = json.text();
  std::string known;
  for (const auto& [key, behavior] : kBehaviors) {
    if (key == name) return behavior;
    known += (known.empty() ? "" : ", ") + std::string(key);
  }
  json.fail("must be one of " + known + "; it is " + quote_name(name));
}

bool Splitter::joins_pending(bool match) const {
  switch (behavior_) {
    case SplitBehavior::kContiguous:
      return match == pending_match_;
    case SplitBehavior::kMergedWithPrevious:
      return match && !pending_match_;
    case SplitBehavior::kMergedWithNext:
      return !match && pending_match_;
    case SplitBehavior::kRemoved:
    case SplitBehavior::kIsolated:
      break;
  }
  return false;
}

void Splitter::add(Span span) {
  if (span.match && behavior_ == SplitBehavior::kRemoved) return flush();
  if (pending_.empty() || !joins_pending(span.match)) {
    flush();
    pending_ = span.range;
  } else {
    pending_.end = span.range.end;
  }
  pending_match_ = span.match;
}

void Splitter::flush() {
  if (!pending_.empty()) sink_(pending_);
  pending_ = {};
}

}  // namespace lcomp::io::tok
