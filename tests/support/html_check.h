#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace lcomp::test {

/// What a small strict parser saw in a page.
struct HtmlOutline {
  std::string error;                    ///< empty when every tag is closed in order
  std::vector<std::string> tags;        ///< "td", "script" ... as opened, in order
  std::vector<std::string> attributes;  ///< names, in order
  std::string text;                     ///< without tags, style and script; entities as written
};

namespace detail {

inline bool is_void(const std::string& tag) {
  static constexpr std::array<std::string_view, 5> kVoid = {"meta", "input", "br", "col", "link"};
  return std::find(kVoid.begin(), kVoid.end(), tag) != kVoid.end();
}

/// Reads `name`, `name=value`, `name="value"` up to '>'; returns the position behind it.
inline size_t read_attributes(std::string_view page, size_t at, std::vector<std::string>& names) {
  while (at < page.size() && page[at] != '>') {
    if (page[at] == ' ' || page[at] == '\n') {
      ++at;
      continue;
    }
    const size_t end = page.find_first_of("= >", at);
    names.emplace_back(page.substr(at, end - at));
    at = end;
    if (at >= page.size() || page[at] != '=') continue;
    const bool quoted = page[at + 1] == '"';
    at = quoted ? page.find('"', at + 2) : page.find_first_of(" >", at);
    if (at == std::string_view::npos) return page.size();
    if (quoted) ++at;
  }
  return std::min(at + 1, page.size());
}

}  // namespace detail

/// Checks that every element is closed in order; style and script are skipped as raw text.
inline HtmlOutline outline_html(std::string_view page) {
  HtmlOutline out;
  std::vector<std::string> open;
  size_t at = page.starts_with("<!DOCTYPE html>\n") ? 16 : 0;
  while (at < page.size()) {
    if (page[at] != '<') {
      out.text += page[at++];
      continue;
    }
    const bool closing = page[at + 1] == '/';
    const size_t start = at + (closing ? 2 : 1);
    const size_t end = page.find_first_of(" >\n", start);
    const std::string tag(page.substr(start, end - start));
    at = detail::read_attributes(page, end, out.attributes);
    if (closing) {
      if (open.empty() || open.back() != tag) {
        out.error = fmt::format("</{}> closes '{}'", tag, open.empty() ? "" : open.back());
        return out;
      }
      open.pop_back();
      continue;
    }
    out.tags.push_back(tag);
    if (!detail::is_void(tag)) open.push_back(tag);
    if (tag == "style" || tag == "script") at = std::min(page.find("</" + tag, at), page.size());
  }
  if (!open.empty()) out.error = "'" + open.back() + "' is not closed";
  return out;
}

}  // namespace lcomp::test
