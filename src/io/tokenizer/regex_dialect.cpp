#include "io/tokenizer/regex_dialect.h"

#include "io/json_util.h"
#include "lcomp/core/error.h"

namespace lcomp::io::tok {
namespace {

/// What an escape becomes outside and inside a class; nothing inside: it cannot be said there.
struct Rewrite {
  char escape;
  std::string_view outside;
  std::string_view inside;
};

// Word characters after UTS 18, annex C; the property Join_Control is written out.
#define LCOMP_WORD R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{200C}\x{200D})"
constexpr Rewrite kRewrites[] = {
    {'s', R"(\p{wspace})", R"(\p{wspace})"},
    {'S', R"(\P{wspace})", R"(\P{wspace})"},
    {'w', "[" LCOMP_WORD "]", LCOMP_WORD},
    {'W', "[^" LCOMP_WORD "]", ""},
    {'h', "[0-9a-fA-F]", "0-9a-fA-F"},
    {'H', "[^0-9a-fA-F]", ""},
    {'b', "(?:(?<=[" LCOMP_WORD "])(?![" LCOMP_WORD "])|(?<![" LCOMP_WORD "])(?=[" LCOMP_WORD "]))", ""},
    {'B', "(?:(?<=[" LCOMP_WORD "])(?=[" LCOMP_WORD "])|(?<![" LCOMP_WORD "])(?![" LCOMP_WORD "]))", ""},
};
#undef LCOMP_WORD

/// Escapes of letters and digits that mean the same in both dialects.
constexpr std::string_view kSharedInside = "pPdDrntfvaex0123456789";
constexpr std::string_view kSharedOutside = "pPdDrntfvaexAzZ0123456789";

bool is_ascii_alphanumeric(char c) {
  return ('0' <= c && c <= '9') || ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z');
}

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (position_ < pattern_.size()) {
      const char c = pattern_[position_];
      if (c == '\\') {
        escape();
      } else if (in_class_) {
        class_member(c);
      } else if (c == '[') {
        open_class();
      } else if (c == '{') {
        interval();
      } else if (rest().starts_with("(?")) {
        group_options();
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  std::string_view rest() const { return pattern_.substr(position_); }

  void copy(size_t count) {
    out_ += rest().substr(0, count);
    position_ += std::min(count, pattern_.size() - position_);
  }

  void replace(size_t count, std::string_view with) {
    out_ += with;
    position_ += count;
  }

  void escape() {
    const char kind = rest().size() > 1 ? rest()[1] : '\0';
    if (kind == 'u') return hex_escape();
    for (const Rewrite& rewrite : kRewrites) {
      if (rewrite.escape != kind) continue;
      const std::string_view with = in_class_ ? rewrite.inside : rewrite.outside;
      return with.empty() ? refuse(rest().substr(0, 2)) : replace(2, with);
    }
    const std::string_view shared = in_class_ ? kSharedInside : kSharedOutside;
    if (is_ascii_alphanumeric(kind) && shared.find(kind) == std::string_view::npos)
      refuse(rest().substr(0, 2));
    copy(2);
  }

  void hex_escape() {
    const std::string_view digits = rest().substr(2, 4);
    if (digits.size() < 4 || digits.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      refuse(rest().substr(0, 6));
    }
    replace(6, R"(\x{)" + std::string(digits) + "}");
  }

  void open_class() {
    in_class_ = true;
    copy(rest().starts_with("[^") ? 2 : 1);
    if (rest().starts_with("]")) refuse(R"([])");
  }

  void class_member(char c) {
    if (c == '[') refuse("[ inside a class");
    if (rest().starts_with("&&")) refuse("&&");
    if (c == ']') in_class_ = false;
    copy(1);
  }

  /// `{n}`, `{n,}` or `{n,m}` mean the same in both dialects; what may follow does not.
  void interval() {
    const size_t length = rest().find('}');
    const std::string_view body = length == std::string_view::npos ? rest() : rest().substr(1, length - 1);
    const bool quantifier = !body.empty() && body.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!quantifier) return copy(1);
    const char next = length + 1 < rest().size() ? rest()[length + 1] : '\0';
    const bool exact = body.find(',') == std::string_view::npos;
    if (body.front() == ',' || next == '+' || (next == '?' && exact)) refuse(rest().substr(0, length + 2));
    copy(length + 1);
  }

  void group_options() {
    copy(2);
    while (position_ < pattern_.size() &&
           std::string_view("imx-").find(pattern_[position_]) != std::string_view::npos) {
      if (pattern_[position_] == 'm') {
        replace(1, "s");
      } else {
        copy(1);
      }
    }
  }

  [[noreturn]] void refuse(std::string_view construct) const {
    throw Unsupported(where_, "the expression must be made of what PCRE2 and Oniguruma share; " +
                                  quote_name(pattern_) + " has " + quote_name(construct));
  }

  std::string_view pattern_;
  const std::string& where_;
  std::string out_;
  size_t position_ = 0;
  bool in_class_ = false;
};

}  // namespace

std::string to_pcre2_dialect(std::string_view oniguruma, const std::string& where) {
  return Translator(oniguruma, where).run();
}

}  // namespace lcomp::io::tok
