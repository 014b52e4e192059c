#include "io/tokenizer/regex.h"

#include "io/json_util.h"
#include "io/pcre2_code.h"
#include "io/tokenizer/regex_dialect.h"
#include "io/tokenizer/unicode.h"
#include "lcomp/core/error.h"

namespace lcomp::io::tok {
namespace {

std::shared_ptr<const void> compile(std::string_view pattern, const std::string& where) {
  const std::string translated = to_pcre2_dialect(pattern, where);
  const std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);

  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(pcre2_bytes(translated), translated.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error,
                                   &offset, context.get());
  if (code == nullptr) {
    throw CorruptFile(where, "the regular expression must compile; " + quote_name(pattern) +
                                 " fails: " + pcre2_message(error));
  }
  // Where the machine has no just-in-time compiler, matching falls back to the interpreter by itself.
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);
  return pcre2_owned(code);
}

}  // namespace

Regex::Regex(std::string_view oniguruma_pattern, const std::string& where)
    : code_(compile(oniguruma_pattern, where)), pattern_(oniguruma_pattern), where_(where) {}

Regex::Search::Search(const Regex& regex, std::string_view text)
    : regex_(regex),
      text_(text),
      match_data_(pcre2_match_data_create_from_pattern(pcre2_code_of(regex.code_), nullptr)) {}

Regex::Search::~Search() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
}

std::optional<Range> Regex::Search::match_from(size_t position) {
  auto* match_data = static_cast<pcre2_match_data*>(match_data_);
  const auto match = [&](uint32_t options) {
    // Without NO_UTF_CHECK each call would validate the whole text again.
    return pcre2_match(pcre2_code_of(regex_.code_), pcre2_bytes(text_), text_.size(), position,
                       PCRE2_NO_UTF_CHECK | options, match_data, nullptr);
  };
  int count = match(0);
  // Compiled code has a small stack, the interpreter grows on the heap.
  if (count == PCRE2_ERROR_JIT_STACKLIMIT) count = match(PCRE2_NO_JIT);
  if (count == PCRE2_ERROR_NOMATCH) return std::nullopt;
  if (count < 0) {
    throw Unsupported(regex_.where_, "the regular expression must match within PCRE2's limits; " +
                                         quote_name(regex_.pattern_) + " fails at byte " +
                                         std::to_string(position) + ": " + pcre2_message(count));
  }
  const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match_data);
  return Range{ends[0], ends[1]};
}

std::optional<Range> Regex::Search::next() {
  while (position_ <= text_.size()) {
    const std::optional<Range> match = match_from(position_);
    if (!match) break;
    if (!match->empty() || last_end_ != match->end) {
      position_ = match->end;
      last_end_ = match->end;
      return match;
    }
    position_ += position_ < text_.size() ? utf8_length(static_cast<unsigned char>(text_[position_])) : 1;
  }
  position_ = text_.size() + 1;
  return std::nullopt;
}

}  // namespace lcomp::io::tok
