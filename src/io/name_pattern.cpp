#include "io/name_pattern.h"

#include <fmt/format.h>

#include "io/json_util.h"
#include "io/pcre2_code.h"
#include "lcomp/core/error.h"

namespace lcomp::io {
namespace {

/// Steps of one match: names are short, and what needs more is an attack or a mistake.
constexpr uint32_t kMatchLimit = 100'000;
constexpr uint32_t kHeapKilobytes = 10'000;
constexpr size_t kLongestExpression = 10'000;

}  // namespace

NamePattern::NamePattern(const std::string& expression) : expression_(expression) {
  if (expression.size() > kLongestExpression) {
    throw InvalidArgument("NamePattern", fmt::format("the expression must have at most {} bytes; it has {}",
                                                     kLongestExpression, expression.size()));
  }
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(pcre2_bytes(expression), expression.size(),
                                   PCRE2_ANCHORED | PCRE2_NEVER_BACKSLASH_C, &error, &offset, nullptr);
  if (code == nullptr) {
    throw InvalidArgument("NamePattern", fmt::format("the expression must compile; at byte {}: {}", offset,
                                                     pcre2_message(error)));
  }
  code_ = pcre2_owned(code);
}

bool NamePattern::matches(std::string_view name) const {
  return run(name, PCRE2_ENDANCHORED);
}

bool NamePattern::matches_start_of(std::string_view name) const {
  return run(name, 0);
}

bool NamePattern::run(std::string_view name, unsigned options) const {
  const std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> limits(
      pcre2_match_context_create(nullptr), &pcre2_match_context_free);
  const std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data(
      pcre2_match_data_create(1, nullptr), &pcre2_match_data_free);
  pcre2_set_match_limit(limits.get(), kMatchLimit);
  pcre2_set_heap_limit(limits.get(), kHeapKilobytes);
  const int result =
      pcre2_match(pcre2_code_of(code_), pcre2_bytes(name), name.size(), 0, options, data.get(), limits.get());
  if (result >= 0) return true;
  if (result == PCRE2_ERROR_NOMATCH) return false;
  throw Unsupported("NamePattern",
                    fmt::format("the regular expression {} must match without backtracking so far; "
                                "on {} it gave up after {} steps",
                                quote_name(expression_), quote_name(name), kMatchLimit));
}

}  // namespace lcomp::io
