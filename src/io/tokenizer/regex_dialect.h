#pragma once

#include <string>
#include <string_view>

namespace lcomp::io::tok {

/// The expression of a tokenizer.json, written for Oniguruma with Ruby syntax, as an equivalent PCRE2
/// expression (to be compiled with UTF, UCP and MULTILINE, newline = LF). What differs and is rewritten:
///
/// | Oniguruma                                   | PCRE2                                              |
/// |---------------------------------------------|----------------------------------------------------|
/// | `\s` is White_Space                         | `\p{wspace}` (PCRE2's `\s` also has U+180E)        |
/// | `\w` has marks and connector punctuation    | the union of the properties; `\b`, `\B` likewise   |
/// | `\h` is a hexadecimal digit                 | `[0-9a-fA-F]` (PCRE2: horizontal space)            |
/// | `\uHHHH`                                    | `\x{HHHH}`                                         |
/// | `(?m)` lets `.` match a line feed           | `(?s)`                                             |
///
/// Constructs that have no short equivalent (nested and intersected classes, POSIX classes, `\W` and `\H`
/// inside a class, `{n,m}+`, `{n}?`, `{,n}`, other escapes) throw `Unsupported` with `where`, the construct
/// and the whole expression.
std::string to_pcre2_dialect(std::string_view oniguruma, const std::string& where);

}  // namespace lcomp::io::tok
