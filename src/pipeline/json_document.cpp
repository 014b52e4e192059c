#include "pipeline/json_document.h"

#include <fmt/format.h>

#include "lcomp/core/error.h"

namespace lcomp::pipeline {
namespace {

std::string unescaped(std::string token) {
  for (const auto& [from, to] : {std::pair{"~1", "/"}, std::pair{"~0", "~"}}) {
    for (size_t at = token.find(from); at != std::string::npos; at = token.find(from, at + 1)) {
      token.replace(at, 2, to);
    }
  }
  return token;
}

/// "/passes/0/bits" -> {"passes", "0", "bits"}.
std::vector<std::string> tokens_of(const std::string& pointer) {
  std::vector<std::string> tokens;
  size_t begin = 1;
  while (begin <= pointer.size()) {
    const size_t end = std::min(pointer.find('/', begin), pointer.size());
    tokens.push_back(unescaped(pointer.substr(begin, end - begin)));
    begin = end + 1;
  }
  return tokens;
}

/// The element of a list that a token means, or -1. `size` itself (and "-") is the place to append.
int64_t index_in(const Json& list, const std::string& token) {
  if (token == "-") return static_cast<int64_t>(list.size());
  const bool digits =
      !token.empty() && token.size() < 7 && token.find_first_not_of("0123456789") == std::string::npos;
  if (!digits) return -1;
  const int64_t index = std::stoll(token);
  return index <= static_cast<int64_t>(list.size()) ? index : -1;
}

/// Steps into `parent[token]`, making it when it is missing. Null when there can be no such place.
Json* step(Json& parent, const std::string& token) {
  if (parent.is_null()) parent = Json::object();
  if (parent.is_object()) return &parent[token];
  if (!parent.is_array()) return nullptr;
  const int64_t index = index_in(parent, token);
  if (index < 0) return nullptr;
  if (index == static_cast<int64_t>(parent.size())) parent.push_back(nullptr);
  return &parent[static_cast<size_t>(index)];
}

Json value_of(const std::string& text) {
  Json value = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? Json(text) : value;
}

}  // namespace

void throw_problems(const std::string& where, const Problems& problems) {
  if (problems.empty()) return;
  const auto place = [&where](const Problem& problem) {
    return problem.pointer.empty() ? where : where + ": " + problem.pointer;
  };
  std::string text = problems.front().message;
  for (size_t i = 1; i < problems.size(); ++i) {
    text += "\n[" + place(problems[i]) + "] " + problems[i].message;
  }
  throw ConfigError(place(problems.front()), text);
}

Json parse_document(std::string_view text, const std::string& where) {
  Json document = io::parse_ordered_json(text, where, {.error = ErrorKind::kConfig, .comments = true});
  if (!document.is_object())
    throw ConfigError(where, "the file must hold one object; it holds " + shown(document));
  return document;
}

std::string child(const std::string& pointer, std::string_view key) {
  std::string result = pointer + "/";
  for (const char c : key) {
    if (c == '~') {
      result += "~0";
    } else if (c == '/') {
      result += "~1";
    } else {
      result += c;
    }
  }
  return result;
}

std::string child(const std::string& pointer, size_t index) {
  return fmt::format("{}/{}", pointer, index);
}

std::string shown(const Json& value) {
  constexpr size_t kLongest = 60;
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() <= kLongest) return text;
  return text.substr(0, kLongest) + "...";
}

void apply_assignment(Json& document, const std::string& assignment, Problems& problems) {
  const size_t equals = assignment.find('=');
  const std::string pointer = assignment.substr(0, std::min(equals, assignment.size()));
  if (equals == std::string::npos || pointer.size() < 2 || pointer.front() != '/') {
    problems.push_back({"", fmt::format("--set takes /pointer=value, such as /seed=1; got {}", assignment)});
    return;
  }

  const Json value = value_of(assignment.substr(equals + 1));
  const std::vector<std::string> tokens = tokens_of(pointer);
  Json* place = &document;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool removes = value.is_null() && i + 1 == tokens.size() && place->is_object();
    if (removes) {
      place->erase(tokens[i]);
      return;
    }
    place = step(*place, tokens[i]);
    if (place == nullptr) {
      problems.push_back(
          {pointer, fmt::format("--set must name a place in the job; there is no \"{}\"", tokens[i])});
      return;
    }
  }
  *place = value;
}

}  // namespace lcomp::pipeline
