#include "cli/failure.h"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <filesystem>
#include <new>
#include <sstream>
#include <string_view>

#include "io/descriptor.h"
#include "lcomp/core/error.h"

namespace lcomp::cli {
namespace {

/// Of a text of several errors, each of which begins with a place in brackets. Line ends within one are part
/// of it: a name in a file may hold them.
std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) {
    if (line.empty()) continue;
    if (lines.empty() || line.starts_with('[')) {
      lines.push_back(line);
    } else {
      lines.back() += "\n" + line;
    }
  }
  return lines;
}

Failure classify(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kInvalidArgument:
      return {kBadUsage, "invalid_argument", {}};
    case ErrorKind::kConfig:
      return {kBadUsage, "config", {}};
    case ErrorKind::kCorruptFile:
      return {kBadInput, "corrupt_file", {}};
    case ErrorKind::kUnsupported:
      return {kBadInput, "unsupported", {}};
    case ErrorKind::kNumerical:
      return {kNumerical, "numerical", {}};
    case ErrorKind::kResource:
      return {kResources, "resource", {}};
    case ErrorKind::kInterrupted:
      return {kInterrupted, "interrupted", {}};
    case ErrorKind::kInternal:
      break;
  }
  return {kBug, "internal", {}};
}

/// The standard library's own failures at paths: of an input that is not there or closed to this user, or of
/// the machine.
Failure failure_at_path(const std::filesystem::filesystem_error& error) {
  Failure failure = io::is_bad_input(error.code().value()) ? classify(ErrorKind::kCorruptFile)
                                                           : classify(ErrorKind::kResource);
  failure.messages = {
      fmt::format("[{}] the path must be usable; {}", error.path1().string(), error.code().message())};
  return failure;
}

/// LibTorch's own failure to allocate a tensor, which has no type of its own.
bool is_out_of_memory(const c10::Error& error) {
  return std::string_view(error.what_without_backtrace()).find("can't allocate memory") !=
         std::string_view::npos;
}

}  // namespace

Failure failure_of(const std::exception& error) {
  if (const auto* ours = dynamic_cast<const Error*>(&error)) {
    Failure failure = classify(ours->kind());
    failure.messages = lines_of(ours->what());
    return failure;
  }
  if (const auto* at_path = dynamic_cast<const std::filesystem::filesystem_error*>(&error))
    return failure_at_path(*at_path);
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  if (dynamic_cast<const std::bad_alloc*>(&error) != nullptr ||
      (torch != nullptr && is_out_of_memory(*torch))) {
    return {kResources,
            "resource",
            {"out of memory: the system has no more to give; a job's \"max_memory\" bounds its use"}};
  }
  // LibTorch appends a stack trace to its texts.
  const std::string text = torch != nullptr ? torch->what_without_backtrace() : error.what();
  Failure failure{kBug, "internal", lines_of(text)};
  failure.messages.emplace_back(
      "this is a bug in lcomp; please report it with the command and the lines above");
  return failure;
}

}  // namespace lcomp::cli
