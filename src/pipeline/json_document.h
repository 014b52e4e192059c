#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/json_util.h"

namespace lcomp::pipeline {

/// Keys keep the order in which they were declared or written.
using Json = io::OrderedJson;

/// One thing wrong with a document: the JSON pointer (RFC 6901) of the place and what must hold there.
struct Problem {
  std::string pointer;
  std::string message;
};
using Problems = std::vector<Problem>;

/// Throws `ConfigError` when there are problems: one line for each, `[where: pointer] message`.
void throw_problems(const std::string& where, const Problems& problems);

/// Parses a job: strict JSON (io/json_util.h) with comments. Throws `ConfigError` on the first breach, and on
/// anything but an object at the top.
Json parse_document(std::string_view text, const std::string& where);

/// `pointer` + "/" + `key`, the key escaped as RFC 6901 asks.
std::string child(const std::string& pointer, std::string_view key);
std::string child(const std::string& pointer, size_t index);

/// A value in an error message: its JSON text, cut when long.
std::string shown(const Json& value);

/// Writes the value of one `--set /pointer=value` into the document. `value` is read as JSON and, where it is
/// none, taken as a string; `null` removes the key. Missing objects on the way are made; an index one past
/// the end of a list, or "-", appends. Problems name the assignment.
void apply_assignment(Json& document, const std::string& assignment, Problems& problems);

}  // namespace lcomp::pipeline
